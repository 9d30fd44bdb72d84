//! The only way from the dispatcher to a model: it enforces the job's mode and furthest locality, and
//! redacts what leaves this device.

use std::borrow::Cow;

use crate::model::context::Locality;
use crate::model::generate::{Fault, Usage};
use crate::redact::{Hidden, Redaction, Restorer};
use crate::request::job::Job;
use crate::scheduler::mode_allows;

/// A job that may be sent to a model of one locality. An attempt takes nothing else, and
/// [`EgressGuard::new`] is the only constructor.
pub(super) struct EgressGuard<'a> {
    job: Cow<'a, Job>,
    hidden: Option<&'a Hidden>,
}

impl<'a> EgressGuard<'a> {
    /// Checks that the job may be sent to a model of this locality, and redacts it beyond this device. A
    /// peer is sent the redacted job too: it may have other rules, or none, before it asks a cloud.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the job forbids that: the scheduler must not have chosen it.
    pub(super) fn new(
        job: &'a Job,
        locality: Locality,
        redaction: &'a Redaction,
    ) -> Result<EgressGuard<'a>, Fault> {
        let refused = |why: &str| Err(Fault::ProtocolError(format!("{why}; nothing was sent")));
        if !mode_allows(job.mode, locality) || locality > job.furthest {
            return refused("the job's mode forbids this backend");
        }
        match redaction {
            _ if locality == Locality::Device => Ok(EgressGuard::unchanged(job)),
            Redaction::Unneeded => Ok(EgressGuard::unchanged(job)),
            Redaction::Done(hidden) => {
                let Job { time_left, priority, .. } = *job;
                let sent = Job { id: job.id, time_left, priority, ..hidden.job().clone() };
                Ok(EgressGuard { job: Cow::Owned(sent), hidden: Some(hidden) })
            }
            Redaction::Impossible(_) => refused("the job cannot be redacted"),
        }
    }

    fn unchanged(job: &'a Job) -> EgressGuard<'a> {
        EgressGuard { job: Cow::Borrowed(job), hidden: None }
    }

    /// The job as it may be sent.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Restores the redacted values in the calls of tools and in labels.
    pub(super) fn restore(&self, usage: &mut Usage) {
        if let Some(hidden) = self.hidden {
            hidden.restore_calls(&mut usage.tool_calls);
            usage.classification.iter_mut().for_each(|found| hidden.restore_labels(found));
        }
    }

    /// Restores the redacted values in the text; none if nothing was redacted.
    pub(super) fn restorer(&self) -> Option<Restorer> {
        self.hidden.map(Hidden::restorer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Redactor;
    use crate::request::client::Client;
    use crate::request::format::Format;
    use crate::request::job::Mode;

    const LOCALITIES: [Locality; 3] = [Locality::Device, Locality::Peer, Locality::Cloud];

    fn job(text: &str) -> Job {
        Job::plain(text, std::time::Duration::from_secs(1))
    }

    /// Whether the job passes to a model of each locality.
    fn passes(job: &Job, redaction: &Redaction) -> [bool; 3] {
        LOCALITIES.map(|locality| EgressGuard::new(job, locality, redaction).is_ok())
    }

    #[test]
    fn a_private_prompt_does_not_pass() {
        let in_mode = |mode| passes(&Job { mode, ..job("hello") }, &Redaction::Unneeded);
        assert_eq!(in_mode(Mode::LocalOnly), [true, false, false]);
        assert_eq!(in_mode(Mode::PreferLocal), [true; 3]);
        assert_eq!(in_mode(Mode::PreferCloud), [true; 3]);
        assert_eq!(in_mode(Mode::CloudOnly), [false, true, true]);
        let up_to = |furthest| passes(&Job { furthest, ..job("hello") }, &Redaction::Unneeded);
        assert_eq!(up_to(Locality::Device), [true, false, false]);
        assert_eq!(up_to(Locality::Peer), [true, true, false]);
    }

    #[test]
    fn only_the_redacted_job_leaves_the_device() {
        let mut redactor = Redactor::default();
        redactor.add("badge", "B-[0-9]{5}").unwrap();
        let job = Job { client: Client::known("B-54321"), ..job("I am B-12345") };
        let redaction = redactor.hide(&job);
        let sent = LOCALITIES.map(|locality| {
            let guard = EgressGuard::new(&job, locality, &redaction).unwrap();
            (guard.job().messages[0].content.clone(), guard.job().client.app.clone())
        });
        let sent = sent.each_ref().map(|(content, app)| (content.as_str(), app.as_str()));
        let redacted = ("I am [BADGE_1]", "");
        assert_eq!(sent, [("I am B-12345", "B-54321"), redacted, redacted]);

        let job = Job { format: Format::Embedding, ..job };
        assert_eq!(passes(&job, &redactor.hide(&job)), [true, false, false]);
    }
}
