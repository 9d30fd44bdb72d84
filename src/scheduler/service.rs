//! Service of several jobs by one engine: how long each takes, and by how much it delays those behind it.
//!
//! An engine that decodes in batches computes up to `width` jobs at once. Decoding takes each of them
//! `slowdown` times as long as alone, and so delays a job behind it by `slowdown / width` of that; a prompt is
//! computed for its job alone, and so delays all others. Beside less urgent prompts an answer takes longer, and
//! beside more urgent answers a prompt does, unless it is short: see [`READ_SHARE`]. The start of a job that finds all `width` places
//! taken is at most the sum of the delays before it (R. L. Graham, "Bounds on multiprocessing timing
//! anomalies", SIAM Journal on Applied Mathematics 17, 1969).

use super::profile::BackendProfile;
use crate::decision::spread::Spread;
use crate::model::batch::READ_SHARE;

/// How many times as long reading a prompt takes beside answers that are more urgent.
const READ_SLOWDOWN: f64 = 1.0 / READ_SHARE;
/// How many times as long writing an answer takes at most beside a prompt that is less urgent.
const BESIDE_SLOWDOWN: f64 = 1.0 / (1.0 - READ_SHARE);

/// Computing time of a job at full speed if no other is computed, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct JobTime<T = Spread> {
    /// For reading the prompt, or for a classification.
    pub(super) read: T,
    /// For writing the answer.
    pub(super) write: T,
}

#[cfg(test)]
impl JobTime {
    /// From its start to its end, if no other job is computed.
    pub(super) fn whole(&self) -> Spread {
        self.read.with(&self.write, |a, b| a + b)
    }
}

/// How an engine serves its jobs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct EngineService {
    read_slowdown: f64,
    /// The longest time of a prompt, or of its rest, that is read without a slowdown, in milliseconds.
    read_at_once_ms: f64,
    /// Of an answer by the others of its batch, and by a prompt beside them.
    slowdown: f64,
    beside: f64,
    /// Jobs at once for the parts of an answer.
    width: f64,
    /// The same for prompts.
    read_width: f64,
}

impl EngineService {
    /// Of a backend that computes at most `width` jobs at once, where so many are to be served.
    pub(super) fn of(profile: &BackendProfile, width: u32, jobs: usize) -> EngineService {
        if !profile.preemptive {
            let width = f64::from(profile.slots.max(1));
            return EngineService {
                read_slowdown: 1.0,
                read_at_once_ms: 0.0,
                slowdown: 1.0,
                beside: 1.0,
                width,
                read_width: width,
            };
        }
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
        let width = width.min(profile.batch.width()).min(jobs).max(1);
        let (read_slowdown, beside) =
            if width > 1 { (READ_SLOWDOWN, BESIDE_SLOWDOWN) } else { (1.0, 1.0) };
        EngineService {
            read_slowdown,
            read_at_once_ms: profile.batch.read_at_once_ms(width),
            beside,
            slowdown: profile.batch.slowdown(width).max(1.0),
            width: f64::from(width),
            read_width: 1.0,
        }
    }

    /// From the start of a job to its end.
    pub(super) fn own(&self, time: &JobTime) -> Spread {
        time.read.with(&time.write, |read, write| self.own_ms(&JobTime { read, write }))
    }

    /// By how much a job delays each one behind it.
    pub(super) fn delay(&self, time: &JobTime) -> Spread {
        time.read.with(&time.write, |read, write| self.delay_ms(&JobTime { read, write }))
    }

    pub(super) fn own_ms(&self, time: &JobTime<f64>) -> f64 {
        // the rest of a long prompt too
        let at_once = time.read.min(self.read_at_once_ms);
        let beside = (time.read - at_once) * self.read_slowdown;
        at_once + beside + time.write * self.slowdown * self.beside
    }

    pub(super) fn delay_ms(&self, time: &JobTime<f64>) -> f64 {
        time.read / self.read_width + time.write * self.slowdown / self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::BatchRates;
    use crate::model::context::Locality;
    use crate::scheduler::tests::profile;

    const TIME: JobTime<f64> = JobTime { read: 100.0, write: 400.0 };

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    /// An engine that decodes up to four answers at once.
    fn batching() -> BackendProfile {
        BackendProfile {
            slots: 6,
            preemptive: true,
            batch: BatchRates::of_steps(&[(1, 10.0), (2, 12.0), (4, 20.0)]),
            ..profile("local", Locality::Device)
        }
    }

    #[test]
    fn a_batch_slows_each_and_delays_less() {
        let engine = batching();
        let times = |width, jobs| {
            let service = EngineService::of(&engine, width, jobs);
            (service.own_ms(&TIME), service.delay_ms(&TIME))
        };
        assert_eq!(times(4, 1), (500.0, 500.0));
        assert_eq!(times(1, 9), (500.0, 500.0));
        let (own, delay) = times(4, 9);
        close(own, 80.0 + 60.0 + 1200.0);
        close(delay, 100.0 + 200.0);
        let (own, delay) = times(4, 2);
        close(own, 48.0 + 156.0 + 720.0);
        close(delay, 100.0 + 240.0);
    }

    #[test]
    fn a_short_prompt_and_the_rest_of_a_long_one_are_read_at_once() {
        let engine = batching();
        let own = |read| EngineService::of(&engine, 4, 9).own_ms(&JobTime { read, write: 0.0 });
        close(own(80.0), 80.0);
        close(own(81.0), 83.0);
    }

    #[test]
    fn others_serve_one_at_a_time_or_all_at_full_speed() {
        let base = profile("local", Locality::Device);
        let one = BackendProfile { slots: 3, preemptive: true, ..base.clone() };
        let service = EngineService::of(&one, 8, 5);
        assert_eq!((service.own_ms(&TIME), service.delay_ms(&TIME)), (500.0, 500.0));
        let four = BackendProfile { slots: 4, preemptive: false, ..base };
        let service = EngineService::of(&four, 8, 5);
        assert_eq!((service.own_ms(&TIME), service.delay_ms(&TIME)), (500.0, 125.0));
    }
}
