//! Which addresses the connections of an entry may have.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Which addresses the connections of an entry may have. It is a part of the entry, and no client is made
/// without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressRule {
    /// Any: the device's own `mcp.json` has the URL.
    Any,
    /// Those of the public internet over TLS: a remote configuration has brought the URL.
    Public {
        /// Origins that are excepted: those of the trust policy.
        neighbours: Arc<BTreeSet<String>>,
    },
}
