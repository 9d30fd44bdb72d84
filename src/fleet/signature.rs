//! Signatures in minisign's format: four lines, an Ed25519 signature of the BLAKE2b-512 digest of the
//! file, and one of that signature with the trusted comment.
//!
//! The format is that of <https://jedisct1.github.io/minisign/>. It has one spelling here: no byte of
//! the file can be changed without a refusal, also none that no signature covers.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, Signature};

use super::refusal::UpdateRefusal;
use crate::limits::fleet::{SIGNATURE_BYTES_MAX, SIGNED_BYTES_MAX};

/// The first lines that the tools write: minisign, rsign, and the library that both this program and
/// rsign use. No signature covers it.
const FIRST_LINES: [&str; 2] = [
    "untrusted comment: signature from minisign secret key",
    "untrusted comment: signature from rsign secret key",
];
/// The comment of signatures that this program makes: that of minisign.
pub const UNTRUSTED_COMMENT: &str = "signature from minisign secret key";
/// Before the trusted comment.
const TRUSTED: &str = "trusted comment: ";
/// Bytes of a signature line: algorithm, key identifier, signature.
const SIGNATURE_BYTES: usize = 2 + 8 + 64;
/// Bytes of a public key: algorithm, key identifier, key.
const KEY_BYTES: usize = 2 + 8 + 32;
/// The algorithm of signatures over a digest, and that of the old kind, which is also that of keys.
const PREHASHED: &[u8] = b"ED";
const LEGACY: &[u8] = b"Ed";

/// An update as it arrives: its signature and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'b> {
    /// The bytes of the signature file.
    pub signature: &'b [u8],
    /// The signed bytes.
    pub update: &'b [u8],
}

impl<'b> Received<'b> {
    /// The parts of `update.signed`: the four lines of the signature, then the signed bytes.
    ///
    /// # Errors
    /// If it is too large or has no four lines.
    pub fn of(signed: &'b [u8]) -> Result<Received<'b>, UpdateRefusal> {
        let (bytes, most) = (signed.len(), SIGNED_BYTES_MAX);
        if bytes > most {
            return Err(UpdateRefusal::TooLarge { bytes, most });
        }
        let head = &signed[..bytes.min(SIGNATURE_BYTES_MAX)];
        let ends = head.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let Some((end, _)) = ends.map(|(at, byte)| (at + 1, byte)).nth(3) else {
            return Err(UpdateRefusal::MalformedSignature("has no four lines".to_owned()));
        };
        let (signature, update) = signed.split_at(end);
        Ok(Received { signature, update })
    }

    /// The bytes of `update.signed`.
    pub fn joined(&self) -> Vec<u8> {
        [self.signature, self.update].concat()
    }
}

/// The identifier of a key, which minisign shows as a number in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

impl KeyId {
    fn of(bytes: &[u8]) -> Option<KeyId> {
        bytes.get(2..10)?.try_into().ok().map(KeyId)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// A public key in minisign's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateKey {
    /// The identifier.
    pub id: KeyId,
    key: PublicKey,
}

impl UpdateKey {
    /// The key of this text: 56 characters of Base64, the second line of minisign's `.pub` file.
    ///
    /// # Errors
    /// What is expected.
    pub fn parse(text: &str) -> Result<UpdateKey, String> {
        let wrong = || {
            "must be a public key of minisign: the second line of its .pub file, 56 characters that \
             begin with RW"
                .to_owned()
        };
        let bytes = STANDARD.decode(text).ok();
        let bytes = bytes.filter(|b| b.len() == KEY_BYTES && b.starts_with(LEGACY));
        let id = bytes.as_deref().and_then(KeyId::of).ok_or_else(wrong)?;
        let key = PublicKey::from_base64(text).map_err(|_| wrong())?;
        Ok(UpdateKey { id, key })
    }
}

/// A signature file whose form is right. Nothing in it is verified.
pub struct Signed {
    id: KeyId,
    signature: Signature,
}

impl Signed {
    /// Reads a signature file.
    ///
    /// # Errors
    /// If it has not the one spelling of the format, or the signature is of the old kind.
    pub fn parse(bytes: &[u8]) -> Result<Signed, UpdateRefusal> {
        let wrong = |what: &str| UpdateRefusal::MalformedSignature(what.to_owned());
        if bytes.len() > SIGNATURE_BYTES_MAX {
            let (bytes, most) = (bytes.len(), SIGNATURE_BYTES_MAX);
            return Err(UpdateRefusal::TooLarge { bytes, most });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not UTF-8"))?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [untrusted, first, trusted, second, ""] = lines[..] else {
            return Err(wrong("must have four lines"));
        };
        if text.contains('\r') {
            return Err(wrong("has a carriage return"));
        }
        if !FIRST_LINES.contains(&untrusted) {
            return Err(wrong(
                "must begin with \"untrusted comment: signature from minisign secret key\", which no \
                 signature protects; sign without -c",
            ));
        }
        if !trusted.starts_with(TRUSTED) {
            return Err(wrong("has no trusted comment in its third line"));
        }
        let decoded = STANDARD.decode(first).ok().filter(|bytes| bytes.len() == SIGNATURE_BYTES);
        let decoded = decoded.ok_or_else(|| wrong("is damaged in its second line"))?;
        if decoded.starts_with(LEGACY) {
            return Err(UpdateRefusal::LegacySignature);
        }
        let id = KeyId::of(&decoded).filter(|_| decoded.starts_with(PREHASHED));
        let id = id.ok_or_else(|| wrong("has an unknown algorithm"))?;
        if STANDARD.decode(second).is_err() {
            return Err(wrong("is damaged in its fourth line"));
        }
        let signature = Signature::decode(text).map_err(|error| wrong(&error.to_string()))?;
        Ok(Signed { id, signature })
    }

    /// The identifier of the key, which the signer states.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether the key has signed these bytes and the trusted comment.
    pub fn is_of(&self, key: &UpdateKey, bytes: &[u8]) -> bool {
        key.key.verify(bytes, &self.signature, false).is_ok()
    }

    /// The trusted comment. It is signed, and no authority: it names the file and the time for people.
    pub fn comment(&self) -> &str {
        self.signature.trusted_comment()
    }
}
