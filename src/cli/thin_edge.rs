//! `thin-edge`: the commands of a configuration plugin of thin-edge.io, whose agent sends it signed
//! configurations. All but `get` are requests to the running service, which checks, tries and keeps them
//! itself.
//!
//! The commands, their arguments and their exit codes are those of
//! <https://thin-edge.github.io/thin-edge.io/extend/config-management/>.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::config_update::{device, service};
use super::{DONE, WRONG, loaded};
use crate::fleet::update::UpdateState;
use crate::limits::CONFIG_BYTES_MAX;
use crate::status::ConfigStatus;
use crate::store::files;

/// The only type of configuration.
const KIND: &str = "mcp.json";
/// The file in the agent's folder with the state before the update.
const BEFORE: &str = "before.json";

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// Print the types of configurations.
    List,
    /// Print the configuration that this device runs, without secrets.
    Get {
        /// Type.
        kind: String,
    },
    /// Check an update.signed, and note the present state.
    Prepare(FileArgs),
    /// Let the service try an update.signed.
    Set(FileArgs),
    /// Wait until it is kept.
    Verify(WorkArgs),
    /// Return to the noted state.
    Rollback(WorkArgs),
}

#[derive(Debug, Args)]
pub(super) struct FileArgs {
    /// Type.
    kind: String,
    /// The update.signed.
    file: PathBuf,
    /// Folder of the agent for this update.
    #[arg(long)]
    work_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct WorkArgs {
    /// Type.
    kind: String,
    /// Folder of the agent for this update.
    #[arg(long)]
    work_dir: PathBuf,
}

impl PluginCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// If it does not succeed: the agent then asks to return to the state before.
    pub(super) async fn run(self, path: Option<&Path>) -> anyhow::Result<u8> {
        match self {
            PluginCommand::List => print_line!("{KIND}"),
            PluginCommand::Get { kind } => {
                known(&kind)?;
                let Some(config) = loaded(path) else { return Ok(WRONG) };
                print_line!("{:#}", device::effective(&config)?);
            }
            PluginCommand::Prepare(args) => {
                known(&args.kind)?;
                let service = service::find(path)?;
                let state = service::state(&service).await?;
                let update = service::signed(&args.file)?;
                accepted(service::send(&service, "/config/check", update).await?)?;
                let text = serde_json::to_vec(&state)?;
                let noted = args.work_dir.join(BEFORE);
                files::replace(&noted, &text)
                    .with_context(|| format!("{} can't be written", noted.display()))?;
            }
            PluginCommand::Set(args) => {
                known(&args.kind)?;
                let (service, update) = (service::find(path)?, service::signed(&args.file)?);
                accepted(service::send(&service, "/config/apply", update).await?)?;
            }
            PluginCommand::Verify(args) => verify(path, &args).await?,
            PluginCommand::Rollback(args) => roll_back(path, &args).await?,
        }
        Ok(DONE)
    }
}

async fn verify(path: Option<&Path>, args: &WorkArgs) -> anyhow::Result<()> {
    known(&args.kind)?;
    let before = noted(args)?;
    let service = service::find(path)?;
    let state = service::ended(&service, service::state(&service).await?).await?;
    let reason = state.reason.as_deref().unwrap_or_default();
    ensure!(
        state.state == UpdateState::Kept && state.digest != before.digest,
        "the update is {}, and the device runs version {}: {reason}",
        state.state.name(),
        state.version
    );
    Ok(())
}

/// Returns to the noted state, unless the service has done so itself.
async fn roll_back(path: Option<&Path>, args: &WorkArgs) -> anyhow::Result<()> {
    known(&args.kind)?;
    let before = noted(args)?;
    let service = service::find(path)?;
    let mut state = service::state(&service).await?;
    if state.digest != before.digest {
        state = accepted(service::take_back(&service, false).await?)?;
    }
    ensure!(
        state.digest == before.digest,
        "the device runs version {}, not version {} as before",
        state.version,
        before.version
    );
    Ok(())
}

fn known(kind: &str) -> anyhow::Result<()> {
    if kind != KIND {
        bail!("there is no type {kind}; the one of this plugin is {KIND}");
    }
    Ok(())
}

/// The state that `prepare` has noted.
fn noted(args: &WorkArgs) -> anyhow::Result<ConfigStatus> {
    let path = args.work_dir.join(BEFORE);
    let text = files::read(&path, CONFIG_BYTES_MAX)
        .with_context(|| format!("{} can't be read; run prepare first", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn accepted(outcome: Result<ConfigStatus, Value>) -> anyhow::Result<ConfigStatus> {
    outcome.map_err(|refusal| {
        let text = |key: &str| refusal[key].as_str().unwrap_or_default().to_owned();
        anyhow::anyhow!("{}: {}", text("code"), text("message"))
    })
}
