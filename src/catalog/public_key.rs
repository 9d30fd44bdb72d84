//! Public keys: of a service that is called over MQTT, and of its callers.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Bytes of a key, public or private.
pub const KEY_BYTES: usize = 32;

/// Before the Base64 text of a service's public key, and of its private key.
const SERVICE: (&str, &str) = ("service-ed25519:", "service-secret-ed25519:");
/// Before the Base64 text of a caller's public key, and of its private key.
const CALLER: (&str, &str) = ("caller-x25519:", "caller-secret-x25519:");

/// The private key of a service, or the name of a credential.
pub(super) const SERVICE_SECRET_PATTERN: &str =
    "^(service-secret-ed25519:[A-Za-z0-9_-]{43}|cred:[^/]+)$";
/// The private key of a caller, or the name of a credential.
pub(super) const CALLER_SECRET_PATTERN: &str =
    "^(caller-secret-x25519:[A-Za-z0-9_-]{43}|cred:[^/]+)$";

/// The public key of a service: its workers sign their presence with the private one.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServicePublicKey(pub [u8; KEY_BYTES]);

/// The public key of a caller, which its calls are authenticated by.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallerPublicKey(pub [u8; KEY_BYTES]);

/// Whose private key a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// Of a service, Ed25519.
    Service,
    /// Of a caller, X25519.
    Caller,
}

impl SecretKind {
    fn prefix(self) -> &'static str {
        match self {
            SecretKind::Service => SERVICE.1,
            SecretKind::Caller => CALLER.1,
        }
    }

    /// The text of a private key.
    pub fn text(self, key: &[u8; KEY_BYTES]) -> String {
        text(self.prefix(), key)
    }

    /// The private key of a text.
    ///
    /// # Errors
    /// A message without the text.
    pub fn parse(self, text: &str) -> Result<[u8; KEY_BYTES], String> {
        let prefix = self.prefix();
        let wrong = || format!("must be a private key: {prefix} and 43 characters of Base64");
        decode(text, prefix).ok_or_else(wrong)
    }
}

fn text(prefix: &str, key: &[u8; KEY_BYTES]) -> String {
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(key))
}

fn decode(text: &str, prefix: &str) -> Option<[u8; KEY_BYTES]> {
    key_of(text.strip_prefix(prefix)?)
}

/// A key of its Base64 text.
pub fn key_of(text: &str) -> Option<[u8; KEY_BYTES]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// A public key of a text. The message never has the text, which may be a private key.
fn public(text: &str, (prefix, secret): (&str, &str), whose: &str) -> Result<[u8; 32], String> {
    decode(text, prefix).ok_or_else(|| {
        if text.starts_with(secret) {
            return format!(
                "is a private key, which must stay where it is; write the public key of the {whose} \
                 ({prefix}...), as `pilotlight key` prints it there"
            );
        }
        format!(
            "must be the public key of the {whose}: {prefix} and 43 characters of Base64, as \
             `pilotlight key` prints it there"
        )
    })
}

impl JsonSchema for ServicePublicKey {
    fn schema_name() -> Cow<'static, str> {
        "ServicePublicKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^service-ed25519:[A-Za-z0-9_-]{43}$"})
    }
}

impl JsonSchema for CallerPublicKey {
    fn schema_name() -> Cow<'static, str> {
        "CallerPublicKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let description = "The public key of a caller, as `pilotlight key` prints it there.";
        json_schema!({
            "description": description, "type": "string", "pattern": "^caller-x25519:[A-Za-z0-9_-]{43}$"
        })
    }
}

impl TryFrom<String> for ServicePublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<ServicePublicKey, String> {
        public(&text, SERVICE, "service").map(ServicePublicKey)
    }
}

impl TryFrom<String> for CallerPublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<CallerPublicKey, String> {
        public(&text, CALLER, "caller").map(CallerPublicKey)
    }
}

impl From<ServicePublicKey> for String {
    fn from(key: ServicePublicKey) -> String {
        key.to_string()
    }
}

impl From<CallerPublicKey> for String {
    fn from(key: CallerPublicKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for ServicePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(SERVICE.0, &self.0))
    }
}

impl fmt::Display for CallerPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(CALLER.0, &self.0))
    }
}

impl fmt::Debug for ServicePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for CallerPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let bytes = [7; KEY_BYTES];
        let service = ServicePublicKey(bytes).to_string();
        assert_eq!(ServicePublicKey::try_from(service), Ok(ServicePublicKey(bytes)));
        let caller = CallerPublicKey(bytes).to_string();
        assert_eq!(CallerPublicKey::try_from(caller), Ok(CallerPublicKey(bytes)));
        for kind in [SecretKind::Service, SecretKind::Caller] {
            assert_eq!(kind.parse(&kind.text(&bytes)), Ok(bytes));
        }
    }

    #[test]
    fn one_key_is_not_taken_for_another_and_never_shown() {
        let bytes = [7; KEY_BYTES];
        let secret = SecretKind::Service.text(&bytes);
        let digits = secret.split(':').nth(1).unwrap().to_owned();
        let wrong = [
            ServicePublicKey::try_from(secret.clone()).unwrap_err(),
            ServicePublicKey::try_from(CallerPublicKey(bytes).to_string()).unwrap_err(),
            ServicePublicKey::try_from(digits.clone()).unwrap_err(),
            ServicePublicKey::try_from(format!("{}A", ServicePublicKey(bytes))).unwrap_err(),
            CallerPublicKey::try_from(ServicePublicKey(bytes).to_string()).unwrap_err(),
            SecretKind::Caller.parse(&secret).unwrap_err(),
        ];
        for message in &wrong {
            assert!(!message.contains(&digits), "{message}");
        }
        assert!(wrong[0].starts_with("is a private key"), "{}", wrong[0]);
    }
}
