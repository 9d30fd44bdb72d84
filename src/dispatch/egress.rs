//! The only way from the dispatcher to a model: it enforces the job's mode, and redacts what goes to a
//! cloud.

use std::borrow::Cow;

use crate::model::context::Locality;
use crate::model::generate::{Fault, Usage};
use crate::redact::{Hidden, Restorer};
use crate::request::job::Job;
use crate::scheduler::mode_allows;

/// A job that may be sent to a model of one locality. An attempt takes nothing else, and
/// [`EgressGuard::new`] is the only constructor.
pub(super) struct EgressGuard<'a> {
    job: Cow<'a, Job>,
    hidden: Option<&'a Hidden>,
}

impl<'a> EgressGuard<'a> {
    /// Checks that the job may be sent to a model of this locality, and redacts it for a cloud.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if its mode forbids that: the scheduler must not have chosen it.
    pub(super) fn new(
        job: &'a Job,
        locality: Locality,
        hidden: Option<&'a Hidden>,
    ) -> Result<EgressGuard<'a>, Fault> {
        if !mode_allows(job.mode, locality) {
            let why = "the job's mode forbids this backend; nothing was sent";
            return Err(Fault::ProtocolError(why.to_owned()));
        }
        let hidden = hidden.filter(|_| hides(locality));
        let job = match hidden {
            Some(hidden) => Cow::Owned(Job { messages: hidden.messages.clone(), ..job.clone() }),
            None => Cow::Borrowed(job),
        };
        Ok(EgressGuard { job, hidden })
    }

    /// The job as it may be sent.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Restores the redacted values in the calls of tools.
    pub(super) fn restore(&self, usage: &mut Usage) {
        if let Some(hidden) = self.hidden {
            hidden.restore(&mut usage.tool_calls);
        }
    }

    /// Restores the redacted values in the text; none if nothing was redacted.
    pub(super) fn restorer(&self) -> Option<Restorer> {
        self.hidden.map(Hidden::restorer)
    }
}

/// Whether prompts are redacted for models of this locality.
pub(super) fn hides(locality: Locality) -> bool {
    locality == Locality::Cloud
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::job::Mode;

    #[test]
    fn a_private_prompt_does_not_pass() {
        let reaches = [Locality::Device, Locality::Peer, Locality::Cloud];
        let passes = |mode| {
            let job = Job { mode, ..Job::plain("hello", std::time::Duration::from_secs(1)) };
            reaches.map(|locality| EgressGuard::new(&job, locality, None).is_ok())
        };
        assert_eq!(passes(Mode::LocalOnly), [true, false, false]);
        assert_eq!(passes(Mode::PreferLocal), [true; 3]);
        assert_eq!(passes(Mode::PreferCloud), [true; 3]);
        assert_eq!(passes(Mode::CloudOnly), [false, true, true]);
    }
}
