//! Where jobs wait: bounded in number and in bytes, earliest deadline first inside a class.

use heapless::Vec as Bounded;

use super::Ticket;
use crate::limits::{WAITING_BYTES_MAX, WAITING_JOBS_MAX};
use crate::prompt::{Class, JobId};
use crate::time::Time;

/// The waiting jobs, in the order in which they should start.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Bounded<Ticket, WAITING_JOBS_MAX>,
    bytes: usize,
}

impl Queue {
    /// Gives the job back if there is no room for it.
    pub(super) fn offer(&mut self, ticket: Ticket) -> Result<(), Box<Ticket>> {
        if ticket.bytes > WAITING_BYTES_MAX.saturating_sub(self.bytes) {
            return Err(Box::new(ticket));
        }
        let bytes = ticket.bytes;
        let at = self.waiting.partition_point(|other| order(other) <= order(&ticket));
        self.waiting.insert(at, ticket).map_err(Box::new)?;
        self.bytes += bytes;
        Ok(())
    }

    /// The first job, in order, that `fits`, taken out.
    pub(super) fn take(&mut self, mut fits: impl FnMut(&Ticket) -> bool) -> Option<Ticket> {
        let at = self.waiting.iter().position(&mut fits)?;
        let ticket = self.waiting.remove(at);
        self.bytes -= ticket.bytes;
        Some(ticket)
    }

    /// Takes one job out by name.
    pub(super) fn remove(&mut self, job: JobId) -> Option<Ticket> {
        self.take(|ticket| ticket.job == job)
    }

    /// A job whose deadline has passed, taken out.
    pub(super) fn expired(&mut self, now: Time) -> Option<Ticket> {
        self.take(|ticket| ticket.due <= now)
    }

    /// The earliest deadline of all waiting jobs.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.waiting.iter().map(|ticket| ticket.due).min()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many bytes wait.
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

fn order(ticket: &Ticket) -> (Class, Time, JobId) {
    (ticket.class, ticket.due, ticket.job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::ticket;

    fn order_of(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.take(|_| true)).map(|t| t.job.0).collect()
    }

    #[test]
    fn earliest_deadline_first_inside_a_class() {
        let mut queue = Queue::default();
        let jobs = [
            (1, Class::Batch, 10),
            (2, Class::Normal, 30),
            (3, Class::Normal, 20),
            (4, Class::Interactive, 90),
            (5, Class::Normal, 20),
        ];
        for (id, class, due) in jobs {
            queue.offer(Ticket { class, due: Time(due), ..ticket(id) }).unwrap();
        }
        assert_eq!(queue.next_due(), Some(Time(10)));
        assert_eq!(order_of(&mut queue), [4, 3, 5, 2, 1]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn full_in_number_gives_the_job_back() {
        let mut queue = Queue::default();
        for id in 0..WAITING_JOBS_MAX as u64 {
            queue.offer(ticket(id)).unwrap();
        }
        assert_eq!(queue.offer(ticket(999)).unwrap_err().job, JobId(999));
        assert_eq!(queue.len(), WAITING_JOBS_MAX);
    }

    #[test]
    fn full_in_bytes_gives_the_job_back() {
        let mut queue = Queue::default();
        queue.offer(Ticket { bytes: WAITING_BYTES_MAX - 1, ..ticket(1) }).unwrap();
        queue.offer(Ticket { bytes: 2, ..ticket(2) }).unwrap_err();
        queue.offer(Ticket { bytes: 1, ..ticket(3) }).unwrap();
        assert_eq!(queue.bytes(), WAITING_BYTES_MAX);
        assert!((queue.fullness() - 1.0).abs() < f32::EPSILON);
    }
}
