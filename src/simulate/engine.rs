//! The engine of a simulated device: it computes its most urgent jobs in one batch.

use std::time::Duration;

use crate::model::batch::{BatchRates, until_time_changes_ms};
use crate::request::job::{JobId, Priority};
use crate::scheduler::batch_speeds::{BatchMember, BatchSpeeds};
use crate::time::Time;

/// Work that counts as none, in milliseconds: times are rounded to microseconds.
const NO_WORK_MS: f64 = 1e-2;

/// Priority, deadline and identifier; the least is the most urgent.
pub(super) type JobOrder = (Priority, Time, JobId);

/// Computing time of a job at full speed if no other is computed, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// For its prompt.
    pub(super) read: f64,
    /// For its answer.
    pub(super) write: f64,
}

/// A job in the engine, with the work that is left.
#[derive(Debug, Clone)]
struct Inside {
    order: JobOrder,
    left: Work,
}

impl Inside {
    fn is_reading(&self) -> bool {
        self.left.read > NO_WORK_MS
    }

    fn member(&self, now: Time) -> BatchMember {
        let read_ms = if self.is_reading() { self.left.read } else { 0.0 };
        BatchMember { priority: self.order.0, read_ms, left_ms: self.left_ms(now) }
    }

    /// Until its deadline.
    fn left_ms(&self, now: Time) -> f64 {
        now.until(self.order.1).as_secs_f64() * 1e3
    }

    fn is_done(&self) -> bool {
        self.left.read + self.left.write <= NO_WORK_MS
    }
}

/// Jobs in the engine, the most urgent first.
#[derive(Debug, Clone)]
pub(super) struct SimulatedEngine {
    batch: BatchRates,
    width: u32,
    jobs: Vec<Inside>,
    now: Time,
    /// Milliseconds of work in a millisecond.
    speed: f64,
}

