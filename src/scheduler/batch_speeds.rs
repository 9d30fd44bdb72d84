//! The speeds of the jobs that an engine computes in one batch.

use crate::model::batch::{BatchRates, READ_SHARE};
use crate::request::job::Priority;

/// A job in a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchMember {
    /// Its priority.
    pub priority: Priority,
    /// Time at full speed for the rest of its prompt, in milliseconds; 0 if its answer is written.
    pub read_ms: f64,
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
    /// The speeds of jobs in a batch of these rates, the most urgent first. The most urgent prompt, and a short one
    /// beside answers of its priority, is read at full speed while the others wait; another is read beside the answers.
    pub fn of_jobs(
        rates: &BatchRates,
        mut jobs: impl Iterator<Item = BatchMember> + Clone,
    ) -> BatchSpeeds {
        let is_writing = |job: &BatchMember| job.read_ms <= 0.0;
        let writers = jobs.clone().filter(is_writing).count();
        let writers = u32::try_from(writers).unwrap_or(u32::MAX);
        let first = jobs.clone().position(|job| !is_writing(&job));
        let beside = jobs.clone().find(is_writing).map(|job| job.priority);
        let most = rates.read_at_once_ms(writers);
        let is_at_once = |job: BatchMember| {
            !is_writing(&job) && job.read_ms <= most && Some(job.priority) == beside
        };
        let (reader, read, write) = match (first, jobs.position(is_at_once)) {
            (None, _) => (None, 0.0, 1.0),
            (Some(0), _) => (Some(0), 1.0, 0.0),
            (Some(_), Some(short)) => (Some(short), 1.0, 0.0),
            (Some(first), None) => (Some(first), READ_SHARE, 1.0 - READ_SHARE),
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
        let member = |priority, read_ms| BatchMember { priority, read_ms };
        let speeds = |jobs: &[BatchMember]| {
            let speeds = BatchSpeeds::of_jobs(&rates, jobs.iter().copied());
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
    }
}
