//! `config`: keys and signatures of configurations for other devices, and the configurations of this one.

pub(super) mod device;
mod link;
mod push;
mod screen;
pub(super) mod service;
mod sign;
mod signed;
mod table;
mod trust;
mod verify;
mod watch;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::fleet::digest::Digest;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Generate a pair of keys in minisign's format.
    Keygen(KeygenArgs),
    /// Print a trust policy for this device: this key may push configurations, with the commands of its own
    /// mcp.json.
    Trust(trust::TrustArgs),
    /// Sign an mcp.json for a device, a group or a fleet.
    Sign(Box<SignArgs>),
    /// Show a signed configuration, and what this device would do with it.
    Verify(VerifyArgs),
    /// Let the running service of this device check and try a signed configuration, for example one from a
    /// USB stick, and wait for its end.
    Apply {
        /// The update.signed.
        file: PathBuf,
        /// Do not wait for the end of its trial.
        #[arg(long)]
        no_wait: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Publish a signed configuration to its devices, in stages if wanted, and watch until they have kept,
    /// refused or rolled it back.
    Push(Box<push::PushArgs>),
    /// Watch the states of all devices at the broker.
    Watch(watch::WatchArgs),
    /// Compare a configuration with the one that this device runs.
    Diff {
        /// An update.signed, an update.json or an mcp.json.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration that this device runs, without secrets.
    Show,
    /// Show the remote configurations of this device.
    History {
        /// Print JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// Return to the configuration before the last one, or end the trial of one.
    Rollback {
        /// Also lower the version floor, so that updates of higher versions are accepted again.
        #[arg(long)]
        allow_downgrade: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set the version floor again after a file of the state folder was lost. The service must not be
    /// running.
    Repair {
        /// Also forget the latest time that was seen: the clock was wrong once.
        #[arg(long)]
        reset_time: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct KeygenArgs {
    /// Path of the keys, without .key and .pub.
    #[arg(default_value = "pilotlight-fleet")]
    name: PathBuf,
    #[command(flatten)]
    password: PasswordArgs,
}

/// The password of a private key; asked for on the terminal if neither is given.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct PasswordArgs {
    /// The private key has no password: whoever reads its file can sign.
    #[arg(long)]
    no_password: bool,
    /// Read the password from the first line of this file.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// The mcp.json.
    file: PathBuf,
    /// The private key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// The version: higher than that of every update before (default: seconds since 1970).
    #[arg(long)]
    version: Option<u64>,
    /// Days until the update expires.
    #[arg(long, default_value_t = 30)]
    days: u64,
    /// Digest of the configuration that it replaces (default: any).
    #[arg(long, value_name = "SHA256", value_parser = parse_digest)]
    replaces: Option<Digest>,
    /// URL at which the devices fetch the file, instead of putting it into the update.
    #[arg(long)]
    url: Option<String>,
    /// Folder for update.json, update.json.minisig and update.signed.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    out: PathBuf,
    #[command(flatten)]
    password: PasswordArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct TargetArgs {
    /// The device that it is for.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// The group that it is for.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// The fleet that it is for.
    #[arg(long, value_name = "NAME")]
    fleet: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// update.signed, or update.json with its signature beside it.
    file: PathBuf,
    /// Trust policy (default: $`PILOTLIGHT_TRUST`).
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    Digest::try_from(text.to_owned())
}

impl ConfigCommand {
    /// Runs the command; `path` is that of this device's `mcp.json`.
    ///
    /// # Errors
    /// If a file can't be read or written, or what it holds is not accepted.
    pub(super) async fn run(self, path: Option<&Path>) -> anyhow::Result<u8> {
        match self {
            ConfigCommand::Keygen(keygen) => sign::keygen(&keygen),
            ConfigCommand::Trust(trust) => trust::print(path, &trust),
            ConfigCommand::Sign(sign) => sign::sign(&sign),
            ConfigCommand::Verify(verify) => verify::verify(path, &verify).await,
            ConfigCommand::Apply { file, no_wait, json } => {
                service::apply(path, &file, !no_wait, json).await
            }
            ConfigCommand::Push(push) => push::push(path, &push).await,
            ConfigCommand::Watch(watch) => watch::watch(path, &watch).await,
            ConfigCommand::Diff { file, json } => device::diff(path, &file, json),
            ConfigCommand::Show => device::show(path),
            ConfigCommand::History { json } => device::history(path, json),
            ConfigCommand::Rollback { allow_downgrade, json } => {
                device::roll_back(path, allow_downgrade, json).await
            }
            ConfigCommand::Repair { reset_time } => device::repair(path, reset_time),
        }
    }
}
