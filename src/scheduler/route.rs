//! Which model may answer a job, in which order of preference, and why not the others.
//!
//! The decision, in order; the code below has the same numbers:
//! 1. *Asked for by name*: only the model of that name.
//! 2. *Privacy*: no backend beyond the localities that the job's mode and its sender allow; none beyond
//!    this device for a job that can't be redacted; a job that came from a peer does not go to another
//!    peer.
//! 3. *Capability*: the skills, context length, JSON and schema, tools; and a model that was not sure
//!    enough of this job is not asked again.
//! 4. *Budget*: only models that can be paid for, whatever the call may cost.
//! 5. *Health*: only models that are up and whose breaker is not open.
//! 6. *Preference*: the locality that the mode prefers first, unless the job is offloaded; then the
//!    order of the catalog.
//!
//! If nothing is left, the first rule that emptied the set is the reason.

use super::BackendSlot;
use super::job::JobSpec;
use super::queued::{BackendSet, QueuedJob};
use crate::decision::Reason;
use crate::limits::REST_MAX;
use crate::model::context::Locality;
use crate::request::job::Mode;
use crate::request::refusal::{Code, Refusal};

/// Fewest bytes of text that one token is taken for when a context length is checked before the
/// tokenizer has seen the text. A tokenizer never makes more than one token of a byte, and
/// ordinary text has about four bytes a token: at one token for eight bytes no prompt is
/// rejected that would have fitted; the engine counts exactly.
const BYTES_PER_TOKEN_MAX: usize = 8;

/// The backends of each locality.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sides {
    pub(super) device: BackendSet,
    pub(super) peer: BackendSet,
    pub(super) cloud: BackendSet,
}

impl Sides {
    pub(super) fn of(backends: &[BackendSlot]) -> Sides {
        let reaching = |locality| {
            let all = backends.iter().enumerate();
            all.filter(|(_, b)| b.profile.locality == locality).map(|(at, _)| at).collect()
        };
        Sides {
            device: reaching(Locality::Device),
            peer: reaching(Locality::Peer),
            cloud: reaching(Locality::Cloud),
        }
    }

    pub(super) fn remote(&self) -> BackendSet {
        self.peer.or(self.cloud)
    }

    /// The localities in order of preference.
    fn in_order(&self, entry: &QueuedJob) -> [BackendSet; 3] {
        match (entry.spec.mode, entry.offload) {
            (Mode::PreferLocal, Some(_)) => [self.peer, self.cloud, self.device],
            (Mode::PreferLocal | Mode::LocalOnly, _) => [self.device, self.peer, self.cloud],
            (Mode::PreferCloud | Mode::CloudOnly, _) => [self.cloud, self.peer, self.device],
        }
    }

    /// Step 6: of the healthy candidates, those of the most preferred locality; the job waits for
    /// one of these.
    pub(super) fn best(&self, entry: &QueuedJob, healthy: BackendSet) -> BackendSet {
        let left = entry.candidates().and(healthy);
        let sides = self.in_order(entry);
        let untried = left.without(entry.failed());
        let from = if untried.is_empty() { left } else { untried };
        sides.into_iter().map(|side| side.and(from)).find(|set| !set.is_empty()).unwrap_or_default()
    }
}

/// Steps 1 to 3: the models that may be asked and can do it, whether they are up or not.
///
/// # Errors
/// A refusal and its reason if there is none, or if none can be started.
pub(super) fn able(
    spec: &JobSpec,
    backends: &[BackendSlot],
) -> Result<BackendSet, (Refusal, Reason)> {
    let may = allowed(spec, backends)?;
    let can: BackendSet = may.iter().filter(|&b| lacks(spec, &backends[b]).is_none()).collect();
    if can.is_empty()
        && let Some(refusal) = &spec.unfit
        && backends.iter().any(|b| is_kept_from(spec, b))
    {
        return Err((refusal.clone(), Reason::Redaction));
    }
    if can.is_empty() {
        let lack = nearest(may, spec.mode, backends).and_then(|b| lacks(spec, &backends[b]));
        return Err(incapable(spec, lack.unwrap_or(Reason::Context)));
    }
    startable(can, backends)
}

