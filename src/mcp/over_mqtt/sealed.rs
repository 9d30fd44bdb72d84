//! Encrypted calls and answers: HPKE (RFC 9180) in its mode `auth`.
//!
//! The caller encrypts a call for one key of one worker; only who has the caller's private key can do so
//! for its name. The keys of the answer and of a cancellation are exported from the same context: only
//! that worker and that caller have them.

use bytes::Bytes;
use hpke::aead::{AeadCtxR, AeadCtxS, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, setup_receiver, setup_sender};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::keys::{CallerPair, Private, Public};
use super::signed::base64;
use crate::catalog::public_key::{CallerPublicKey, KEY_BYTES};

/// Bytes that the encryption adds to a message of an answer.
pub(super) const TAG_BYTES: usize = 16;
/// Bytes that it adds to a call: an ephemeral key besides.
pub(super) const CALL_SEAL_BYTES: usize = KEY_BYTES + TAG_BYTES;

/// What the key of an answer is exported for.
const ANSWER: &[u8] = b"mcp-over-mqtt/1 answer";
/// What the token of a cancellation is exported for.
const CANCEL: &[u8] = b"mcp-over-mqtt/1 cancel";
/// Before the parts of the info of a call.
const CALL: &[u8] = b"mcp-over-mqtt/1 call";

type Ephemeral = <X25519HkdfSha256 as Kem>::EncappedKey;
type SenderContext = AeadCtxS<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>;
type ReceiverContext = AeadCtxR<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>;

/// What a call is bound to besides the keys: sent under other names, it can't be decrypted.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallNames<'n> {
    /// The topic of the call, with the worker's name.
    pub(super) topic: &'n str,
    /// The topic of the answer, with the caller's name.
    pub(super) answer: &'n str,
    /// The correlation data.
    pub(super) mark: &'n [u8],
}

impl CallNames<'_> {
    fn info(&self) -> Vec<u8> {
        let mut info = CALL.to_vec();
        for part in [self.topic.as_bytes(), self.answer.as_bytes(), self.mark] {
            // topics and marks are shorter than 64 KiB
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            info.extend(length.to_be_bytes());
            info.extend(part);
        }
        info
    }
}

/// The keys of one call, which its caller and its worker have.
pub(super) struct CallSeal {
    answer: LessSafeKey,
    cancel: [u8; KEY_BYTES],
}

