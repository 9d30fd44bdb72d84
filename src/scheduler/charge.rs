//! The engines' time, charged to the jobs that had it and to their applications.

use super::batch_speeds::{BatchMember, BatchSpeeds};
use super::queued::{QueuedJob, RunningJob};
use super::{BATCH_SHARE, Scheduler, start};
use crate::request::job::{JobId, Priority};
use crate::time::Time;

impl Scheduler {
    /// Charges the time since the last event to the jobs that had the engines, and to their applications.
    pub(super) fn charge_engines(&mut self, now: Time) {
        let before = self.last_event_at;
        let ms = now.since(before).as_secs_f64() * 1e3 * f64::from(self.device_pressure.duty);
        self.last_event_at = now;
        self.shares.fade(now);
        if ms <= 0.0 {
            return;
        }
        for engine in self.sides.device.iter() {
            let computed = self.computed(engine, before);
            #[expect(clippy::cast_precision_loss, reason = "a few slots")]
            let each = ms / computed.len().max(1) as f64;
            let mut served = None;
            for (job, speed) in computed {
                let Some(run) = self.running.get_mut(job) else { continue };
                run.served += ms * speed;
                self.shares.used(run.entry.app, each);
                // a batch job has its turn beside others
                served = served.max(Some(run.entry.spec.priority));
            }
            self.reserve_for_batch(engine, served, ms);
        }
    }

    /// The jobs that an engine computes, each with its speed relative to that alone.
    fn computed(&self, engine: usize, now: Time) -> Vec<(JobId, f64)> {
        let backend = &self.backends[engine];
        let jobs = self.running.at(engine);
        if !backend.profile.preemptive {
            return jobs.map(|run| (run.entry.job(), 1.0)).collect();
        }
        let member = |run: &RunningJob| BatchMember {
            priority: run.told,
            read_ms: run.reading_ms(&backend.rates),
            left_ms: now.until(run.entry.due()).as_secs_f64() * 1e3,
        };
        let mut jobs: Vec<_> =
            jobs.map(|run| (run.order(), run.entry.job(), member(run))).collect();
        jobs.sort_unstable_by_key(|(order, ..)| *order);
        let batch = &backend.profile.batch;
        jobs.truncate(backend.width.min(batch.width()).max(1) as usize);
        let speeds = BatchSpeeds::of_jobs(batch, &jobs.iter().map(|(.., member)| *member));
        let speed = |(at, (_, job, member))| (job, speeds.of(at, &member));
        jobs.into_iter().enumerate().map(speed).collect()
    }

    /// Reserves a share of the time that other jobs had for batch jobs that wait.
    fn reserve_for_batch(&mut self, engine: usize, served: Option<Priority>, ms: f64) {
        let is_batch = |e: &QueuedJob| e.home == Some(engine) && e.spec.priority == Priority::Batch;
        let waits = served.is_some_and(|priority| priority != Priority::Batch)
            && self.queue.iter().any(is_batch);
        let backend = &mut self.backends[engine];
        match served {
            Some(Priority::Batch) => backend.batch_reserve_ms -= ms,
            Some(_) if waits => backend.batch_reserve_ms += ms * BATCH_SHARE,
            Some(_) | None => backend.batch_reserve_ms = backend.batch_reserve_ms.min(0.0),
        }
        let most = start::BATCH_TURN_MS / BATCH_SHARE;
        backend.batch_reserve_ms = backend.batch_reserve_ms.clamp(-most * 10.0, most);
    }
}