/// These models, unless none of them can be started.
fn startable(can: BackendSet, backends: &[BackendSlot]) -> Result<BackendSet, (Refusal, Reason)> {
    let failed = |b: usize| backends[b].failed.as_ref().map(|why| (b, why));
    if can.iter().any(|b| failed(b).is_none()) {
        return Ok(can);
    }
    let Some((first, why)) = can.iter().find_map(failed) else { return Ok(can) };
    let server = backends[first].profile.server.as_str();
    let message = format!("the model {server} can't be started: {why}");
    Err((Refusal::new(Code::Unavailable, message).retry_after(REST_MAX), Reason::Unhealthy))
}

/// Steps 1 to 3 for one backend.
pub(super) fn can(spec: &JobSpec, backend: &BackendSlot) -> bool {
    let is_meant = spec.model.as_ref().is_none_or(|name| backend.profile.answers_to(name));
    is_meant
        && !backend.retired
        && forbidden(spec, backend).is_none()
        && lacks(spec, backend).is_none()
}

/// Steps 1 and 2.
fn allowed(spec: &JobSpec, backends: &[BackendSlot]) -> Result<BackendSet, (Refusal, Reason)> {
    let all = (0..backends.len()).filter(|&b| !backends[b].retired);

    // 1. asked for by name
    let named: BackendSet = match &spec.model {
        Some(name) => all.filter(|&b| backends[b].profile.answers_to(name)).collect(),
        None => all.collect(),
    };
    if let (Some(name), true) = (&spec.model, named.is_empty()) {
        let known = backends.iter().filter(|b| !b.retired);
        let known: Vec<&str> = known.map(|b| b.profile.server.as_str()).collect();
        let message = format!("unknown model {name:?}; models: {}", known.join(", "));
        return Err((Refusal::field(Code::Unknown, "model", message), Reason::Model));
    }

    // 2. privacy
    let may: BackendSet =
        named.iter().filter(|&b| forbidden(spec, &backends[b]).is_none()).collect();
    let is_second_hop = |b: usize| forbidden(spec, &backends[b]) == Some(Reason::Hops);
    if may.is_empty() && named.iter().any(is_second_hop) {
        let message = "the request came from a peer and is not forwarded to another peer";
        return Err((Refusal::field(Code::Incapable, "hops", message), Reason::Hops));
    }
    let is_kept = |b: usize| is_kept_from(spec, &backends[b]);
    if let (true, Some(refusal)) = (may.is_empty() && named.iter().any(is_kept), &spec.unfit) {
        return Err((refusal.clone(), Reason::Redaction));
    }
    if may.is_empty() {
        let message = match spec.mode {
            _ if spec.furthest < Locality::Cloud => {
                "no model is configured within the reach that the request allows"
            }
            Mode::LocalOnly => "mode local-only: no local model is configured for this request",
            Mode::CloudOnly => "mode cloud-only: no remote model is configured for this request",
            Mode::PreferLocal | Mode::PreferCloud => "no model is configured",
        };
        return Err((Refusal::field(Code::Incapable, "mode", message), Reason::Mode));
    }
    Ok(may)
}

/// The reason for the choice of this backend.
pub(super) fn why(
    entry: &QueuedJob,
    chosen: usize,
    backends: &[BackendSlot],
    open: Reason,
) -> Reason {
    let distance = |b: usize| distance(entry.spec.mode, backends[b].profile.locality);
    let is_away = backends[chosen].profile.locality != Locality::Device;
    let is_kept = |b: &BackendSlot| is_kept_from(&entry.spec, b);
    let wanted = match entry.spec.mode {
        Mode::PreferLocal | Mode::LocalOnly => Reason::Feasible,
        Mode::PreferCloud | Mode::CloudOnly if !is_away && backends.iter().any(is_kept) => {
            Reason::Redaction
        }
        Mode::PreferCloud | Mode::CloudOnly => Reason::Mode,
    };
    if let (Some(reason), true) = (entry.offload, is_away) {
        return reason;
    }
    let Ok(may) = allowed(&entry.spec, backends) else { return wanted };
    let Some(preferred) = nearest(may, entry.spec.mode, backends) else { return wanted };
    if chosen == preferred {
        return wanted;
    }
    if let Some(lack) = entry.lacks(preferred) {
        return lack;
    }
    if entry.broke.has(preferred) {
        return Reason::Budget;
    }
    // a nearer candidate could not be asked
    let nearer = entry.candidates().iter().any(|b| distance(b) < distance(chosen));
    if nearer || entry.failed().has(preferred) {
        return open;
    }
    // backends of the same locality are equal, if this one could have done it
    let otherwise =
        if distance(preferred) == distance(chosen) { wanted } else { Reason::Unhealthy };
    lacks(&entry.spec, &backends[preferred]).unwrap_or(otherwise)
}

