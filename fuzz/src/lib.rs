//! Shared code of the fuzz targets: the bounds of one input, and the checks of messages for users.
//!
//! An input is a finding if the decoder panics, breaks a property that its target asserts, or takes more
//! than [`MILLISECONDS_MAX`] of processor time or [`BYTES_MAX`] of memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use pilotlight::catalog::catalog::Catalog;
use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::read;
use pilotlight::model::generate::Fault;
use pilotlight::request::job::Job;
use pilotlight::request::refusal::Refusal;
use pilotlight::wire::{self, Ask};

pub use libfuzzer_sys;

/// Most processor time of one input, of all threads together: 100 ms of the program, counted as three times
/// as much for a build with all checks, counters at each branch and little optimisation.
pub const MILLISECONDS_MAX: f64 = 300.0;
/// Most memory of one input beyond what was allocated before, in bytes.
pub const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most bytes of a message that says what is wrong with an input.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Defines a target: what is done with each input, within the bounds.
#[macro_export]
macro_rules! target {
    (|$input:ident| $run:block) => {
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            $crate::bounded(input, $crate::MILLISECONDS_MAX, |$input: &[u8]| $run);
        });
    };
    (within $most:literal ms, |$input:ident| $run:block) => {
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            $crate::bounded(input, f64::from($most), |$input: &[u8]| $run);
        });
    };
}

/// Runs a decoder on an input.
pub fn bounded(input: &[u8], most_ms: f64, run: impl Fn(&[u8])) {
    let is_within = |cost: &Cost| cost.ms <= most_ms && cost.bytes <= BYTES_MAX;
    let mut cost = Cost::of(input, &run);
    // tables that are made once, and other programs in the caches: what stays counts
    for _ in 0..3 {
        if is_within(&cost) {
            break;
        }
        cost = cost.least(Cost::of(input, &run));
    }
    cost.note();
    assert!(is_within(&cost), "costs too much: {cost:?}");
}

#[derive(Debug, Clone, Copy)]
struct Cost {
    ms: f64,
    bytes: usize,
}

impl Cost {
    fn of(input: &[u8], run: &impl Fn(&[u8])) -> Cost {
        let (time, before) = (processor_time(), ALLOCATED.load(Ordering::Relaxed));
        PEAK.store(before, Ordering::Relaxed);
        run(input);
        let bytes = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        Cost { ms: (processor_time() - time).as_secs_f64() * 1e3, bytes }
    }

    fn least(self, other: Cost) -> Cost {
        Cost { ms: self.ms.min(other.ms), bytes: self.bytes.min(other.bytes) }
    }

    /// Prints what is the most so far, for `scripts/fuzz`.
    fn note(&self) {
        static SLOWEST: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let tenths = (self.ms * 10.0) as usize;
        if SLOWEST.fetch_max(tenths, Ordering::Relaxed) < tenths {
            eprintln!("slowest input: {:.1} ms", self.ms);
        }
        let tenths = self.bytes * 10 / (1024 * 1024);
        if MOST.fetch_max(tenths, Ordering::Relaxed) < tenths {
            eprintln!("most memory: {}.{} MB", tenths / 10, tenths % 10);
        }
    }
}

/// Time of a processor is no longer on a busy machine.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock");
    time.into()
}

/// Bytes that are allocated, and the most that were.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What may be allocated before the process ends.
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The exit status that libFuzzer has for too much memory.
const OUT_OF_MEMORY: i32 = 71;

/// Runs a decoder that has no other bound of its memory than that of its process: the process ends at
/// [`BYTES_MAX`], as an engine does, and `libFuzzer` goes on in another one (`-fork=1`).
pub fn in_bounded_process<T>(run: impl FnOnce() -> T) -> T {
    BOUND.store(ALLOCATED.load(Ordering::Relaxed) + BYTES_MAX, Ordering::Relaxed);
    let result = run();
    BOUND.store(usize::MAX, Ordering::Relaxed);
    result
}

fn grown(bytes: usize) {
    let allocated = ALLOCATED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(allocated, Ordering::Relaxed);
    if allocated > BOUND.load(Ordering::Relaxed) {
        // SAFETY: ends the process without running anything in it
        unsafe { nix::libc::_exit(OUT_OF_MEMORY) }
    }
}

fn shrunk(bytes: usize) {
    ALLOCATED.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as for the caller
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as for the caller
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: as for the caller
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        shrunk(layout.size());
        // SAFETY: as for the caller
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Checks a message that says what is wrong: it says something, and not without end.
pub fn shown(message: &str) {
    assert!(!message.trim().is_empty(), "an empty message");
    let bytes = message.len();
    assert!(bytes <= MESSAGE_BYTES_MAX, "a message of {bytes} bytes: {message:.200}");
}

/// Checks a refusal: it is shown in logs and on terminals.
pub fn refused(refusal: &Refusal) {
    shown(&refusal.message);
    let field = refusal.field.as_deref().unwrap_or("none");
    assert!((1..=MESSAGE_BYTES_MAX).contains(&field.len()), "a field of {} bytes", field.len());
    for text in [field, &refusal.message] {
        assert!(!text.contains(char::is_control), "control characters: {text:?}");
    }
}

/// Checks a fault, as the attempt reports it.
pub fn failed(fault: Fault) {
    let text = fault.bounded().to_string();
    shown(&text);
    assert!(!text.contains(char::is_control), "control characters: {text:?}");
}

/// A catalog with a task of each kind.
pub fn catalog() -> &'static Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
        let (catalog, mistakes) = read::read(include_str!("mcp.json"), &Variables::new());
        assert!(mistakes.is_empty(), "{mistakes:?}");
        catalog
    });
    &CATALOG
}

/// Checks a request that was accepted: what another service gets of it is the same request.
pub fn accepted(job: &Job) {
    let asked = Ask::of(job);
    let text = serde_json::to_vec(&asked).expect("a request has JSON");
    let read: Ask = wire::read(&text).expect("what is sent can be read");
    assert_eq!(read, asked, "changed by JSON");
    let again = read.check(&job.client, &Catalog::default());
    let again = again.unwrap_or_else(|refusal| panic!("another service refuses it: {refusal}"));
    assert_eq!(Ask::of(&again), asked, "changed by another service");
    assert_eq!(again.messages, job.messages);
    assert_eq!(again.sampling, job.sampling);
    assert_eq!(again.format, job.format);
    assert_eq!(again.tools, job.tools);
    assert_eq!((again.key, again.priority), (job.key.clone(), job.priority));
    assert_eq!(again.streamed, job.streamed);
}