impl CallSeal {
    fn of(export: impl Fn(&[u8], &mut [u8]) -> Result<(), hpke::HpkeError>) -> Option<CallSeal> {
        let (mut answer, mut cancel) = ([0; KEY_BYTES], [0; KEY_BYTES]);
        export(ANSWER, &mut answer).ok()?;
        export(CANCEL, &mut cancel).ok()?;
        let answer = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &answer).ok()?);
        Some(CallSeal { answer, cancel })
    }

    /// Encrypts a message of the answer. Each number is used once.
    pub(super) fn seal(&self, number: u64, has_more: bool, text: &[u8]) -> Option<Bytes> {
        let mut sealed = Vec::with_capacity(text.len() + TAG_BYTES);
        sealed.extend_from_slice(text);
        let (nonce, more) = (nonce(number), Aad::from([u8::from(has_more)]));
        self.answer.seal_in_place_append_tag(nonce, more, &mut sealed).ok()?;
        Some(sealed.into())
    }

    /// The text of a message of the answer; none if the worker has not sent it with this number.
    pub(super) fn open(&self, number: u64, has_more: bool, sealed: &[u8]) -> Option<Bytes> {
        let mut text = sealed.to_vec();
        let (nonce, more) = (nonce(number), Aad::from([u8::from(has_more)]));
        let length = self.answer.open_in_place(nonce, more, &mut text).ok()?.len();
        text.truncate(length);
        Some(text.into())
    }

    /// The payload of a cancellation.
    pub(super) fn cancellation(&self) -> Bytes {
        Bytes::copy_from_slice(&self.cancel)
    }

    /// Whether this is the payload of the call's cancellation.
    pub(super) fn is_cancellation(&self, payload: &[u8]) -> bool {
        bool::from(self.cancel.as_slice().ct_eq(payload))
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    let (_, low) = nonce.split_at_mut(NONCE_LEN - size_of::<u64>());
    low.copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// The digest of all parts of a call that a broker delivers, in Base64: a refusal names the message that it
/// is about, for somebody may have made another one of it.
pub(super) fn call_digest(names: CallNames<'_>, key: &str, payload: &[u8]) -> String {
    let mut digest = Sha256::new();
    for part in [&names.info(), key.as_bytes(), payload] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    base64(&digest.finalize())
}

/// Encrypts a call for this key of a worker.
pub(super) fn seal_call(
    caller: &CallerPair,
    worker: &[u8; KEY_BYTES],
    names: CallNames<'_>,
    text: &[u8],
) -> Option<(Bytes, CallSeal)> {
    let worker = Public::from_bytes(worker).ok()?;
    let mode = OpModeS::Auth((caller.private.clone(), caller.public.clone()));
    let (ephemeral, mut context): (_, SenderContext) =
        setup_sender(&mode, &worker, &names.info()).ok()?;
    let sealed = context.seal(text, &[]).ok()?;
    let payload = [ephemeral.to_bytes().as_slice(), &sealed].concat();
    let seal = CallSeal::of(|what, key| context.export(what, key))?;
    Some((payload.into(), seal))
}

/// Decrypts a call of this caller; none if it is not from it, not for this key, or was changed.
pub(super) fn open_call(
    worker: &Private,
    caller: &CallerPublicKey,
    names: CallNames<'_>,
    payload: &[u8],
) -> Option<(Vec<u8>, CallSeal)> {
    let (ephemeral, sealed) = payload.split_at_checked(KEY_BYTES)?;
    let ephemeral = Ephemeral::from_bytes(ephemeral).ok()?;
    let mode = OpModeR::Auth(Public::from_bytes(&caller.0).ok()?);
    let mut context: ReceiverContext =
        setup_receiver(&mode, worker, &ephemeral, &names.info()).ok()?;
    let text = context.open(sealed, &[]).ok()?;
    let seal = CallSeal::of(|what, key| context.export(what, key))?;
    Some((text, seal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::secret::Secret;

    const NAMES: CallNames<'_> =
        CallNames { topic: "a/call/w", answer: "a/answer/c", mark: b"0123456789abcdef" };

    fn worker(seed: u8) -> (Private, [u8; KEY_BYTES]) {
        let private = Private::from_bytes(&[seed; KEY_BYTES]).unwrap();
        let public = X25519HkdfSha256::sk_to_pk(&private).to_bytes().into();
        (private, public)
    }

    fn caller(seed: u8) -> CallerPair {
        CallerPair::new(&Secret([seed; KEY_BYTES])).unwrap()
    }

    #[test]
    fn a_call_is_for_one_worker_from_one_caller_under_its_names() {
        let ((private, public), known) = (worker(1), caller(2));
        for text in [vec![], b"{}".to_vec(), vec![7; 1024 * 1024]] {
            let (sealed, _) = seal_call(&known, &public, NAMES, &text).unwrap();
            assert_eq!(sealed.len(), text.len() + CALL_SEAL_BYTES);
            let (opened, _) = open_call(&private, &known.public(), NAMES, &sealed).unwrap();
            assert_eq!(opened, text);
        }
        let (sealed, _) = seal_call(&known, &public, NAMES, b"{}").unwrap();
        assert!(!sealed.windows(2).any(|part| part == b"{}"));
        let opens = |private: &Private, caller: &CallerPair, names, sealed: &[u8]| {
            open_call(private, &caller.public(), names, sealed).is_some()
        };
        assert!(opens(&private, &known, NAMES, &sealed));
        assert!(!opens(&worker(3).0, &known, NAMES, &sealed), "another worker");
        assert!(!opens(&private, &caller(3), NAMES, &sealed), "another caller");
        for names in [
            CallNames { topic: "a/call/v", ..NAMES },
            CallNames { answer: "a/answer/d", ..NAMES },
            CallNames { mark: b"0123456789abcdeg", ..NAMES },
            // the same bytes, divided in another way
            CallNames { topic: "a/call/wa", answer: "/answer/c", ..NAMES },
        ] {
            assert!(!opens(&private, &known, names, &sealed), "{names:?}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            // the highest bit of an X25519 key does not count, and is authenticated all the same
            assert!(!opens(&private, &known, NAMES, &changed), "{at}");
            assert!(!opens(&private, &known, NAMES, &sealed[..at]), "{at}");
        }
    }

    #[test]
    fn a_message_of_an_answer_has_one_place() {
        let ((private, public), known) = (worker(1), caller(2));
        let (call, ours) = seal_call(&known, &public, NAMES, b"{}").unwrap();
        let (_, theirs) = open_call(&private, &known.public(), NAMES, &call).unwrap();
        let sealed = theirs.seal(3, true, b"part").unwrap();
        assert_eq!(sealed.len(), 4 + TAG_BYTES);
        assert_eq!(ours.open(3, true, &sealed), Some(Bytes::from_static(b"part")));
        assert_eq!(ours.open(4, true, &sealed), None, "another place");
        assert_eq!(ours.open(3, false, &sealed), None, "cut off");
        assert_eq!(ours.open(3, true, &sealed[1..]), None, "changed");
        let (_, other) = seal_call(&known, &public, NAMES, b"{}").unwrap();
        assert_eq!(other.open(3, true, &sealed), None, "another call");
        assert!(theirs.is_cancellation(&ours.cancellation()));
        assert!(!theirs.is_cancellation(&other.cancellation()));
        assert!(!theirs.is_cancellation(b""));
    }
}
