//! The authority of an update: what both the trust policy of the device permits the key and the update
//! states. Nothing in an update can widen what its key may do.

use std::collections::BTreeSet;
use std::time::Duration;

use super::envelope::Envelope;
use super::refusal::UpdateRefusal;
use super::trust::{Operation, Trust, TrustedKey};
use crate::limits::fleet::VALID_DAYS_MAX;

/// What the signer of an update may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The key's name in the trust policy.
    pub key: String,
    operations: BTreeSet<Operation>,
}

impl Authority {
    /// The authority of this key for this update.
    ///
    /// # Errors
    /// [`UpdateRefusal::NotAuthorised`] if the key may not sign for this kind of target, or for so long.
    pub fn of(
        name: &str,
        key: &TrustedKey,
        envelope: &Envelope,
    ) -> Result<Authority, UpdateRefusal> {
        let refused =
            |what: String| Err(UpdateRefusal::NotAuthorised { key: name.to_owned(), what });
        let kind = envelope.target.kind();
        if !key.targets.contains(&kind) {
            return refused(format!("sign for a {}", kind.name()));
        }
        let most = Duration::from_secs(VALID_DAYS_MAX * 24 * 3600).min(key.longest);
        if envelope.expires.since(envelope.issued) > most {
            let days = most.as_secs() / (24 * 3600);
            return refused(format!("sign for more than {days} days"));
        }
        Ok(Authority { key: name.to_owned(), operations: key.operations.clone() })
    }

    /// Whether the key may make all of these changes.
    ///
    /// # Errors
    /// [`UpdateRefusal::NotAuthorised`] with the first change that it may not make.
    pub fn permits(&self, changes: &BTreeSet<Operation>) -> Result<(), UpdateRefusal> {
        let Some(beyond) = changes.difference(&self.operations).next() else { return Ok(()) };
        let what = match beyond {
            Operation::Models => "change the part models".to_owned(),
            Operation::Config => "change a part other than models".to_owned(),
        };
        Err(UpdateRefusal::NotAuthorised { key: self.key.clone(), what })
    }
}

impl Trust {
    /// The key of this identifier with its name.
    pub(super) fn key(&self, id: super::signature::KeyId) -> Option<(&str, &TrustedKey)> {
        let found = self.keys.iter().find(|(_, key)| key.key.id == id);
        found.map(|(name, key)| (name.as_str(), key))
    }
}
