//! A job between its arrival and its settlement.

use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::attempt::AttemptAnswer;
use super::handle::JobEnd;
use crate::model::generate::Usage;
use crate::model::out::Out;
use crate::redact::Redaction;
use crate::request::job::Job;
use crate::scheduler::BackendId;
use crate::scheduler::decision::Decision;
use crate::time::Time;

/// A job that is not settled.
pub(super) struct InFlight {
    /// None while an attempt has them.
    pub(super) waiting: Option<(Job, Out)>,
    pub(super) end: oneshot::Sender<JobEnd>,
    /// What of the job may leave this device.
    pub(super) redaction: Redaction,
    /// The application and the task, for [`Settled`](super::settled::Settled).
    pub(super) origin: (String, Option<String>),
    pub(super) arrived: Time,
    pub(super) due: Time,
    /// Most tokens that its prompt has with any tokenizer, as it is or redacted.
    pub(super) input_max: u32,
    pub(super) started: Option<Time>,
    pub(super) stop: CancellationToken,
    /// Stops the present attempt and not the job.
    pub(super) recall: CancellationToken,
    /// The answers of all attempts, each with its backend.
    pub(super) answers: Vec<(BackendId, AttemptAnswer)>,
    /// The servers that were sent the redacted job.
    pub(super) hidden_from: Vec<String>,
}

impl InFlight {
    /// Adds to each attempt how many values of the prompt were redacted for its server.
    pub(super) fn note_redacted(&self, decision: &mut Decision) {
        let Redaction::Done(hidden) = &self.redaction else { return };
        for attempt in &mut decision.attempts {
            if self.hidden_from.contains(&attempt.server) {
                attempt.redacted = hidden.count();
            }
        }
    }

    /// The answer of this backend, or of a rule: its usage, its text if it was buffered, and when its
    /// first piece came.
    pub(super) fn answer_of(
        &mut self,
        backend: Option<&BackendId>,
    ) -> (Option<Usage>, Option<String>, Option<Instant>) {
        let answer = self.answers.drain(..).rev().find(|(of, _)| Some(of) == backend);
        if let Some((_, AttemptAnswer { usage, buffered, first, .. })) = answer {
            return (Some(usage), buffered, first);
        }
        let ruled = self.waiting.as_mut().and_then(|(job, _)| job.ruled.take());
        let usage = ruled
            .clone()
            .map(|ruled| Usage { classification: Some(ruled), ..Usage::one_piece("") });
        (usage, ruled.map(|ruled| ruled.label), None)
    }
}
