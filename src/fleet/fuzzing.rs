//! Entry point of the fuzz target `update`.

use super::boundary;
use super::check::{Memory, VersionFloor, check};
use super::digest::Digest;
use super::envelope::Envelope;
use super::moment::Moment;
use super::signature::Received;
use super::trust::Trust;

/// A key whose private part nobody has.
const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

/// What becomes of `update.signed`, with one known key.
///
/// # Errors
/// Why it is refused.
pub fn signed(bytes: &[u8]) -> Result<(), String> {
    let policy = format!(
        "{{\"keys\": {{\"a\": {{\"public_key\": \"{KEY}\", \"targets\": [\"device\"], \
         \"operations\": [\"config\"], \"longest_days\": 30}}}}}}"
    );
    let trust = Trust::read(policy.as_bytes()).map_err(|mistakes| format!("{mistakes:?}"))?;
    let memory = Memory {
        device: "pi-7".to_owned(),
        group: None,
        clock: Moment(0),
        watermark: Moment(0),
        floor: VersionFloor::Known(0),
        known: std::collections::BTreeSet::new(),
        running: Digest::of(b""),
        on_trial: None,
    };
    let received = Received::of(bytes).map_err(|refusal| refusal.to_string())?;
    check(&received, &trust, &memory).map(|_| ()).map_err(|refusal| refusal.to_string())
}

/// The envelope in these bytes, as it is written.
///
/// # Errors
/// What is wrong.
pub fn envelope(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let envelope = Envelope::read(bytes).map_err(|refusal| refusal.to_string())?;
    envelope.write().map_err(|refusal| refusal.to_string())
}

/// The mistakes of a trust policy.
pub fn policy(bytes: &[u8]) -> Vec<String> {
    let mistakes = Trust::read(bytes).err().unwrap_or_default();
    mistakes.into_iter().map(|mistake| mistake.message).collect()
}

/// The mistakes of the form of a remote configuration.
pub fn configuration(bytes: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Vec::new() };
    let mistakes = match boundary::parse(text) {
        Ok(remote) => boundary::check_parts(&remote),
        Err(mistakes) => mistakes,
    };
    mistakes.into_iter().map(|mistake| mistake.message).collect()
}
