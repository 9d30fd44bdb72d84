//! The queue: bounded in jobs and in bytes, by priority and then earliest deadline first.

use heapless::{LinearMap, Vec as Bounded};

use super::fairness::AppId;
use super::queued::QueuedJob;
use crate::limits::{WAITING_BYTES_MAX, WAITING_JOBS_MAX};
use crate::request::job::JobId;
use crate::time::Time;

/// The waiting jobs, in the order of priority and deadline.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Bounded<QueuedJob, WAITING_JOBS_MAX>,
    bytes: usize,
}

impl Queue {
    /// Gives the job back if there is no room for it.
    pub(super) fn offer(&mut self, entry: QueuedJob) -> Result<(), Box<QueuedJob>> {
        let bytes = entry.spec.bytes;
        if bytes > WAITING_BYTES_MAX.saturating_sub(self.bytes) {
            return Err(Box::new(entry));
        }
        let at = self.waiting.partition_point(|other| other.order() <= entry.order());
        self.waiting.insert(at, entry).map_err(Box::new)?;
        self.bytes += bytes;
        Ok(())
    }

    /// All that wait, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &QueuedJob> {
        self.waiting.iter()
    }

    /// All that wait, in order, to be changed in all but their place.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut QueuedJob> {
        self.waiting.iter_mut()
    }

    /// The job at a place of the order, taken out.
    pub(super) fn take(&mut self, at: usize) -> QueuedJob {
        let entry = self.waiting.remove(at);
        self.bytes -= entry.spec.bytes;
        entry
    }

    /// Takes one job out by name.
    pub(super) fn remove(&mut self, job: JobId) -> Option<QueuedJob> {
        let at = self.waiting.iter().position(|entry| entry.job() == job)?;
        Some(self.take(at))
    }

    /// A job whose deadline has passed, taken out.
    pub(super) fn expired(&mut self, now: Time) -> Option<QueuedJob> {
        let at = self.waiting.iter().position(|entry| entry.due() <= now)?;
        Some(self.take(at))
    }

    /// The least urgent job of the application that has the most jobs here, taken out, if that
    /// application has at least two more than `than`.
    pub(super) fn evict(&mut self, than: AppId) -> Option<QueuedJob> {
        let mut counts: LinearMap<AppId, usize, WAITING_JOBS_MAX> = LinearMap::new();
        for entry in &self.waiting {
            let count = counts.get(&entry.app).copied().unwrap_or(0);
            let _ = counts.insert(entry.app, count + 1);
        }
        let (most, count) = counts.iter().max_by_key(|(_, count)| **count)?;
        if *count < counts.get(&than).copied().unwrap_or(0) + 2 {
            return None;
        }
        let most = *most;
        let at = self.waiting.iter().rposition(|entry| entry.app == most)?;
        Some(self.take(at))
    }

    /// The earliest deadline of all waiting jobs.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.waiting.iter().map(QueuedJob::due).min()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many bytes wait.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How full it is, in jobs or bytes, whichever is fuller: 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "both are far below 2^24")]
    pub(super) fn fullness(&self) -> f32 {
        let jobs = self.waiting.len() as f32 / WAITING_JOBS_MAX as f32;
        let bytes = self.bytes as f32 / WAITING_BYTES_MAX as f32;
        jobs.max(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::job::Priority;
    use crate::scheduler::JobSpec;
    use crate::scheduler::fairness::Shares;
    use crate::scheduler::tests::{entry, spec};

    fn order_of(queue: &Queue) -> Vec<u64> {
        queue.iter().map(|entry| entry.job().0).collect()
    }

    #[test]
    fn earliest_deadline_first_within_a_priority() {
        let mut queue = Queue::default();
        let jobs = [
            (1, Priority::Batch, 10),
            (2, Priority::Normal, 30),
            (3, Priority::Normal, 20),
            (4, Priority::Interactive, 90),
            (5, Priority::Normal, 20),
        ];
        for (id, priority, due) in jobs {
            queue.offer(entry(JobSpec { priority, due: Time(due), ..spec(id) })).unwrap();
        }
        assert_eq!(queue.next_due(), Some(Time(10)));
        assert_eq!(order_of(&queue), [4, 3, 5, 2, 1]);
        assert_eq!(queue.take(1).job(), JobId(3));
        assert_eq!(queue.remove(JobId(1)).unwrap().job(), JobId(1));
        assert_eq!(queue.bytes(), 300);
    }

    #[test]
    fn a_queue_full_of_jobs_returns_the_job() {
        let mut queue = Queue::default();
        for id in 0..WAITING_JOBS_MAX as u64 {
            queue.offer(entry(spec(id))).unwrap();
        }
        assert_eq!(queue.offer(entry(spec(999))).unwrap_err().job(), JobId(999));
        assert_eq!(queue.len(), WAITING_JOBS_MAX);
    }

    #[test]
    fn a_queue_full_of_bytes_returns_the_job() {
        let mut queue = Queue::default();
        queue.offer(entry(JobSpec { bytes: WAITING_BYTES_MAX - 1, ..spec(1) })).unwrap();
        queue.offer(entry(JobSpec { bytes: 2, ..spec(2) })).unwrap_err();
        queue.offer(entry(JobSpec { bytes: 1, ..spec(3) })).unwrap();
        assert_eq!(queue.bytes(), WAITING_BYTES_MAX);
        assert!((queue.fullness() - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn eviction_takes_from_the_application_with_the_most_jobs() {
        let mut shares = Shares::default();
        let (flood, quiet) = (shares.enter("flood"), shares.enter("quiet"));
        let mut queue = Queue::default();
        for id in 0..5 {
            let app = if id == 1 { quiet } else { flood };
            queue.offer(QueuedJob { app, ..entry(spec(id)) }).unwrap();
        }
        assert!(queue.evict(flood).is_none());
        assert_eq!(queue.evict(quiet).unwrap().job(), JobId(4));
        assert!(queue.evict(quiet).is_some_and(|entry| entry.job() == JobId(3)));
        assert!(queue.evict(quiet).is_none(), "two are not two more than one");
    }
}
