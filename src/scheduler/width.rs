//! The width of an engine: how many jobs it computes at once.

use heapless::Vec as Bounded;

use super::feasibility::{LINE_MAX, all_in_time};
use super::offload::{JobPlace, ServiceKey, ms_until};
use super::queued::QueuedJob;
use super::service::{EngineService, JobTime};
use super::{Effect, Scheduler};
use crate::decision::spread::Spread;
use crate::time::Time;

impl Scheduler {
    /// Chooses how many jobs an engine is to compute at once: the most with which each is in time by the
    /// 95 % quantile; if there is no such number, as many as fit in its batch.
    pub(super) fn choose_width(
        &mut self,
        engine: usize,
        order: &[(ServiceKey, JobPlace)],
        now: Time,
    ) {
        let slow = 1.0 / self.speed();
        let jobs = order.iter().filter_map(|(_, place)| self.remaining(engine, *place));
        let jobs = jobs.map(|(entry, time, _)| (time, ms_until(now, entry.due())));
        let jobs: Bounded<(JobTime, f64), LINE_MAX> = jobs.collect();
        let profile = &self.backends[engine].profile;
        let most = profile.batch.width();
        let holds = |width: &u32| {
            let service = EngineService::of(profile, *width, jobs.len());
            all_in_time(jobs.iter().map(|(time, left)| {
                let time = JobTime { read: time.read.p95 * slow, write: time.write.p95 * slow };
                (service.own_ms(&time), service.delay_ms(&time), *left)
            }))
        };
        let halved = |width: &u32| Some(width / 2).filter(|width| *width > 0);
        let widths = std::iter::successors(Some(most), halved);
        let width = widths.into_iter().find(holds).unwrap_or(most);
        let backend = &mut self.backends[engine];
        let before = std::mem::replace(&mut backend.width, width);
        if before.min(most) != width {
            let id = backend.profile.server.clone();
            self.effects.push(Effect::Width { backend: id, width });
        }
    }

    /// Time of a job at full speed from its start at this backend, beside those that run there.
    pub(super) fn time_at_start(&self, entry: &QueuedJob, backend: usize) -> Spread {
        let service = self.backends[backend].service(self.running.count_at(backend) + 1);
        service.own(&self.backends[backend].rates.time(&entry.load))
    }

    /// Jobs that an engine has, those that run and those that wait.
    pub(super) fn jobs_at(&self, engine: usize) -> usize {
        let waits = |entry: &&QueuedJob| entry.home == Some(engine) && entry.offload.is_none();
        self.queue.iter().filter(waits).count() + self.running.count_at(engine)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::batch::BatchRates;
    use crate::model::context::Locality;
    use crate::request::job::JobId;
    use crate::scheduler::tests::{profile, spec};
    use crate::scheduler::{Answered, BackendProfile, Event, JobSpec};

    /// The widths that the effects of an arrival, or of an end, set.
    fn widths(effects: &[Effect]) -> Vec<u32> {
        let width = |effect: &Effect| {
            if let Effect::Width { width, .. } = effect { Some(*width) } else { None }
        };
        effects.iter().filter_map(width).collect()
    }

    #[test]
    fn the_batch_is_as_wide_as_deadlines_allow() {
        let batch = BatchRates::of_steps(&[(1, 10.0), (2, 16.0), (4, 28.0)]);
        let local = BackendProfile {
            slots: 6,
            preemptive: true,
            batch,
            ..profile("local", Locality::Device)
        };
        let mut scheduler = Scheduler::new(vec![local.clone()]);
        scheduler.handle_event(Event::Up(local), Time(0));
        let mut arrive = |id, ms| {
            let due = Time(0) + Duration::from_millis(ms);
            let arrived = Event::Arrived(JobSpec { due, ..spec(id) });
            widths(&scheduler.handle_event(arrived, Time(0)))
        };
        // the whole width, unless one would be late
        assert!(arrive(0, 60_000).is_empty());
        assert!(arrive(1, 60_000).is_empty());
        assert_eq!(arrive(2, 500), [1]);
        let ended = Event::Ended { job: JobId(2), outcome: Ok(Answered::default()) };
        assert_eq!(widths(&scheduler.handle_event(ended, Time(1))), [4]);
        // a job that is late at each width does not slow down the others
        let hopeless = Time(0) + Duration::from_millis(50);
        let arrived = Event::Arrived(JobSpec { due: hopeless, ..spec(3) });
        assert!(widths(&scheduler.handle_event(arrived, Time(1))).is_empty());
    }
}
