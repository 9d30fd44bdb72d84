//! The decision record: the route of a job, the reason, and the outcome of each attempt.

pub mod spread;

use serde::{Deserialize, Serialize};

use self::spread::Spread;
use crate::limits::PREDICTION_MAX;
use crate::model::context::Locality;
use crate::money::Usd;
use crate::pressure::level::{PressureCause, PressureStage};
use crate::request::job::{Mode, Priority, Strategy};

/// The reason of a route. The list is closed and documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// It could be answered where the client prefers it.
    #[serde(rename = "feasible")]
    Feasible,
    /// The mode of the job requires this locality, or excludes the others.
    #[serde(rename = "mode")]
    Mode,
    /// Its deadline passed.
    #[serde(rename = "deadline")]
    Deadline,
    /// The preferred model lacks the context length.
    #[serde(rename = "capability:context")]
    Context,
    /// The output of the preferred model can't be constrained to a schema.
    #[serde(rename = "capability:schema")]
    Schema,
    /// The preferred model calls no tools.
    #[serde(rename = "capability:tools")]
    Tools,
    /// The preferred model lacks the skill.
    #[serde(rename = "capability:talent")]
    Skill,
    /// The confidence of the preferred model was below the margin.
    #[serde(rename = "quality:confidence")]
    Confidence,
    /// The preferred model's answer has not the shape that was asked for.
    #[serde(rename = "quality:schema")]
    Shape,
    /// The preferred model's answer was cut off.
    #[serde(rename = "quality:cut-off")]
    CutOff,
    /// Several models answered, by the strategy of the client or the task.
    #[serde(rename = "strategy")]
    Strategy,
    /// The rules of the preferred model forbid the answer, or it is no fallback of one that refused.
    #[serde(rename = "policy")]
    Policy,
    /// It holds a value that can't be redacted, and must not leave the device.
    #[serde(rename = "redaction")]
    Redaction,
    /// A cap on spending leaves nothing for the preferred model.
    #[serde(rename = "budget")]
    Budget,
    /// A rule of the task answered it.
    #[serde(rename = "rule")]
    Rule,
    /// No model of that name.
    #[serde(rename = "capability:model")]
    Model,
    /// The device is hot; without that the job would have been in time on it.
    #[serde(rename = "hot")]
    Hot,
    /// Memory is short; without that the job would have been in time on the device.
    #[serde(rename = "memory")]
    Memory,
    /// The disk is full; without that the job would have been in time on the device.
    #[serde(rename = "disk")]
    Disk,
    /// The preferred model is down, or its circuit breaker is open.
    #[serde(rename = "resting")]
    Unhealthy,
    /// The queue is full.
    #[serde(rename = "queue")]
    Queue,
    /// The service is stopping.
    #[serde(rename = "draining")]
    Draining,
    /// It went through too many services.
    #[serde(rename = "hops")]
    Hops,
    /// The client went away.
    #[serde(rename = "cancelled")]
    Cancelled,
}

impl Reason {
    /// The word for it in records, tables and the log.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Feasible => "feasible",
            Reason::Mode => "mode",
            Reason::Deadline => "deadline",
            Reason::Context => "capability:context",
            Reason::Schema => "capability:schema",
            Reason::Tools => "capability:tools",
            Reason::Skill => "capability:talent",
            Reason::Confidence => "quality:confidence",
            Reason::Shape => "quality:schema",
            Reason::CutOff => "quality:cut-off",
            Reason::Strategy => "strategy",
            Reason::Policy => "policy",
            Reason::Redaction => "redaction",
            Reason::Budget => "budget",
            Reason::Rule => "rule",
            Reason::Model => "capability:model",
            Reason::Hot => "hot",
            Reason::Memory => "memory",
            Reason::Disk => "disk",
            Reason::Unhealthy => "resting",
            Reason::Queue => "queue",
            Reason::Draining => "draining",
            Reason::Hops => "hops",
            Reason::Cancelled => "cancelled",
        }
    }
}

/// Which kind of backend the job went to, or was answered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// No backend.
    None,
    /// This device: one of its models, or a rule of the task.
    Local,
    /// A peer on the local network.
    Peer,
    /// A provider in a cloud.
    Cloud,
}

impl Route {
    /// The word for it in records, tables and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Route::None => "none",
            Route::Local => "local",
            Route::Peer => "peer",
            Route::Cloud => "cloud",
        }
    }
}

impl Route {
    /// The locality of the backend; none without a backend.
    pub fn locality(self) -> Option<Locality> {
        match self {
            Route::None => None,
            Route::Local => Some(Locality::Device),
            Route::Peer => Some(Locality::Peer),
            Route::Cloud => Some(Locality::Cloud),
        }
    }
}

impl From<Locality> for Route {
    fn from(locality: Locality) -> Route {
        match locality {
            Locality::Device => Route::Local,
            Locality::Peer => Route::Peer,
            Locality::Cloud => Route::Cloud,
        }
    }
}

/// How one attempt ended. Records use the words of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The model answered.
    Ok,
    /// The model classified with a confidence below the margin.
    Unsure,
    /// The model can't do this job: its prompt is too long, or its schema is not possible.
    #[serde(rename = "unfit")]
    Rejected,
    /// The rules of the provider forbid the answer.
    Forbidden,
    /// The scheduler stopped the attempt so that another backend could answer in time.
    Recalled,
    /// The client went away, or the deadline passed.
    Cancelled,
    /// The backend could not be asked.
    #[serde(rename = "away")]
    Unavailable,
    /// The backend ended in the middle of the work.
    Crashed,
    /// The backend was silent for too long.
    #[serde(rename = "hung")]
    TimedOut,
    /// The backend broke the protocol.
    #[serde(rename = "broken")]
    ProtocolError,
}

