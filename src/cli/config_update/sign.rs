//! `config keygen` and `config sign`: what the manager of many devices does, offline.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

use super::{KeygenArgs, PasswordArgs, SignArgs, TargetArgs};
use crate::catalog::file_text;
use crate::catalog::read;
use crate::cli::{DONE, WRONG, print_mistakes};
use crate::clock;
use crate::fleet::boundary;
use crate::fleet::digest::{Digest, HexDigest};
use crate::fleet::envelope::{Envelope, RemoteText, UpdateConfig, UpdateVersion};
use crate::fleet::moment::Moment;
use crate::fleet::signature::{Received, UNTRUSTED_COMMENT, UpdateKey};
use crate::fleet::target::UpdateTarget;
use crate::limits::CONFIG_BYTES_MAX;
use crate::limits::fleet::VALID_DAYS_MAX;
use crate::store::files;

/// Longest file with a key or a password.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Where a private key names its key derivation function; zeros stand for none.
const KDF: std::ops::Range<usize> = 2..4;

/// Generates a pair of keys.
///
/// # Errors
/// If a file exists or can't be written.
pub(super) fn keygen(args: &KeygenArgs) -> anyhow::Result<u8> {
    let with_end = |end: &str| {
        let mut name = args.name.clone().into_os_string();
        name.push(end);
        std::path::PathBuf::from(name)
    };
    let (private, public) = (with_end(".key"), with_end(".pub"));
    for path in [&private, &public] {
        if path.exists() {
            bail!("{} exists; choose another name, or remove it", path.display());
        }
    }
    let pair = match args.password.read()? {
        Password::None => {
            without_password(KeyPair::generate_encrypted_keypair(Some(String::new()))?)?
        }
        Password::Given(password) => KeyPair::generate_encrypted_keypair(Some(password))?,
        // asks twice
        Password::Asked => KeyPair::generate_encrypted_keypair(None)?,
    };
    let text = pair.sk.to_box(Some("pilotlight fleet secret key"))?.into_string();
    write_new(&private, text.as_bytes(), 0o600)?;
    let text = pair.pk.to_box()?.into_string();
    write_new(&public, text.as_bytes(), 0o644)?;
    print_line!("{}: the private key; keep it off the devices", private.display());
    print_line!("{}: the public key", public.display());
    print_line!("On each device: pilotlight config trust {} --fleet NAME", public.display());
    Ok(DONE)
}

/// The pair with a private key that says that it has no password. The library leaves the name of the key
/// derivation function in it, so that minisign asks for a password.
fn without_password(pair: KeyPair) -> anyhow::Result<KeyPair> {
    let mut bytes = pair.sk.to_bytes();
    if let Some(kdf) = bytes.get_mut(KDF) {
        kdf.fill(0);
    }
    Ok(KeyPair { sk: SecretKey::from_bytes(&bytes)?, pk: pair.pk })
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let file = options.open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        if bytes.last() != Some(&b'\n') {
            file.write_all(b"\n")?;
        }
        file.sync_all()
    });
    file.with_context(|| format!("{} can't be written", path.display()))
}

enum Password {
    None,
    Given(String),
    Asked,
}

impl PasswordArgs {
    fn read(&self) -> anyhow::Result<Password> {
        let Some(path) = &self.password_file else {
            return Ok(if self.no_password { Password::None } else { Password::Asked });
        };
        let shown = path.display();
        let bytes = files::read(path, KEY_FILE_BYTES_MAX)
            .with_context(|| format!("{shown} can't be read"))?;
        let text = file_text::decode(&bytes).map_err(anyhow::Error::msg)?;
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(Password::Given(line.to_owned())),
            Some(_) | None => bail!("{shown} has no password in its first line"),
        }
    }
}

/// Reads a private key, with or without a password.
fn private_key(path: &Path, password: &PasswordArgs) -> anyhow::Result<SecretKey> {
    let shown = path.display();
    let bytes =
        files::read(path, KEY_FILE_BYTES_MAX).with_context(|| format!("{shown} can't be read"))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{shown} is no private key"))?;
    if let Some(key) = open_key(&text) {
        return Ok(key);
    }
    let password = match password.read()? {
        Password::None => bail!("{shown} has a password, or is no private key of minisign"),
        Password::Given(password) => Some(password),
        // the library asks
        Password::Asked => None,
    };
    let key = SecretKeyBox::from_string(&text).and_then(|key| key.into_secret_key(password));
    key.with_context(|| format!("{shown} can't be used"))
}

