//! Running jobs, by their identifier and by the slot of their backend.

use std::collections::BTreeMap;

use super::queued::RunningJob;
use crate::request::job::JobId;
use crate::time::Time;

/// The jobs that have started, each at one backend.
#[derive(Debug)]
pub(super) struct RunningJobs {
    jobs: BTreeMap<JobId, RunningJob>,
    /// The same by the slot of their backend.
    at: Vec<Vec<JobId>>,
    next_due: Option<Time>,
}

impl RunningJobs {
    /// No running jobs, for so many slots.
    pub(super) fn new(backends: usize) -> RunningJobs {
        RunningJobs { jobs: BTreeMap::new(), at: vec![Vec::new(); backends], next_due: None }
    }

    pub(super) fn add(&mut self, run: RunningJob) {
        let job = run.entry.job();
        let due = run.entry.due();
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
        self.at[run.backend].push(job);
        self.jobs.insert(job, run);
    }

    pub(super) fn remove(&mut self, job: JobId) -> Option<RunningJob> {
        let run = self.jobs.remove(&job)?;
        self.at[run.backend].retain(|other| *other != job);
        if self.next_due == Some(run.entry.due()) {
            self.next_due = self.jobs.values().map(|run| run.entry.due()).min();
        }
        Some(run)
    }

    pub(super) fn get(&self, job: JobId) -> Option<&RunningJob> {
        self.jobs.get(&job)
    }

    pub(super) fn get_mut(&mut self, job: JobId) -> Option<&mut RunningJob> {
        self.jobs.get_mut(&job)
    }

    /// Those at this backend, in the order in which they started.
    pub(super) fn at(&self, backend: usize) -> impl Iterator<Item = &RunningJob> {
        self.at[backend].iter().filter_map(|job| self.jobs.get(job))
    }

    /// Follows the backends to other slots, so many in all. No job may run at one without a slot.
    pub(super) fn moved(&mut self, slots: &[Option<usize>], count: usize) {
        let mut at = vec![Vec::new(); count];
        for (old, jobs) in std::mem::take(&mut self.at).into_iter().enumerate() {
            if let Some(new) = slots.get(old).copied().flatten() {
                at[new] = jobs;
            }
        }
        self.at = at;
        for run in self.jobs.values_mut() {
            run.backend = slots.get(run.backend).copied().flatten().unwrap_or(run.backend);
            run.entry.moved(slots);
        }
    }

    /// All that run, to be changed in all but their backend and deadline.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut RunningJob> {
        self.jobs.values_mut()
    }

    /// How many this backend has.
    pub(super) fn count_at(&self, backend: usize) -> usize {
        self.at[backend].len()
    }

    /// The names of those at this backend.
    pub(super) fn names_at(&self, backend: usize) -> Vec<JobId> {
        self.at[backend].clone()
    }

    /// A job whose deadline has passed, taken out.
    pub(super) fn expired(&mut self, now: Time) -> Option<RunningJob> {
        self.next_due.filter(|due| *due <= now)?;
        let late = self.jobs.values().find(|run| run.entry.due() <= now)?.entry.job();
        self.remove(late)
    }

    /// The earliest deadline of all.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.next_due
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }
}
