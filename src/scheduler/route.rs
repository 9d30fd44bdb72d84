//! Which model may answer a job, in which order of preference, and why not the others.
//!
//! The decision, in order; the code below has the same numbers:
//! 1. *Asked for by name*: only the model of that name.
//! 2. *Privacy*: nothing beyond the reach that the job's mode allows.
//! 3. *Capability*: the talents, context length, JSON and schema; and a model that was not sure
//!    enough of this job is not asked again.
//! 4. *Health*: only models that are up and do not rest.
//! 5. *Preference*: the side that the mode prefers first, then by the order of the catalog.
//!
//! If nothing is left, the first rule that emptied the list is the reason.

use super::decision::Reason;
use super::{Backend, Ticket};
use crate::model::Reach;
use crate::prompt::{Code, Mode, Refusal};
use crate::time::Time;

/// Fewest bytes of text that one token is taken for when a context length is checked before the
/// tokenizer has seen the text. A tokenizer never makes more than one token of a byte, and
/// ordinary text has about four bytes a token: at one token for eight bytes nobody is sent away
/// who would have fitted; the engine counts exactly.
const BYTES_PER_TOKEN_MAX: usize = 8;

/// The models that may answer, best first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Route {
    /// Indexes of backends.
    pub(super) order: Vec<usize>,
    /// How many at the head of `order` are equally good: the job waits for one of these.
    alike: usize,
    /// Why the first of them is the first.
    pub(super) reason: Reason,
}

impl Route {
    /// The models that are equally good and better than all others.
    pub(super) fn best(&self) -> &[usize] {
        &self.order[..self.alike]
    }
}

/// Finds the models for a job.
///
/// # Errors
/// A refusal and its reason if no model may or can answer.
pub(super) fn route(
    ticket: &Ticket,
    backends: &[Backend],
    now: Time,
) -> Result<Route, (Refusal, Reason)> {
    let mut left: Vec<usize> = (0..backends.len()).collect();

    // 1. asked for by name
    if let Some(name) = &ticket.model {
        left.retain(|&b| backends[b].card.answers_to(name));
        if left.is_empty() {
            let known: Vec<&str> = backends.iter().map(|b| b.card.server.as_str()).collect();
            let message = format!("no model is called {name:?}; there are: {}", known.join(", "));
            return Err((Refusal::field(Code::Unknown, "model", message), Reason::Model));
        }
    }

    // 2. privacy
    left.retain(|&b| may_reach(ticket.mode, backends[b].card.reach));
    if left.is_empty() {
        let message = match ticket.mode {
            Mode::LocalOnly => "the mode is local-only and no local model may be used",
            Mode::CloudOnly => "the mode is cloud-only and no other model is configured",
            Mode::PreferLocal | Mode::PreferCloud => "no model is configured",
        };
        return Err((Refusal::field(Code::Incapable, "mode", message), Reason::Mode));
    }

    // 3. capability
    let preferred = preferred(&left, ticket.mode, backends);
    let mut lacking = None;
    left.retain(|&b| match lacks(ticket, &backends[b]) {
        None => true,
        Some(lack) => {
            if Some(b) == preferred || lacking.is_none() {
                lacking = Some(lack);
            }
            false
        }
    });
    if left.is_empty() {
        return Err(incapable(ticket, lacking.unwrap_or(Reason::Context)));
    }

    // 4. health
    left.retain(|&b| backends[b].may_be_asked(now));
    if left.is_empty() {
        let message = "every model that could answer is away; try again later";
        return Err((Refusal::new(Code::Unavailable, message), Reason::Resting));
    }

    // 5. preference
    let rank = |b: usize| {
        let backend = &backends[b];
        (backend.failed.contains(&ticket.job), distance(ticket.mode, backend.card.reach))
    };
    left.sort_by_key(|&b| (rank(b), b));
    let alike = left.iter().take_while(|&&b| rank(b) == rank(left[0])).count();
    let reason = if left.first().copied() == preferred {
        match ticket.mode {
            Mode::PreferLocal | Mode::LocalOnly => Reason::Feasible,
            Mode::PreferCloud | Mode::CloudOnly => Reason::Mode,
        }
    } else {
        lacking.unwrap_or(Reason::Resting)
    };
    Ok(Route { order: left, alike, reason })
}

/// Whether text of a job with this mode may go that far.
pub fn may_reach(mode: Mode, reach: Reach) -> bool {
    match (mode, reach) {
        (Mode::LocalOnly, reach) => reach == Reach::Device,
        (Mode::CloudOnly, reach) => reach != Reach::Device,
        (Mode::PreferLocal | Mode::PreferCloud, _) => true,
    }
}

fn preferred(left: &[usize], mode: Mode, backends: &[Backend]) -> Option<usize> {
    left.iter().copied().min_by_key(|&b| (distance(mode, backends[b].card.reach), b))
}

/// 0 is what the mode wants most.
fn distance(mode: Mode, reach: Reach) -> u8 {
    let from_here = match reach {
        Reach::Device => 0,
        Reach::Peer => 1,
        Reach::Cloud => 2,
    };
    match mode {
        Mode::PreferLocal | Mode::LocalOnly => from_here,
        Mode::PreferCloud | Mode::CloudOnly => 2 - from_here,
    }
}

fn lacks(ticket: &Ticket, backend: &Backend) -> Option<Reason> {
    let can = &backend.card;
    if let Some(lack) = backend.unfit.get(&ticket.job) {
        return Some(*lack);
    }
    if !can.has(&ticket.talents) {
        return Some(Reason::Talent);
    }
    if ticket.bytes / BYTES_PER_TOKEN_MAX > can.context_tokens as usize {
        return Some(Reason::Context);
    }
    if ticket.wants_json && !can.json_schema {
        return Some(Reason::Schema);
    }
    None
}

fn incapable(ticket: &Ticket, lack: Reason) -> (Refusal, Reason) {
    let talents = ticket.talents.join(" and ");
    let no_talent = format!("no model that may be used has the talent: {talents}");
    let (field, message) = match lack {
        Reason::Schema => ("schema", "no model that may be used can be held to JSON or a schema"),
        Reason::Talent => ("talent", no_talent.as_str()),
        Reason::Context
        | Reason::Confidence
        | Reason::Rule
        | Reason::Feasible
        | Reason::Mode
        | Reason::Deadline
        | Reason::Model
        | Reason::Resting
        | Reason::Queue
        | Reason::Draining
        | Reason::Hops
        | Reason::Cancelled => {
            ("prompt", "the prompt is longer than the context of every model that may be used")
        }
    };
    (Refusal::field(Code::Incapable, field, message), lack)
}
