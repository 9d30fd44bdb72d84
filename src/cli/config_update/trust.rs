//! `config trust`: a trust policy for this device, with a manager's key and the commands that its own `mcp.json`
//! has.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::device::local_file;
use super::signed::public_key_line;
use crate::cli::{DONE, WRONG, loaded, print_mistakes};
use crate::fleet::digest::HexDigest;
use crate::fleet::trust::{OWN_PROGRAM, Trust};
use crate::limits::fleet::{TRIAL_JOBS, TRIAL_MAX};
use crate::request::name::is_name;
use crate::store::trust_file;

#[derive(Debug, Args)]
pub(in crate::cli) struct TrustArgs {
    /// The manager's public key: the .pub file of `config keygen` or of minisign.
    key: PathBuf,
    /// The fleet that this device belongs to.
    #[arg(long, value_name = "NAME")]
    fleet: String,
}

/// Prints the policy. The commands of the device's own `mcp.json` are allowed under the names of their
/// servers; a program that can't be pinned is left out, with a warning.
///
/// # Errors
/// If a file can't be read or is not valid.
pub(super) fn print(path: Option<&Path>, args: &TrustArgs) -> anyhow::Result<u8> {
    if !is_name(&args.fleet) {
        bail!("--fleet {:?} must be [A-Za-z0-9_-]{{1,64}}", args.fleet);
    }
    let key = public_key_line(&args.key)?;
    let name = args.key.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_name(stem));
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    let (file, _) = local_file(&config)?;
    let policy = json!({
        "fleet": args.fleet,
        "keys": {name.unwrap_or("manager"): {
            "public_key": key,
            "targets": ["device", "group", "fleet"],
            "operations": ["config", "models"],
            "longest_days": 30,
        }},
        "commands": commands(&file["mcpServers"]),
        "trial": {"good_jobs": TRIAL_JOBS, "seconds": TRIAL_MAX.as_secs()},
    });
    let text = format!("{policy:#}");
    if let Err(mistakes) = Trust::read(text.as_bytes()) {
        print_mistakes("error", &mistakes);
        return Ok(WRONG);
    }
    print_line!("{text}");
    Ok(DONE)
}

fn commands(servers: &Value) -> Map<String, Value> {
    let mut found = Map::new();
    for (name, server) in servers.as_object().into_iter().flatten() {
        let Some(command) = server["command"].as_str() else { continue };
        let args = server.get("args").cloned().unwrap_or_else(|| json!([]));
        if command == OWN_PROGRAM && is_name(name) {
            found.insert(name.clone(), json!({"path": command, "args": args}));
            continue;
        }
        match pinned(name, command) {
            Ok((path, sha256)) => {
                let sha256 = HexDigest(sha256);
                found.insert(name.clone(), json!({"path": path, "sha256": sha256, "args": args}));
            }
            Err(error) => print_error!("warning: the command of {name} is left out: {error:#}"),
        }
    }
    found
}

/// The absolute path and the digest of a program.
fn pinned(name: &str, command: &str) -> anyhow::Result<(PathBuf, crate::fleet::digest::Digest)> {
    if !is_name(name) {
        bail!("the name of the server must be [A-Za-z0-9_-]{{1,64}}");
    }
    let path = program(command).with_context(|| format!("{command:?} is not found"))?;
    let digest = trust_file::digest_of_program(&path);
    let digest = digest.with_context(|| format!("{}", path.display()))?;
    Ok((path, digest))
}

/// The file of a command, as the service would start it.
fn program(command: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return Path::new(command).canonicalize().ok();
    }
    let folders = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&folders).map(|folder| folder.join(command));
    places.find(|place| place.is_file())?.canonicalize().ok()
}