/// Why a job must not go to this backend, if so. A job from a peer is not passed to a peer: two
/// that can't answer it would pass it back and forth.
pub(super) fn forbidden(spec: &JobSpec, backend: &BackendSlot) -> Option<Reason> {
    let locality = backend.profile.locality;
    if !mode_allows(spec.mode, locality) {
        return Some(Reason::Mode);
    }
    if spec.unfit.is_some() && locality != Locality::Device {
        return Some(Reason::Redaction);
    }
    if locality > spec.furthest {
        return Some(Reason::Mode);
    }
    (spec.hops > 0 && locality == Locality::Peer).then_some(Reason::Hops)
}

/// Whether the job would be allowed to go to this backend if it could be redacted.
fn is_kept_from(spec: &JobSpec, backend: &BackendSlot) -> bool {
    let is_meant = spec.model.as_ref().is_none_or(|name| backend.profile.answers_to(name));
    is_meant && !backend.retired && forbidden(spec, backend) == Some(Reason::Redaction)
}

/// Whether text of a job with this mode may go that far.
pub fn mode_allows(mode: Mode, locality: Locality) -> bool {
    match (mode, locality) {
        (Mode::LocalOnly, locality) => locality == Locality::Device,
        (Mode::CloudOnly, locality) => locality != Locality::Device,
        (Mode::PreferLocal | Mode::PreferCloud, _) => true,
    }
}

fn nearest(among: BackendSet, mode: Mode, backends: &[BackendSlot]) -> Option<usize> {
    among.iter().min_by_key(|&b| (distance(mode, backends[b].profile.locality), b))
}

/// Rank of a locality for a mode; 0 is the most preferred.
fn distance(mode: Mode, locality: Locality) -> u8 {
    let from_here = match locality {
        Locality::Device => 0,
        Locality::Peer => 1,
        Locality::Cloud => 2,
    };
    match mode {
        Mode::PreferLocal | Mode::LocalOnly => from_here,
        Mode::PreferCloud | Mode::CloudOnly => 2 - from_here,
    }
}

/// What a model lacks for a job, if anything.
pub(super) fn lacks(spec: &JobSpec, backend: &BackendSlot) -> Option<Reason> {
    let can = &backend.profile;
    if !can.has(&spec.skills) {
        return Some(Reason::Skill);
    }
    if spec.bytes / BYTES_PER_TOKEN_MAX > can.context_tokens as usize {
        return Some(Reason::Context);
    }
    if spec.wants_json && !can.json_schema {
        return Some(Reason::Schema);
    }
    if spec.wants_tools && !can.tools {
        return Some(Reason::Tools);
    }
    None
}

pub(super) fn incapable(spec: &JobSpec, lack: Reason) -> (Refusal, Reason) {
    let skills = spec.skills.join(" and ");
    let no_skill = format!("no allowed model has these capabilities: {skills}");
    let (field, message) = match lack {
        Reason::Schema => ("schema", "no allowed model supports JSON or JSON Schema"),
        Reason::Tools => ("tools", "no allowed model supports tool calls"),
        Reason::Skill => ("talent", no_skill.as_str()),
        Reason::Policy => ("prompt", "no model that is left may answer what another has refused"),
        Reason::Context
        | Reason::Confidence
        | Reason::Redaction
        | Reason::Budget
        | Reason::Shape
        | Reason::CutOff
        | Reason::Strategy
        | Reason::Rule
        | Reason::Feasible
        | Reason::Mode
        | Reason::Deadline
        | Reason::Hot
        | Reason::Memory
        | Reason::Disk
        | Reason::Model
        | Reason::Unhealthy
        | Reason::Queue
        | Reason::Draining
        | Reason::Hops
        | Reason::Cancelled => {
            ("prompt", "the prompt exceeds the context length of every allowed model")
        }
    };
    (Refusal::field(Code::Incapable, field, message), lack)
}
