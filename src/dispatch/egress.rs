//! The one way from the dispatcher to a model: what may not go there does not come through, and what
//! goes to a cloud goes without what is to be hidden.

use std::borrow::Cow;

use crate::model::context::Locality;
use crate::model::generate::{Fault, Usage};
use crate::redact::{Hidden, Restorer};
use crate::request::job::Job;
use crate::scheduler::mode_allows;

/// A job that may be sent to a model at one distance. Nothing else can be handed to a model, and
/// [`EgressGuard::new`] is the only way to have one.
pub(super) struct EgressGuard<'a> {
    job: Cow<'a, Job>,
    hidden: Option<&'a Hidden>,
}

impl<'a> EgressGuard<'a> {
    /// Lets a job pass to a model at this distance.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if its mode forbids that: the judge should not have asked for it.
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

    /// What may be sent.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Puts back what was hidden into the calls of tools.
    pub(super) fn restore(&self, usage: &mut Usage) {
        if let Some(hidden) = self.hidden {
            hidden.restore(&mut usage.tool_calls);
        }
    }

    /// What puts back what was hidden into the text, if anything was.
    pub(super) fn restorer(&self) -> Option<Restorer> {
        self.hidden.map(Hidden::restorer)
    }
}

/// Whether anything is hidden from models at this distance.
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
