//! A manager's key, and configurations that are signed with it by the program itself.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::service::program;

/// The digest of a file, as a trust policy has it.
pub fn sha256(path: &str) -> String {
    format!("{:x}", Sha256::digest(std::fs::read(path).unwrap()))
}

/// Generates the pair of keys `ops` in this folder; returns the public one.
pub async fn keygen(folder: &Path) -> String {
    run(folder, &["config", "keygen", "ops", "--no-password"]).await;
    let public = std::fs::read_to_string(folder.join("ops.pub")).unwrap();
    public.lines().nth(1).unwrap().to_owned()
}

/// Signs a configuration with the key of this folder; returns the `update.signed`.
pub async fn sign(folder: &Path, config: &Value, target: [&str; 2], version: u64) -> Vec<u8> {
    std::fs::write(folder.join("remote.json"), config.to_string()).unwrap();
    let version = version.to_string();
    let args = ["config", "sign", "remote.json", "--key", "ops.key", "--no-password"];
    run(folder, &[args.as_slice(), &target, &["--version", &version]].concat()).await;
    std::fs::read(folder.join("update.signed")).unwrap()
}

async fn run(folder: &Path, args: &[&str]) {
    let (code, out, errors) = program(folder, args, &[]).await;
    assert_eq!(code, 0, "{args:?}: {out}{errors}");
}
