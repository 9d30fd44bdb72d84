//! Whether a model can be asked right now, as a word and a reason.

use serde::{Deserialize, Serialize};

/// The state of one backend as it is shown to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Health {
    /// It is being started or reached.
    Starting,
    /// It answers.
    Ready,
    /// It failed and is tried again later.
    Resting {
        /// What went wrong last.
        reason: String,
    },
}
