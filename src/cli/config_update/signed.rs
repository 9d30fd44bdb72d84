//! The signed file that a manager pushes, checked as far as that is possible without a device.

use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;

use super::device::now;
use super::verify::Files;
use crate::fleet::envelope::Envelope;
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::signature::{Received, Signed, UpdateKey};
use crate::fleet::target::UpdateTarget;
use crate::limits::fleet::ISSUED_AHEAD_MAX;
use crate::limits::rollout::PUBLIC_KEYS_MAX;
use crate::rollout::update::UpdateMark;
use crate::store::files;

/// Longest file with a public key: minisign's has 114 bytes, with a comment that has no fixed length.
const PUBLIC_KEY_BYTES_MAX: u64 = 4096;

/// An update to push.
pub(super) struct PushedUpdate {
    /// The bytes of `update.signed`.
    pub(super) payload: Bytes,
    pub(super) target: UpdateTarget,
    pub(super) mark: UpdateMark,
    /// What could not be checked.
    pub(super) warning: Option<String>,
}

/// Reads an update, and checks what every device would refuse: form, signature, time. The key is the given
/// one, a file or its text; else that of a `.pub` file in the folder of the update or in the present one.
///
/// # Errors
/// If a file can't be read, or each device would refuse the update.
pub(super) fn read(path: &Path, key: Option<&str>) -> anyhow::Result<PushedUpdate> {
    let shown = path.display();
    let signed = Files::read(path)?;
    let refused = |why: UpdateRefusal| {
        anyhow::anyhow!("{shown}: every device would refuse it ({}): {why}", why.code())
    };
    let received = signed.received().map_err(refused)?;
    let signature = Signed::parse(received.signature).map_err(refused)?;
    let key = match key {
        Some(key) => Some(given_key(key)?),
        None => key_beside(path, &signature),
    };
    let warning = match &key {
        Some(key) => {
            check_signature(&signature, key, &received).with_context(|| format!("{shown}"))?;
            None
        }
        None => Some(format!(
            "the signature is not checked: no .pub file here is of the key {}; name it with \
             --public-key",
            signature.id()
        )),
    };
    let envelope = Envelope::read(received.update).map_err(refused)?;
    let time = now();
    if envelope.expires <= time {
        let expires = envelope.expires;
        return Err(refused(UpdateRefusal::Expired { expires, time }));
    }
    if envelope.issued > time.after(ISSUED_AHEAD_MAX) {
        let issued = envelope.issued;
        return Err(refused(UpdateRefusal::NotYetValid { issued, time }));
    }
    let mark = UpdateMark::of(&envelope, received.update);
    let payload = Bytes::from(received.joined());
    Ok(PushedUpdate { payload, target: envelope.target, mark, warning })
}

fn check_signature(
    signature: &Signed,
    key: &UpdateKey,
    received: &Received<'_>,
) -> anyhow::Result<()> {
    if signature.id() != key.id {
        bail!("it is signed by the key {}, and not by {}", signature.id(), key.id);
    }
    if !signature.is_of(key, received.update) {
        bail!("its bytes or its signature have changed since it was signed; sign it again");
    }
    Ok(())
}

/// A public key: the text itself, or minisign's file with it.
fn given_key(key: &str) -> anyhow::Result<UpdateKey> {
    if let Ok(key) = UpdateKey::parse(key) {
        return Ok(key);
    }
    key_of(Path::new(key))
}

fn key_of(path: &Path) -> anyhow::Result<UpdateKey> {
    let line = public_key_line(path)?;
    UpdateKey::parse(&line).map_err(|why| anyhow::anyhow!("{} {why}", path.display()))
}

/// The public key in a `.pub` file.
///
/// # Errors
/// If the file can't be read or has no key.
pub(super) fn public_key_line(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let bytes = files::read(path, PUBLIC_KEY_BYTES_MAX)
        .with_context(|| format!("{shown} is no public key, and no file that can be read"))?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().nth(1).unwrap_or_default();
    UpdateKey::parse(line).map_err(|why| anyhow::anyhow!("{shown} {why}"))?;
    Ok(line.to_owned())
}

/// The key of this signature among the `.pub` files beside the update and in the present folder.
fn key_beside(path: &Path, signature: &Signed) -> Option<UpdateKey> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folders = [folder.unwrap_or(Path::new(".")), Path::new(".")];
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let public = paths.filter(|path| path.extension().is_some_and(|end| end == "pub"));
    let keys = public.take(PUBLIC_KEYS_MAX).filter_map(|path| key_of(&path).ok());
    keys.into_iter().find(|key| key.id == signature.id())
}
