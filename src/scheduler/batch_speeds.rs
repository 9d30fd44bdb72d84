//! The speeds of the jobs that an engine computes in one batch.

use std::cmp::Ordering;

use crate::model::batch::{BatchRates, READ_SHARE, has_time_beside};
use crate::request::job::Priority;

/// A job in a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchMember {
    /// Its priority.
    pub priority: Priority,
    /// Time at full speed for the rest of its prompt, in milliseconds; 0 if its answer is written.
    pub read_ms: f64,
    /// Until its deadline, in milliseconds.
    pub left_ms: f64,
}

impl BatchMember {
    fn is_writing(&self) -> bool {
        self.read_ms <= 0.0
    }
}

/// Speeds of the jobs in a batch, relative to each alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchSpeeds {
    /// The job whose prompt is read, by its place in the order of urgency: one at a time.
    reader: Option<usize>,
    read: f64,
    write: f64,
}

impl BatchSpeeds {
    /// The speeds of jobs in a batch of these rates, the most urgent first. A prompt is read at full speed while the
    /// others wait if it has a higher priority than all answers; beside answers of its priority, if it is short, or if it
    /// is more urgent than they are and its deadline is near. Another is read beside the answers.
    pub fn of_jobs(
        rates: &BatchRates,
        jobs: &(impl Iterator<Item = BatchMember> + Clone),
    ) -> BatchSpeeds {
        let writers = jobs.clone().filter(BatchMember::is_writing).count();
        let writers = u32::try_from(writers).unwrap_or(u32::MAX);
        let most = rates.read_at_once_ms(writers);
        let writer = jobs.clone().enumerate().find(|(_, job)| job.is_writing());
        let reading = || jobs.clone().enumerate().filter(|(_, job)| !job.is_writing());
        let is_at_once = |&(at, job): &(usize, BatchMember)| {
            let Some((first, writer)) = writer else { return true };
            let is_near = at < first && !has_time_beside(job.read_ms, job.left_ms);
            match job.priority.cmp(&writer.priority) {
                Ordering::Less => true,
                Ordering::Equal => job.read_ms <= most || is_near,
                Ordering::Greater => false,
            }
        };
        let (reader, read, write) = match (reading().next(), reading().find(is_at_once)) {
            (None, _) => (None, 0.0, 1.0),
            (Some(_), Some((at, _))) => (Some(at), 1.0, 0.0),
            (Some((first, _)), None) => (Some(first), READ_SHARE, 1.0 - READ_SHARE),
        };
        BatchSpeeds { reader, read, write: write / rates.slowdown(writers) }
    }

    /// Of the job at this place.
    pub fn of(&self, place: usize, job: &BatchMember) -> f64 {
        match job.read_ms > 0.0 {
            true if self.reader == Some(place) => self.read,
            true => 0.0,
            false => self.write,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_prompts_are_read_at_once_beside_answers_of_their_priority() {
        let rates = BatchRates::of_steps(&[(1, 10.0), (2, 12.0), (4, 20.0)]);
        assert!((rates.read_at_once_ms(2) - 48.0).abs() < 1e-9);
        assert!(BatchRates::default().read_at_once_ms(2) < 1e-9);
        let member = |priority, read_ms| BatchMember { priority, read_ms, left_ms: 1e3 };
        let speeds = |jobs: &[BatchMember]| {
            let speeds = BatchSpeeds::of_jobs(&rates, &jobs.iter().copied());
            jobs.iter().enumerate().map(|(at, job)| speeds.of(at, job)).collect::<Vec<_>>()
        };
        let (normal, batch) = (Priority::Normal, Priority::Batch);
        let (written, slow) = (member(normal, 0.0), rates.slowdown(2));
        assert_eq!(speeds(&[written]), [1.0]);
        assert_eq!(speeds(&[member(normal, 9.0), written]), [1.0, 0.0]);
        let beside = [(1.0 - READ_SHARE) / slow, (1.0 - READ_SHARE) / slow, READ_SHARE];
        assert_eq!(speeds(&[written, written, member(normal, 48.0)]), [0.0, 0.0, 1.0]);
        assert_eq!(speeds(&[written, written, member(normal, 49.0)]), beside);
        assert_eq!(speeds(&[written, written, member(batch, 9.0)]), beside);
        // a short one before a long one that is more urgent
        assert_eq!(speeds(&[written, member(normal, 99.0), member(normal, 9.0)]), [0.0, 0.0, 1.0]);
        // the most urgent one, while its deadline is far, and when it is near
        let [one, other] = [(1.0 - READ_SHARE) / rates.slowdown(1), READ_SHARE];
        assert_eq!(speeds(&[member(normal, 249.0), written]), [other, one]);
        assert_eq!(speeds(&[member(normal, 251.0), written]), [1.0, 0.0]);
        assert_eq!(speeds(&[member(normal, 251.0), member(normal, 9.0), written]), [1.0, 0.0, 0.0]);
        assert_eq!(speeds(&[member(normal, 99.0), member(normal, 9.0), written]), [0.0, 1.0, 0.0]);
        // a prompt of a higher priority
        assert_eq!(speeds(&[member(normal, 249.0), member(batch, 0.0)]), [1.0, 0.0]);
    }
}
