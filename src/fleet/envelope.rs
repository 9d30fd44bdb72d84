//! The signed file `update.json`: a domain prefix, then one JSON object that says for whom, which version,
//! how long, and which configuration.
//!
//! Every enum with a payload is externally tagged, because serde does not refuse unknown keys beside an
//! internal tag.

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::{Digest, HexDigest};
use super::moment::Moment;
use super::reason::shortened;
use super::refusal::UpdateRefusal;
use super::strict;
use super::target::UpdateTarget;
use crate::limits::fleet::{UPDATE_BYTES_MAX, UPDATE_DEPTH_MAX, UPDATE_VERSION_MAX};

/// The first line of every update. A key that signs other files too can't be made to sign a
/// configuration by showing them as one.
pub const DOMAIN: &str = "pilotlight-config-1\n";

/// The content of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The devices that it is for.
    pub target: UpdateTarget,
    /// The version: higher than that of every update that was kept.
    pub version: UpdateVersion,
    /// The time of issue.
    pub issued: Moment,
    /// The time after which it is refused.
    pub expires: Moment,
    /// The digest of the configuration that it replaces; none for any.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "stated")]
    pub replaces: Option<Digest>,
    /// The configuration.
    pub config: UpdateConfig,
}

/// A version, 1 to 2⁵³ − 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct UpdateVersion(u64);

/// Where the text of `mcp.json` is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateConfig {
    /// In the update.
    Inline(String),
    /// At a URL.
    Url(RemoteText),
}

/// A text at a URL, with its size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteText {
    /// The URL.
    pub url: String,
    /// The digest of the text.
    pub sha256: HexDigest,
    /// The size of the text.
    pub bytes: u64,
}

impl Envelope {
    /// Reads the bytes of an update. Only whoever has verified their signature may call this.
    ///
    /// # Errors
    /// [`UpdateRefusal::TooLarge`], or [`UpdateRefusal::Malformed`] with the place and what is wrong.
    pub fn read(bytes: &[u8]) -> Result<Envelope, UpdateRefusal> {
        if bytes.len() > UPDATE_BYTES_MAX {
            let (bytes, most) = (bytes.len(), UPDATE_BYTES_MAX);
            return Err(UpdateRefusal::TooLarge { bytes, most });
        }
        let malformed = |what: &str| UpdateRefusal::Malformed(shortened(what).to_owned());
        let Some(json) = bytes.strip_prefix(DOMAIN.as_bytes()) else {
            let prefix = DOMAIN.trim_end();
            return Err(malformed(&format!("the first line must be {prefix} and a line feed")));
        };
        let text = std::str::from_utf8(json).map_err(|_| malformed("not UTF-8"))?;
        if text.contains('\r') {
            return Err(malformed("has a carriage return; write lines with a line feed alone"));
        }
        if !text.starts_with('{') || !text.strip_suffix('\n').unwrap_or(text).ends_with('}') {
            let what =
                "must be one JSON object after the first line, with one line feed at most after it";
            return Err(malformed(what));
        }
        let value = strict::parse(text, UPDATE_DEPTH_MAX).map_err(|what| malformed(&what))?;
        let envelope: Envelope = serde_path_to_error::deserialize(value)
            .map_err(|error| malformed(&format!("{}: {}", error.path(), error.inner())))?;
        if envelope.issued >= envelope.expires {
            return Err(malformed("expires: must be later than issued"));
        }
        Ok(envelope)
    }

    /// The bytes of this update, to be signed.
    ///
    /// # Errors
    /// If the update would be refused for its size.
    pub fn write(&self) -> Result<Vec<u8>, UpdateRefusal> {
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|error| UpdateRefusal::Malformed(error.to_string()))?;
        let bytes = format!("{DOMAIN}{json}\n").into_bytes();
        Envelope::read(&bytes).map(|_| bytes)
    }
}

impl TryFrom<u64> for UpdateVersion {
    type Error = String;

    fn try_from(number: u64) -> Result<UpdateVersion, String> {
        let is_version = (1..=UPDATE_VERSION_MAX).contains(&number);
        let wrong = || format!("version {number} must be 1 to {UPDATE_VERSION_MAX}");
        is_version.then_some(UpdateVersion(number)).ok_or_else(wrong)
    }
}

impl From<UpdateVersion> for u64 {
    fn from(version: UpdateVersion) -> u64 {
        version.0
    }
}

/// A value that may be absent and not null.
fn stated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
    Digest::deserialize(deserializer).map(Some)
}
