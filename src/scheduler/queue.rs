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

/// What some jobs take of the queue.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    jobs: usize,
    bytes: usize,
}

impl Room {
    /// In bytes, of which each job takes an equal part of the queue at least.
    fn size(self) -> usize {
        self.bytes.max(self.jobs * (WAITING_BYTES_MAX / WAITING_JOBS_MAX))
    }

    fn with(self, bytes: usize) -> Room {
        Room { jobs: self.jobs + 1, bytes: self.bytes + bytes }
    }

    fn without(self, bytes: usize) -> Room {
        Room { jobs: self.jobs - 1, bytes: self.bytes - bytes }
    }
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

    /// Makes room for a job of this client and size: the least urgent job of the principal that takes the
    /// most room, taken out, if that principal still takes as much as the client's own would then. Among
    /// applications that are not listed the same holds for each name.
    pub(super) fn evict(&mut self, than: AppId, bytes: usize) -> Option<QueuedJob> {
        let principal = |app: AppId| Some(app.principal);
        let of_names = |app: AppId| app.unlisted;
        let at = self
            .last_of_fullest(principal, than, bytes)
            .or_else(|| self.last_of_fullest(of_names, than, bytes))?;
        Some(self.take(at))
    }

    /// The place of the least urgent job of those that take the most room, by `group`.
    fn last_of_fullest(
        &self,
        group: impl Fn(AppId) -> Option<usize>,
        than: AppId,
        bytes: usize,
    ) -> Option<usize> {
        let own = group(than)?;
        let rooms = self.rooms(&group);
        let wanted = rooms.get(&own).copied().unwrap_or_default().with(bytes);
        let (most, room) = rooms.iter().max_by_key(|(_, room)| room.size())?;
        let at = self.waiting.iter().rposition(|entry| group(entry.app) == Some(*most))?;
        let left = room.without(self.waiting[at].spec.bytes);
        if *most == own || left.size() < wanted.size() {
            return None;
        }
        // of names that share the room, the fullest gives it
        let name = self.waiting[at].app.unlisted.and_then(|_| self.fullest_name());
        let of_name = |entry: &QueuedJob| entry.app.unlisted == name;
        if name.is_some() { self.waiting.iter().rposition(of_name) } else { Some(at) }
    }

    /// The application that takes the most room of those that are not listed.
    fn fullest_name(&self) -> Option<usize> {
        let rooms = self.rooms(|app| app.unlisted);
        rooms.iter().max_by_key(|(_, room)| room.size()).map(|(name, _)| *name)
    }

    /// The room that the jobs of each group take.
    fn rooms(
        &self,
        group: impl Fn(AppId) -> Option<usize>,
    ) -> LinearMap<usize, Room, WAITING_JOBS_MAX> {
        let mut rooms: LinearMap<usize, Room, WAITING_JOBS_MAX> = LinearMap::new();
        for entry in &self.waiting {
            let Some(group) = group(entry.app) else { continue };
            let room = rooms.get(&group).copied().unwrap_or_default();
            let _ = rooms.insert(group, room.with(entry.spec.bytes));
        }
        rooms
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
    use crate::request::client::Client;
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

    /// Fills a queue with jobs of these clients and sizes, in this order.
    fn filled(jobs: &[(AppId, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (id, (app, bytes)) in (0..).zip(jobs) {
            let spec = JobSpec { bytes: *bytes, ..spec(id) };
            queue.offer(QueuedJob { app: *app, ..entry(spec) }).unwrap();
        }
        queue
    }

    #[test]
    fn eviction_takes_from_the_principal_with_the_most_jobs() {
        let mut shares = Shares::default();
        let (flood, quiet) =
            (shares.enter(&Client::known("flood")), shares.enter(&Client::known("quiet")));
        let mut queue = filled(&[(flood, 9), (quiet, 9), (flood, 9), (flood, 9), (flood, 9)]);
        assert!(queue.evict(flood, 9).is_none());
        assert_eq!(queue.evict(quiet, 9).unwrap().job(), JobId(4));
        assert!(queue.evict(quiet, 9).is_some_and(|entry| entry.job() == JobId(3)));
        assert!(queue.evict(quiet, 9).is_none(), "two are not two more than one");
    }

    #[test]
    fn eviction_takes_from_the_principal_with_the_most_bytes() {
        let mut shares = Shares::default();
        let (large, small) =
            (shares.enter(&Client::known("large")), shares.enter(&Client::known("small")));
        let many = [(small, 9); 8];
        let mut queue = filled(&[&[(large, 1 << 20); 4], many.as_slice()].concat());
        assert_eq!(queue.evict(small, 9).unwrap().job(), JobId(3));
        assert!(queue.evict(large, 1 << 20).is_none());
    }

    #[test]
    fn invented_names_have_the_room_of_one_principal() {
        let mut shares = Shares::default();
        let camera = shares.enter(&Client::known("camera"));
        let mut name = |n: usize| shares.enter(&Client::unlisted(format!("name-{n}")));
        let mut jobs = vec![(camera, 9); 3];
        jobs.extend((0..30).map(|n| (name(n), 9)));
        // this one has two
        jobs.insert(5, (name(20), 9));
        let mut queue = filled(&jobs);
        let evicted = queue.evict(camera, 9).unwrap();
        assert_eq!((evicted.app, evicted.job()), (name(20), JobId(24)));
        assert_eq!(queue.evict(camera, 9).unwrap().app.principal, name(0).principal);
        // within the pool each name has its own
        assert!(queue.evict(name(7), 9).is_none());
        let mut queue = filled(&[(name(1), 9), (name(1), 9), (name(1), 9), (name(2), 9)]);
        assert_eq!(queue.evict(name(2), 9).unwrap().job(), JobId(2));
        assert!(queue.evict(name(2), 9).is_none());
    }
}
