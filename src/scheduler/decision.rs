//! The decision record: where a job was sent, why, and what became of each attempt.

use serde::{Deserialize, Serialize};

/// Why a job went where it went, or nowhere. The list is closed and documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// It could be answered where the asker prefers it.
    #[serde(rename = "feasible")]
    Feasible,
    /// The asker named a side, or forbade one.
    #[serde(rename = "mode")]
    Mode,
    /// Its deadline passed.
    #[serde(rename = "deadline")]
    Deadline,
    /// The preferred model lacks the context length.
    #[serde(rename = "capability:context")]
    Context,
    /// The preferred model can't be held to a schema.
    #[serde(rename = "capability:schema")]
    Schema,
    /// The preferred model lacks the talent.
    #[serde(rename = "capability:talent")]
    Talent,
    /// The preferred model was not sure enough.
    #[serde(rename = "quality:confidence")]
    Confidence,
    /// A rule of the task answered it.
    #[serde(rename = "rule")]
    Rule,
    /// No model of that name.
    #[serde(rename = "capability:model")]
    Model,
    /// The preferred model failed or is away.
    #[serde(rename = "resting")]
    Resting,
    /// No room to wait.
    #[serde(rename = "queue")]
    Queue,
    /// The service is stopping.
    #[serde(rename = "draining")]
    Draining,
    /// It went through too many services.
    #[serde(rename = "hops")]
    Hops,
    /// The asker went away.
    #[serde(rename = "cancelled")]
    Cancelled,
}

/// One try at one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The server's name in `mcp.json`.
    pub server: String,
    /// `ok`, `unsure` or the fault's word.
    pub outcome: String,
    /// How sure it was, 0 ..= 1, if labels were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Milliseconds from start to end.
    pub ms: u64,
}

/// How full the device is, each from 0 (empty) to 1 (full).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// Waiting jobs or bytes against their bound, whichever is fuller.
    pub queue: f32,
}

/// What the asker is told about how the decision came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// `local`, `peer`, `cloud` or `none`.
    pub route: String,
    /// Why.
    pub reason: Reason,
    /// Every try, in order.
    pub attempts: Vec<Attempt>,
    /// How full the device was when it was decided.
    pub pressure: Pressure,
}