impl Outcome {
    /// The word for it in records.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Unsure => "unsure",
            Outcome::Rejected => "unfit",
            Outcome::Forbidden => "forbidden",
            Outcome::Recalled => "recalled",
            Outcome::Cancelled => "cancelled",
            Outcome::Unavailable => "away",
            Outcome::Crashed => "crashed",
            Outcome::TimedOut => "hung",
            Outcome::ProtocolError => "broken",
        }
    }
}

/// One try at one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The server's name in `mcp.json`.
    pub server: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Confidence, 0 ..= 1, if labels were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Milliseconds from start to end.
    pub ms: u64,
    /// What it has cost, in US dollars; the maximum if the backend stated none.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub cost_usd: f64,
    /// Values of the prompt that were hidden from it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub redacted: usize,
    /// It stated figures of its answer that cannot be true.
    #[serde(default, skip_serializing_if = "is_false")]
    pub implausible: bool,
}

/// How full the device is, each from 0 (empty) to 1 (full).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// How near to its heat limit.
    pub heat: f32,
    /// How near to its memory limit.
    pub memory: f32,
    /// How near to its disk's limit.
    pub disk: f32,
    /// Waiting jobs or bytes against their bound, whichever is fuller.
    pub queue: f32,
}

/// When the answer was expected, in milliseconds from the decision on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// The median.
    pub p50: f64,
    /// The 95 % quantile.
    pub p95: f64,
}

impl Predicted {
    /// Whether the time is one that an answer can take: a time beyond every deadline is no prediction.
    pub fn is_plausible(&self) -> bool {
        let most = PREDICTION_MAX.as_secs_f64() * 1e3;
        [self.p50, self.p95].iter().all(|ms| (0.0..=most).contains(ms))
    }
}

/// The decision record of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Where the answer came from.
    pub route: Route,
    /// Why.
    pub reason: Reason,
    /// Every try, in order.
    pub attempts: Vec<Attempt>,
    /// When the answer was expected, if an engine of this device was in question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_ms: Option<Predicted>,
    /// How full the device was when it was decided.
    pub pressure: Pressure,
    /// The strategy, if several models answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The step of each model, if several answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StrategyStep>,
    /// The figures behind it, from which `pilotlight explain` decides again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
}

/// One of several answers to a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StrategyStep {
    /// Whether it was given.
    pub answered: bool,
    /// What the answer lacks, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Reason>,
    /// Number of equal answers, itself included.
    pub agree: u32,
    /// It is no answer, but the choice of a judge among the steps before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub judges: bool,
    /// The step that it prefers, from 0 on, if it could be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefers: Option<usize>,
    /// Where it went and why.
    pub decision: Decision,
}

impl Decision {
    /// What all attempts together have cost, in US dollars.
    pub fn cost_usd(&self) -> f64 {
        let attempts = self.attempts.iter();
        attempts.fold(Usd::NONE, |sum, one| sum.plus(Usd::at_least(one.cost_usd))).dollars()
    }
}

/// What was known when it was decided where the job goes. All times are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Where it was allowed to go.
    pub mode: Mode,
    /// How urgent it was.
    #[serde(rename = "class")]
    pub priority: Priority,
    /// The client reads the answer as a stream.
    pub streamed: bool,
    /// Share of the time that the engines here could compute.
    pub duty: f64,
    /// The stage of the device pressure.
    pub stage: PressureStage,
    /// The cause of the device pressure.
    pub cause: PressureCause,
    /// Delay by the groups before.
    pub ahead: Spread,
    /// The jobs of its group and of those behind it in service order, up to the one that would have
    /// been late.
    pub line: Vec<Case>,
    /// Which of them it is.
    pub own: usize,
    /// Time of a remote answer; none if no remote backend may be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<Spread>,
    /// By how much `ahead` is divided; 1 except in records of earlier versions.
    pub parallel: u32,
    /// The state of each backend for the job.
    pub servers: Vec<ServerState>,
}

/// One job of a service order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Its remaining time from its start to its end.
    pub work: Spread,
    /// By how much it delays each job behind it; if it is not stated, by `work` divided by `parallel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Spread>,
    /// Its deadline slack.
    pub left: f64,
    /// Which group it belonged to; the lower are served first.
    pub group: u8,
    /// Time until its offload deadline; none if it could not be offloaded.
    #[serde(rename = "leave_by", default, skip_serializing_if = "Option::is_none")]
    pub offload_deadline: Option<f64>,
}

/// The state of a backend for a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerState {
    /// The server's name in `mcp.json`.
    pub server: String,
    /// Where it is.
    #[serde(rename = "where")]
    pub locality: Locality,
    /// Why it could not be asked, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Reason>,
    /// It is not on this device and could not take one more at that moment.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full: bool,
    /// The backend was removed from the catalog after the job was tried there, or after the last
    /// attempt began.
    #[serde(default, skip_serializing_if = "is_false")]
    pub removed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_nothing(usd: &f64) -> bool {
    *usd <= 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_one_word() {
        for word in ["feasible", "capability:talent", "quality:cut-off", "resting", "cancelled"] {
            let reason: Reason = serde_json::from_value(word.into()).unwrap();
            assert_eq!((reason.name(), serde_json::to_value(reason).unwrap()), (word, word.into()));
        }
    }
}