impl SimulatedEngine {
    pub(super) fn new(batch: BatchRates) -> SimulatedEngine {
        SimulatedEngine {
            width: batch.width(),
            batch,
            jobs: Vec::new(),
            now: Time::default(),
            speed: 1.0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn set_width(&mut self, width: u32) {
        self.width = width.clamp(1, self.batch.width());
    }

    pub(super) fn start(&mut self, order: JobOrder, work: Work) {
        let at = self.jobs.partition_point(|inside| inside.order < order);
        self.jobs.insert(at, Inside { order, left: work });
    }

    pub(super) fn remove(&mut self, job: JobId) {
        self.jobs.retain(|inside| inside.order.2 != job);
    }

    /// Takes out a job that is complete.
    pub(super) fn take_done(&mut self) -> Option<JobId> {
        let at = self.jobs.iter().position(Inside::is_done)?;
        Some(self.jobs.remove(at).order.2)
    }

    /// Time at full speed until the first job is complete, in milliseconds.
    pub(super) fn first_end_ms(&self) -> Option<f64> {
        let mut ahead = self.clone();
        let mut ms = 0.0;
        // bounded: each round changes how a prompt is read
        while !ahead.jobs.is_empty() && !ahead.jobs.iter().any(Inside::is_done) {
            ms += ahead.advance_to_change(f64::MAX);
        }
        (!ahead.jobs.is_empty()).then_some(ms)
    }

    /// Sets the time and the speed for what follows, in milliseconds of work in a millisecond.
    pub(super) fn set_pace(&mut self, now: Time, speed: f64) {
        (self.now, self.speed) = (now, speed);
    }

    /// Computes for a time at full speed, in milliseconds, or until the first job is complete.
    pub(super) fn advance(&mut self, ms: f64) {
        let mut left = ms;
        // bounded: each round changes how a prompt is read, or ends the time
        while left > 0.0 && !self.jobs.is_empty() && !self.jobs.iter().any(Inside::is_done) {
            left -= self.advance_to_change(left);
        }
    }

    /// Advances until a prompt is read, or all but a short rest of it, or an answer is complete, at most `most`
    /// milliseconds; returns how long.
    fn advance_to_change(&mut self, most: f64) -> f64 {
        let speeds = self.speeds();
        let running = || self.jobs.iter().zip(&speeds);
        let writers = running().filter(|(inside, _)| !inside.is_reading()).count();
        let short = self.batch.read_at_once_ms(u32::try_from(writers).unwrap_or(u32::MAX));
        let ends = running().map(|(inside, speed)| {
            let Work { read, write } = inside.left;
            if !inside.is_reading() {
                return write / speed;
            }
            // the speed of a prompt changes when its rest is short, or has time beside answers
            let rest = if short > 0.0 && read > short { read - short + NO_WORK_MS } else { read };
            let left = inside.left_ms(self.now);
            let change = until_time_changes_ms(read, left, *speed, self.speed);
            let end = rest / speed;
            if change > 0.0 { end.min(change + NO_WORK_MS) } else { end }
        });
        let ms = ends.fold(most, f64::min);
        for (inside, speed) in self.jobs.iter_mut().zip(&speeds) {
            let is_reading = inside.is_reading();
            let part = if is_reading { &mut inside.left.read } else { &mut inside.left.write };
            *part = (*part - ms * speed).max(0.0);
        }
        let passed = ms / self.speed.max(1e-9);
        self.now = self.now + Duration::from_secs_f64((passed / 1e3).min(1e6));
        ms
    }

    /// The speeds of the jobs in the batch, relative to each alone.
    fn speeds(&self) -> Vec<f64> {
        let running = &self.jobs[..self.jobs.len().min(self.width as usize)];
        let members = running.iter().map(|inside| inside.member(self.now));
        let speeds = BatchSpeeds::of_jobs(&self.batch, &members);
        members.enumerate().map(|(at, member)| speeds.of(at, &member)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::READ_SHARE;

    fn engine(works: &[(f64, f64)]) -> SimulatedEngine {
        let batch = BatchRates::of_steps(&[(1, 10.0), (2, 12.0), (4, 20.0)]);
        let mut engine = SimulatedEngine::new(batch);
        for (at, (read, write)) in (0..).zip(works) {
            let work = Work { read: *read, write: *write };
            engine.start((Priority::Normal, Time(at), JobId(at)), work);
        }
        engine
    }

    fn ends(mut engine: SimulatedEngine) -> Vec<(u64, f64)> {
        let mut now = 0.0;
        let mut ends = Vec::new();
        while let Some(ms) = engine.first_end_ms() {
            engine.advance(ms);
            now += ms;
            let done = engine.take_done();
            ends.push((done.map_or(u64::MAX, |job| job.0), (now * 1e3_f64).round() / 1e3));
        }
        ends
    }

    #[test]
    fn answers_of_a_batch_advance_together() {
        assert_eq!(ends(engine(&[(0.0, 100.0)])), [(0, 100.0)]);
        // two at once take 1.2 times as long, then one alone
        assert_eq!(ends(engine(&[(0.0, 100.0), (0.0, 150.0)])), [(0, 120.0), (1, 170.0)]);
    }

    #[test]
    fn a_prompt_is_read_first_if_it_is_the_most_urgent_and_else_beside_answers() {
        assert_eq!(ends(engine(&[(50.0, 100.0), (0.0, 30.0)])), [(1, 86.0), (0, 156.0)]);
        let mut beside = engine(&[(0.0, 100.0), (90.0, 30.0)]);
        let half_ms = 45.0 / READ_SHARE;
        beside.advance(half_ms);
        let left = |engine: &SimulatedEngine, at: usize| engine.jobs[at].left;
        assert!((left(&beside, 1).read - 45.0).abs() < 1e-9);
        let written = half_ms * (1.0 - READ_SHARE);
        assert!((left(&beside, 0).write - (100.0 - written)).abs() < 1e-9);
        // a short one, and the short rest of a long one, at once
        assert_eq!(ends(engine(&[(0.0, 100.0), (40.0, 100.0)])), [(0, 160.0), (1, 160.0)]);
        let read_ms = 10.0 / READ_SHARE + 40.0;
        let (first, end_ms) = ends(engine(&[(0.0, 100.0), (50.0, 0.1)]))[0];
        assert!(first == 1 && (end_ms - read_ms).abs() < 0.5, "{first} {end_ms}");
    }

    #[test]
    fn the_most_urgent_prompt_is_read_beside_answers_as_soon_as_it_has_time() {
        // of 400 ms the first 300 at once: then a quarter of 400 ms suffices
        let mut engine = engine(&[(400.0, 1.0), (0.0, 400.0)]);
        engine.jobs[0].order.1 = Time(700_000);
        engine.advance(300.0);
        let left =
            |engine: &SimulatedEngine| engine.jobs.iter().map(|job| job.left).collect::<Vec<_>>();
        let [reading, writing] = left(&engine)[..] else { panic!() };
        assert!((reading.read - 100.0).abs() < 0.1 && (writing.write - 400.0).abs() < 0.1);
        engine.advance(30.0);
        let [reading, writing] = left(&engine)[..] else { panic!() };
        assert!((reading.read - 90.0).abs() < 0.1 && (writing.write - 380.0).abs() < 0.1);
    }

    #[test]
    fn only_the_most_urgent_are_computed() {
        let mut narrow = engine(&[(0.0, 100.0), (0.0, 100.0)]);
        narrow.set_width(1);
        assert_eq!(ends(narrow), [(0, 100.0), (1, 200.0)]);
        let mut wide = engine(&[(0.0, 100.0); 6]);
        wide.set_width(99);
        let ends = ends(wide);
        assert_eq!(ends[3], (3, 200.0));
        assert_eq!(ends[5], (5, 320.0));
    }
}
