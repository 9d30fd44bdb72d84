//! SHA-256 digests, written as `sha256:` and 64 hexadecimal digits.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 digest of some bytes (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Before the digits.
const PREFIX: &str = "sha256:";

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of these 64 digits `0-9a-f`.
    ///
    /// # Errors
    /// What is expected.
    pub fn of_hex(hex: &str) -> Result<Digest, String> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        let is_right = pairs.len() == bytes.len() && rest.is_empty();
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(DIGITS.to_owned());
            };
            *byte = high << 4 | low;
        }
        if is_right { Ok(Digest(bytes)) } else { Err(DIGITS.to_owned()) }
    }
}

/// The message for other texts.
const DIGITS: &str = "must be 64 digits 0-9a-f, as sha256sum prints them";

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Digest, String> {
        let hex = text.strip_prefix(PREFIX).ok_or("must be \"sha256:\" and 64 digits 0-9a-f")?;
        Digest::of_hex(hex)
    }
}

impl From<Sha256> for Digest {
    fn from(hasher: Sha256) -> Digest {
        Digest(hasher.finalize().into())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A digest that is written without `sha256:`, in a field that is named `sha256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexDigest(pub Digest);

impl TryFrom<String> for HexDigest {
    type Error = String;

    fn try_from(text: String) -> Result<HexDigest, String> {
        Digest::of_hex(&text).map(HexDigest)
    }
}

impl From<HexDigest> for String {
    fn from(digest: HexDigest) -> String {
        digest.0.to_string().split_off(PREFIX.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_spelling() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        // FIPS 180-4, appendix B.1
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text, format!("sha256:{hex}"));
        assert_eq!(Digest::try_from(text.clone()), Ok(digest));
        for wrong in [
            hex.to_owned(),
            text.to_uppercase(),
            format!("{text}0"),
            text[..70].to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:+{}", &hex[1..]),
            format!("sha256:{}é", &hex[2..]),
            "sha256:".to_owned(),
        ] {
            assert!(Digest::try_from(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
