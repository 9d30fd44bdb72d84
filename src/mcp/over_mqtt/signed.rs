//! Messages that a service signs: the presence of its workers, and refusals of calls.
//!
//! They are JSON Web Signatures in their compact form (RFC 7515) with Ed25519 (RFC 8037). The header is
//! compared as a whole, so there is no choice of an algorithm.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::keys::ServicePair;
use crate::catalog::public_key::ServicePublicKey;
use crate::limits::call::SIGNED_BYTES_MAX;

/// The order of presence messages of one worker: its start, its connection, and the number of the message
/// on that connection. A message counts only if it is later than the last one.
pub(super) type Order = [u64; 3];
/// The third number of the order of `offline`: it is the last one of its connection.
pub(super) const LAST_OF_CONNECTION: u64 = u32::MAX as u64;

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PresenceStatement {
    /// The topic on which it is said.
    pub(super) topic: String,
    pub(super) state: WorkerState,
    pub(super) order: Order,
    /// The present key for calls, X25519 in Base64; only while online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum WorkerState {
    Online,
    Offline,
}

/// Why a worker does not serve a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RefusalStatement {
    /// The digest of the refused message, in Base64; see [`call_digest`](super::sealed::call_digest).
    pub(super) digest: String,
    pub(super) worker: String,
    pub(super) reason: RefusalReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RefusalReason {
    /// The worker has no key for the caller's name, or another one, or the call was changed.
    Caller,
    /// The key that the call is encrypted for is not in use any more.
    Key,
}

/// A statement that can be signed.
pub(super) trait Statement: Serialize + DeserializeOwned {
    /// The `typ` of its header.
    const TYPE: &'static str;

    /// The first part of a signed message.
    fn header() -> String {
        base64(format!(r#"{{"alg":"EdDSA","typ":"{}"}}"#, Self::TYPE).as_bytes())
    }

    /// The signed message of this statement.
    fn signed_by(&self, service: &ServicePair) -> serde_json::Result<String> {
        let signed = format!("{}.{}", Self::header(), base64(&serde_json::to_vec(self)?));
        let signature = service.0.sign(signed.as_bytes());
        Ok(format!("{signed}.{}", base64(signature.as_ref())))
    }

    /// The statement of a message, if this service has signed it.
    fn verified(service: &ServicePublicKey, message: &[u8]) -> Option<Self> {
        if !Self::is_form_of(message) {
            return None;
        }
        let (signed, signature) = std::str::from_utf8(message).ok()?.rsplit_once('.')?;
        let key = UnparsedPublicKey::new(&ED25519, service.0);
        key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let (_, statement) = signed.split_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(statement).ok()?).ok()
    }

    /// Whether a message has the form of such a statement; the signature is not looked at.
    fn is_form_of(message: &[u8]) -> bool {
        let rest = message.strip_prefix(Self::header().as_bytes());
        message.len() <= SIGNED_BYTES_MAX && rest.is_some_and(|rest| rest.first() == Some(&b'.'))
    }
}

impl Statement for PresenceStatement {
    const TYPE: &'static str = "mcp-presence";
}

impl Statement for RefusalStatement {
    const TYPE: &'static str = "mcp-refusal";
}

/// Base64 for URLs, without padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::secret::Secret;

    #[test]
    fn only_the_service_can_say_it() {
        let service = ServicePair::new(&Secret([1; 32])).unwrap();
        let other = ServicePair::new(&Secret([2; 32])).unwrap();
        let statement = PresenceStatement {
            topic: "a/worker/w".to_owned(),
            state: WorkerState::Online,
            order: [3, 2, 1],
            key: Some(base64(&[7; 32])),
        };
        let message = statement.signed_by(&service).unwrap();
        assert_eq!(
            PresenceStatement::verified(&service.public(), message.as_bytes()),
            Some(statement.clone())
        );
        assert_eq!(PresenceStatement::verified(&other.public(), message.as_bytes()), None);
        // not what was signed, in any place
        for at in 0..message.len() {
            let mut changed = message.clone().into_bytes();
            changed[at] ^= 1;
            assert_eq!(PresenceStatement::verified(&service.public(), &changed), None, "{at}");
        }
        // nor is one kind of statement another
        assert_eq!(RefusalStatement::verified(&service.public(), message.as_bytes()), None);
        for other in ["", ".", "..", r#"{"state":"offline"}"#] {
            assert_eq!(PresenceStatement::verified(&service.public(), other.as_bytes()), None);
        }
    }
}
