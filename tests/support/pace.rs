//! How much longer work takes at the moment than on a machine that does nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// Processor time of one piece of work.
const WORK: Duration = Duration::from_millis(20);
/// Pause between two pieces: the measure itself takes a tenth of one core.
const PAUSE: Duration = Duration::from_millis(180);
/// Pieces in a window, and windows that are remembered: the last ten seconds.
const PIECES: u32 = 5;
const WINDOWS: usize = 10;
/// The longest that a limit is stretched: beyond it a test fails, whatever else the machine does.
const STRETCH_MAX: f64 = 20.0;

/// Time that passed over processor time that a working thread got, for each window.
static WINDOWS_SEEN: LazyLock<Mutex<VecDeque<f64>>> = LazyLock::new(|| {
    thread::spawn(|| {
        loop {
            let mut sum = 0.0;
            for _ in 0..PIECES {
                sum += ratio();
                thread::sleep(PAUSE);
            }
            let mut seen = WINDOWS_SEEN.lock().unwrap();
            seen.push_back(sum / f64::from(PIECES));
            if seen.len() > WINDOWS {
                seen.pop_front();
            }
        }
    });
    Mutex::new(VecDeque::from([ratio()]))
});

/// Processor time of this thread.
fn processor_time() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let time = used.user_time() + used.system_time();
    Duration::new(time.tv_sec().unsigned_abs(), 0)
        + Duration::from_micros(time.tv_usec().unsigned_abs())
}

/// Works for a while, and says how many times longer than the work it took.
fn ratio() -> f64 {
    let (began, before) = (Instant::now(), processor_time());
    loop {
        let worked = processor_time().saturating_sub(before);
        if worked >= WORK {
            return (began.elapsed().as_secs_f64() / worked.as_secs_f64()).max(1.0);
        }
    }
}

/// Set by a bench, whose figures the measuring thread would disturb.
static IS_OFF: AtomicBool = AtomicBool::new(false);

/// Keeps [`watch`] from measuring in this process.
pub fn turn_off() {
    IS_OFF.store(true, Ordering::Relaxed);
}

/// Begins to measure; what is measured before the first use of [`stretched`] counts too.
pub fn watch() {
    if !IS_OFF.load(Ordering::Relaxed) {
        LazyLock::force(&WINDOWS_SEEN);
    }
}

/// A limit for what takes this long on a machine that does nothing else: as many times longer as work
/// took at the worst of the last seconds.
pub fn stretched(limit: Duration) -> Duration {
    let seen = WINDOWS_SEEN.lock().unwrap();
    limit.mul_f64(seen.iter().copied().fold(1.0, f64::max).min(STRETCH_MAX))
}
