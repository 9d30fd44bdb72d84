//! The backend profile: what the scheduler knows of a model.

use std::sync::Arc;

use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::batch::BatchRates;
use crate::model::context::{InferenceSettings, Locality};
use crate::money::Price;

/// What the scheduler knows of a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendProfile {
    /// Its name in `mcp.json`.
    pub server: BackendId,
    /// The model's own name, once it has stated it.
    pub model: Option<String>,
    /// What its rates are measured of: its weights, threads and the like. Another model, or the
    /// same at another clock, has another; none has rates that are not worth keeping.
    pub measured: Option<String>,
    /// Where it is.
    pub locality: Locality,
    /// Jobs at once.
    pub slots: u32,
    /// The backend computes only the most urgent of its jobs, as many as fit in a batch, and resumes the others
    /// afterwards.
    pub preemptive: bool,
    /// Speeds of several answers that it decodes in one batch.
    pub batch: BatchRates,
    /// Milliseconds a token of a prompt, as it measured itself at its start.
    pub read_ms: Option<f64>,
    /// Milliseconds a token of an answer, as it measured itself at its start.
    pub write_ms: Option<f64>,
    /// Most tokens of an answer if a job does not say.
    pub max_tokens: u32,
    /// Most tokens of an answer, whatever a job says.
    pub output_tokens_max: u32,
    /// Context length.
    pub context_tokens: u32,
    /// Its output can be constrained to JSON.
    pub json_schema: bool,
    /// It calls tools.
    pub tools: bool,
    /// What it is good at; none before it has stated it.
    pub skills: Option<Vec<String>>,
    /// Backends that may answer what this one refuses for its rules or its length.
    pub fallbacks: Vec<String>,
    /// What its tokens cost.
    pub price: Price,
}

impl BackendProfile {
    /// A backend that has not stated anything yet.
    pub fn unknown(server: &str, locality: Locality) -> BackendProfile {
        BackendProfile {
            server: server.into(),
            model: None,
            measured: None,
            locality,
            slots: 1,
            preemptive: false,
            batch: BatchRates::default(),
            read_ms: None,
            write_ms: None,
            max_tokens: InferenceSettings::default().max_tokens,
            output_tokens_max: OUTPUT_TOKENS_MAX,
            context_tokens: u32::MAX,
            json_schema: true,
            tools: true,
            skills: None,
            fallbacks: Vec::new(),
            price: Price::default(),
        }
    }

    pub(super) fn answers_to(&self, name: &str) -> bool {
        self.server.as_str() == name || self.model.as_deref() == Some(name)
    }

    pub(super) fn has(&self, skills: &[String]) -> bool {
        let stated = self.skills.as_ref();
        stated.is_none_or(|stated| skills.iter().all(|needed| stated.contains(needed)))
    }
}

/// The name of a backend: that of its server in `mcp.json`. Cloning it copies a pointer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendId(Arc<str>);

impl BackendId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for BackendId {
    fn from(name: &str) -> BackendId {
        BackendId(name.into())
    }
}
