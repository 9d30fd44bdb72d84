//! Whether a model takes requests at present, as a name and a reason.

use serde::{Deserialize, Serialize};

/// The state of one backend as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Health {
    /// It is being started or reached.
    Starting,
    /// It takes requests.
    Ready,
    /// It failed and is restarted or reached again later.
    #[serde(rename = "resting")]
    Unavailable {
        /// The last failure.
        reason: String,
    },
    /// It can't be started; it is tried again later.
    Failed {
        /// Why the last attempts failed.
        reason: String,
    },
    /// A tool of it is not the one that is pinned: it is not called.
    Quarantined {
        /// Which tool, its digests, and what to do.
        reason: String,
    },
}
