//! A job that is under way, with all that its asker waits for.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::attempt::AttemptAnswer;
use super::handle::JobEnd;
use crate::model::generate::{Out, Usage};
use crate::redact::Hidden;
use crate::request::job::Job;
use crate::scheduler::BackendId;
use crate::scheduler::decision::Decision;
use crate::time::Time;

/// A job that is not settled.
pub(super) struct InFlight {
    /// With the attempt while one runs.
    pub(super) waiting: Option<(Job, Out)>,
    pub(super) end: oneshot::Sender<JobEnd>,
    /// The prompt for a cloud, if something of it is to be hidden.
    pub(super) hidden: Option<Arc<Hidden>>,
    pub(super) arrived: Time,
    pub(super) started: Option<Time>,
    pub(super) stop: CancellationToken,
    /// Stops the present attempt alone.
    pub(super) recall: CancellationToken,
    /// What was answered, by whom.
    pub(super) said: Vec<(BackendId, AttemptAnswer)>,
    /// The servers that were given the redacted prompt.
    pub(super) hidden_from: Vec<String>,
}

impl InFlight {
    /// States in the record how much of the prompt was hidden from each server.
    pub(super) fn tell_hidden(&self, decision: &mut Decision) {
        let Some(hidden) = &self.hidden else { return };
        for attempt in &mut decision.attempts {
            if self.hidden_from.contains(&attempt.server) {
                attempt.redacted = hidden.count();
            }
        }
    }

    /// What the answer that counts took, that of this backend or of a rule, the answer itself if
    /// it was kept back, and when its first piece was there.
    pub(super) fn answer_of(
        &mut self,
        backend: Option<&BackendId>,
    ) -> (Option<Usage>, Option<String>, Option<Instant>) {
        let said = self.said.drain(..).rev().find(|(who, _)| Some(who) == backend);
        if let Some((_, AttemptAnswer { usage, kept, first })) = said {
            let chunks = match &kept {
                Some(text) => u32::from(!text.is_empty()),
                None => usage.chunks,
            };
            return (Some(Usage { chunks, ..usage }), kept, first);
        }
        let ruled = self.waiting.as_mut().and_then(|(job, _)| job.ruled.take());
        let usage =
            ruled.clone().map(|said| Usage { classification: Some(said), ..Usage::one_piece("") });
        (usage, ruled.map(|said| said.label), None)
    }
}
