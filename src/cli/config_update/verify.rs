//! `config verify`: what a signed configuration is, and what this device would do with it, check by check.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use super::VerifyArgs;
use super::device::{local_file, now, running, slots};
use crate::cli::{DONE, WRONG, loaded, print_mistakes};
use crate::config::{self, Config};
use crate::fleet::check::{self, Memory, Verified};
use crate::fleet::envelope::UpdateConfig;
use crate::fleet::local::LocalConfig;
use crate::fleet::refusal::{CheckStep, UpdateRefusal};
use crate::fleet::signature::Received;
use crate::fleet::trust::Trust;
use crate::limits::fleet::{SIGNATURE_BYTES_MAX, SIGNED_BYTES_MAX};
use crate::net::{public, tls};
use crate::store::{files, trust_file};

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Verification<'r> {
    accepted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    mistakes: Vec<String>,
    checks: Vec<(&'static str, &'static str)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Shows what an update is and what would become of it. Nothing is changed.
///
/// # Errors
/// If a file can't be read.
pub(super) async fn verify(path: Option<&Path>, args: &VerifyArgs) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    let trust = match trust(&config, args)? {
        Ok(trust) => trust,
        Err(mistakes) => {
            print_mistakes("error", &mistakes);
            return Ok(WRONG);
        }
    };
    let slots = slots(&config)?;
    let (file, digest) = local_file(&config)?;
    let group = config.catalog.device.group.as_deref();
    let memory = slots.memory(&config.device, group, now(), digest);
    let signed = Files::read(&args.file)?;
    let (verified, refusal) = match signed.check(&trust, &memory) {
        Ok(verified) => {
            let running = running(&config, &slots)?;
            let meaning = meaning(&verified, &trust, &config, &file, &running).await;
            (Some(verified), meaning.err())
        }
        Err(refusal) => (None, Some(refusal)),
    };
    show(args.json, verified.as_ref(), refusal.as_ref())?;
    Ok(if refusal.is_none() { DONE } else { WRONG })
}

fn trust(
    config: &Config,
    args: &VerifyArgs,
) -> anyhow::Result<Result<Trust, Vec<crate::catalog::mistake::Mistake>>> {
    let path = args.trust.as_ref().or(config.trust.as_ref());
    let path = path.context(
        "this device has no trust policy and refuses every remote configuration; set \
         PILOTLIGHT_TRUST or --trust",
    )?;
    Ok(trust_file::read(path))
}

/// An update and its signature, from one file or two.
pub(super) struct Files {
    update: Vec<u8>,
    signature: Option<Vec<u8>>,
}

impl Files {
    /// Reads `update.signed`, or `update.json` with the signature beside it.
    ///
    /// # Errors
    /// If a file can't be read, or there is no signature.
    pub(super) fn read(path: &Path) -> anyhow::Result<Files> {
        let shown = path.display();
        // a larger file is refused, and not read
        let most = SIGNED_BYTES_MAX as u64;
        let update = files::read(path, most).with_context(|| format!("{shown} can't be read"))?;
        if update.starts_with(b"untrusted comment:") {
            return Ok(Files { update, signature: None });
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".minisig");
        let beside = PathBuf::from(beside);
        let Ok(signature) = files::read(&beside, SIGNATURE_BYTES_MAX as u64) else {
            bail!("{shown} has no signature, and there is no {}", beside.display());
        };
        Ok(Files { update, signature: Some(signature) })
    }

    fn check(&self, trust: &Trust, memory: &Memory) -> Result<Verified, UpdateRefusal> {
        check::check(&self.received()?, trust, memory)
    }

    /// The update and its signature.
    ///
    /// # Errors
    /// If it is too large or has no signature.
    pub(super) fn received(&self) -> Result<Received<'_>, UpdateRefusal> {
        match &self.signature {
            Some(signature) => Ok(Received { signature, update: &self.update }),
            None => Received::of(&self.update),
        }
    }
}

async fn meaning(
    verified: &Verified,
    trust: &Trust,
    config: &Config,
    file: &Value,
    running: &Value,
) -> Result<(), UpdateRefusal> {
    let wrong = |error: anyhow::Error| UpdateRefusal::WrongContent(format!("{error:#}"));
    let text = match &verified.envelope.config {
        UpdateConfig::Inline(text) => text.clone(),
        UpdateConfig::Url(remote) => {
            tls::install_provider();
            public::fetch(remote, &trust.neighbours).await.map_err(wrong)?
        }
    };
    let variables = config::variables().map_err(UpdateRefusal::BadConfig)?;
    let catalog = &config.catalog;
    let local = LocalConfig { file, catalog, variables: &variables, running };
    let checked = check::meaning(verified, &text, trust, local)?;
    let commands = check::commands_of(&checked.text, trust);
    trust_file::check_programs(&commands).map_err(|error| wrong(error.into()))
}

fn show(
    as_json: bool,
    verified: Option<&Verified>,
    refusal: Option<&UpdateRefusal>,
) -> anyhow::Result<()> {
    let failed = refusal.map(UpdateRefusal::step);
    let checks = CheckStep::ALL.map(|(step, name)| {
        let outcome = match failed {
            Some(failed) if step == failed => "refused",
            Some(failed) if step > failed => "not reached",
            Some(_) | None => "ok",
        };
        (name, outcome)
    });
    let mistakes = refusal.map(UpdateRefusal::mistakes).unwrap_or_default();
    let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    if as_json {
        let result = Verification {
            accepted: refusal.is_none(),
            code: refusal.map(UpdateRefusal::code),
            reason: refusal.map(ToString::to_string),
            mistakes,
            checks: checks.to_vec(),
            key: verified.map(|verified| verified.authority.key.as_str()),
            version: verified.map(|verified| verified.envelope.version.into()),
            target: verified.map(|verified| verified.envelope.target.to_string()),
        };
        print_line!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    for (name, outcome) in checks {
        print_line!("{outcome:>11}  {name}");
    }
    if let Some(verified) = verified {
        let envelope = &verified.envelope;
        let version = u64::from(envelope.version);
        print_line!("version {version} for the {}", envelope.target);
        print_line!("issued {}, expires {}", envelope.issued, envelope.expires);
        print_line!("signed by {} ({})", verified.authority.key, verified.comment);
        print_line!("digest {}", verified.digest);
    }
    match refusal {
        None => print_line!("this device would put it on trial"),
        Some(refusal) => {
            print_line!("refused ({}): {refusal}", refusal.code());
            for mistake in &mistakes {
                print_line!("  {mistake}");
            }
        }
    }
    Ok(())
}