/// The private key of a file that has no password: its key derivation function is none.
fn open_key(text: &str) -> Option<SecretKey> {
    let bytes = STANDARD.decode(text.lines().nth(1)?).ok()?;
    SecretKey::from_bytes(&bytes).ok().filter(|_| bytes[KDF] == [0, 0])
}

impl TargetArgs {
    fn target(&self) -> anyhow::Result<UpdateTarget> {
        let kinds: [(_, fn(_) -> UpdateTarget); 3] = [
            (&self.device, UpdateTarget::Device),
            (&self.group, UpdateTarget::Group),
            (&self.fleet, UpdateTarget::Fleet),
        ];
        let named = kinds.into_iter().find_map(|(name, kind)| Some((name.clone()?, kind)));
        let (name, kind) = named.context("name one of --device, --group and --fleet")?;
        let shown = name.clone();
        let name = name.try_into().map_err(|why| anyhow::anyhow!("{shown:?} {why}"))?;
        Ok(kind(name))
    }
}

/// Signs a configuration.
///
/// # Errors
/// If a file can't be read or written, or an argument is not valid. Mistakes of the configuration are
/// printed, and nothing is signed then.
pub(super) fn sign(args: &SignArgs) -> anyhow::Result<u8> {
    let shown = args.file.display();
    let bytes = files::read(&args.file, CONFIG_BYTES_MAX)
        .with_context(|| format!("{shown} can't be read"))?;
    let text = file_text::decode(&bytes).map_err(|why| anyhow::anyhow!("{shown} {why}"))?;
    let mistakes = check(text);
    if !mistakes.is_empty() {
        print_mistakes("error", &mistakes);
        return Ok(WRONG);
    }
    if !(1..=VALID_DAYS_MAX).contains(&args.days) {
        bail!("--days must be 1 to {VALID_DAYS_MAX}");
    }
    let now = Moment(clock::since_epoch().as_secs());
    let version = UpdateVersion::try_from(args.version.unwrap_or(now.0));
    let config = match &args.url {
        None => UpdateConfig::Inline(text.to_owned()),
        Some(url) => UpdateConfig::Url(RemoteText {
            url: url.clone(),
            sha256: HexDigest(Digest::of(&bytes)),
            bytes: bytes.len() as u64,
        }),
    };
    let envelope = Envelope {
        target: args.target.target()?,
        version: version.map_err(anyhow::Error::msg)?,
        issued: now,
        expires: now.after(std::time::Duration::from_secs(args.days * 24 * 3600)),
        replaces: args.replaces,
        config,
    };
    let update = envelope.write().map_err(|why| anyhow::anyhow!("{why}"))?;
    let key = private_key(&args.key, &args.password)?;
    let signature = signature(&key, &update, now)?;
    fs::create_dir_all(&args.out)?;
    let received = Received { signature: signature.as_bytes(), update: &update };
    for (name, bytes) in [
        ("update.json", &update),
        ("update.json.minisig", &signature.clone().into_bytes()),
        ("update.signed", &received.joined()),
    ] {
        let path = args.out.join(name);
        fs::write(&path, bytes).with_context(|| format!("{} can't be written", path.display()))?;
    }
    let (target, version) = (&envelope.target, u64::from(envelope.version));
    print_line!(
        "{}: version {version} for the {target}, until {}",
        args.out.join("update.signed").display(),
        envelope.expires
    );
    Ok(DONE)
}

fn signature(key: &SecretKey, update: &[u8], now: Moment) -> anyhow::Result<String> {
    let public = PublicKey::from_secret_key(key)?;
    // what the stock tool writes, so that both are shown alike
    let comment = format!("timestamp:{}\tfile:update.json\thashed", now.0);
    let signed =
        minisign::sign(Some(&public), key, update, Some(&comment), Some(UNTRUSTED_COMMENT))?;
    let mut text = signed.into_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let own = UpdateKey::parse(&public.to_base64()).map_err(anyhow::Error::msg)?;
    let parsed = crate::fleet::signature::Signed::parse(text.as_bytes());
    let is_right = parsed.is_ok_and(|signed| signed.is_of(&own, update));
    if !is_right {
        bail!("the signature is not accepted by this program itself");
    }
    Ok(text)
}

/// All mistakes of a remote configuration that can be found without a device: its variables have values on
/// the devices alone.
fn check(text: &str) -> Vec<crate::catalog::mistake::Mistake> {
    let remote = match boundary::parse(text) {
        Ok(remote) => remote,
        Err(mistakes) => return mistakes,
    };
    let mistakes = boundary::check_parts(&remote);
    if !mistakes.is_empty() {
        return mistakes;
    }
    let (_, mistakes) = read::read(text, &boundary::any_value(&remote));
    mistakes
}
