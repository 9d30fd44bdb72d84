//! The policy of the catalog, applied to a job: how far it may go, and what of it may leave the device.

use crate::catalog::catalog::Catalog;
use crate::model::context::Locality;
use crate::redact::Redaction;
use crate::request::job::{Job, Mode};
use crate::scheduler::JobSpec;
use crate::time::Time;

/// Narrows the reach of a job to that of the catalog, which may be another one than the job was checked
/// with; returns what of it may leave this device.
pub(super) fn apply(catalog: &Catalog, job: &mut Job) -> Redaction {
    let task = job.task.as_ref().and_then(|name| catalog.tasks.get(name));
    job.furthest = job.furthest.min(catalog.furthest(catalog.app_policy(&job.client), task));
    // nothing of a private job is sent
    let is_private = job.mode == Mode::LocalOnly || job.furthest == Locality::Device;
    if is_private { Redaction::Unneeded } else { catalog.redactor.hide(job) }
}

/// The specification of a job that arrived at `now`.
pub(super) fn spec_of(job: &Job, redaction: &Redaction, now: Time) -> JobSpec {
    let mut spec = JobSpec::of(job, now);
    match redaction {
        Redaction::Unneeded => {}
        Redaction::Done(hidden) => {
            spec.input_max = spec.input_max.max(hidden.input_tokens_max());
        }
        Redaction::Impossible(unfit) => spec.unfit = Some(unfit.refusal()),
    }
    spec
}
