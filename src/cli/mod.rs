//! Command line: arguments, exit codes, and the commands besides the service.

#[macro_use]
mod output;

mod ask;
mod bench;
mod broker;
mod budget;
mod calibrate;
mod check;
mod config_update;
mod doctor;
mod engine;
mod engine_unit;
mod explain;
mod foreign;
mod golden;
mod key;
mod live;
mod model;
mod package_files;
mod ready;
mod reload;
mod running;
#[cfg(feature = "engine")]
mod sandbox_probe;
mod simulate;
mod start;
mod status;
mod thin_edge;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::start::main;
use crate::catalog::json_schema;
use crate::catalog::mistake::Mistake;
use crate::config;
use crate::config::Config;
use crate::config::source::ConfigSource;
use crate::daemon;

/// Success.
const DONE: u8 = 0;
/// Error.
const BROKE: u8 = 1;
/// Invalid command line or configuration.
const WRONG: u8 = 2;
/// The service is not ready or not reachable.
const NOT_READY: u8 = 3;
/// The prompt was not answered.
const NOT_ANSWERED: u8 = 4;
/// Output pipe closed: 128 + SIGPIPE, as a shell reports it.
const UNREAD: u8 = 141;

/// Small language model service for edge devices: answers on the device, asks a remote model only
/// if needed.
#[derive(Debug, Parser)]
#[command(name = "pilotlight", version, after_help = AFTER)]
struct Cli {
    /// Path of mcp.json (default: $`PILOTLIGHT_CONFIG`, else ./mcp.json, else /etc/pilotlight/mcp.json).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "Exit codes: 0 success, 1 error, 2 invalid command line or configuration, 3 \
                     service not ready, 4 prompt not answered, 141 output pipe closed.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve {
        /// Answer with a scripted model instead of the configured ones.
        #[arg(long)]
        dry: bool,
    },
    /// Send a prompt and print the answer while it is generated.
    Ask(ask::AskArgs),
    /// Show the state of the running service.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Wait until the running service is ready, or until its own models have answered a prompt.
    Ready(ready::ReadyArgs),
    /// Let the running service read its configuration again.
    Reload {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check an mcp.json and print its mistakes.
    Check {
        /// Print the mistakes as a JSON list of objects with path, line, column and message.
        #[arg(long)]
        json: bool,
        /// File to check (default: the file of --config).
        file: Option<PathBuf>,
    },
    /// Print the JSON Schema of mcp.json, for editors.
    Schema,
    /// Sign configurations for other devices, and look at those of this one.
    #[command(subcommand)]
    Config(config_update::ConfigCommand),
    /// Serve as a configuration plugin of thin-edge.io.
    #[command(subcommand)]
    ThinEdge(thin_edge::PluginCommand),
    /// Show and correct what counts as spent.
    #[command(subcommand)]
    Budget(budget::BudgetCommand),
    /// Check sensors, memory, model files and broker of this machine.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print COUNT samples of all sensors as JSON lines, one per second.
        #[arg(long, value_name = "COUNT")]
        samples: Option<u32>,
    },
    /// Print the public keys of this device for calls over MQTT; they are generated if there are none.
    Key {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Find and save a task's cascade threshold from labelled examples.
    Calibrate(calibrate::CalibrateArgs),
    /// Measure the speed, the memory and the energy of models on this machine.
    Bench(bench::BenchArgs),
    /// Let this device's own models answer the golden sets of the tasks, and print the scores.
    Golden {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Explain a decision record, and replay the decision from its figures.
    Explain(explain::ExplainArgs),
    /// Simulate routing on a board model.
    Simulate(simulate::SimulateArgs),
    /// Run an MCP server on standard input and output, with its own models.
    Mcp,
    /// Download, check, convert and quantize models.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Show and approve the pinned tools of MCP servers.
    #[command(subcommand)]
    Tools(tools::ToolsCommand),
    /// Print completions for a shell.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages and completions below a folder, for packages.
    #[command(hide = true)]
    PackageFiles {
        /// Folder.
        folder: PathBuf,
    },
    /// Run one model as an MCP server on standard input and output.
    #[command(hide = true)]
    Engine(engine::EngineArgs),
    /// Become the engine that the service asks for on standard input: for the unit pilotlight-engine@.
    #[command(hide = true)]
    EngineUnit,
}

impl Cli {
    /// Whether less is logged: for MCP on standard output and for short commands.
    fn is_quiet(&self) -> bool {
        match self.command {
            Command::Serve { .. } | Command::Engine(_) | Command::EngineUnit => false,
            Command::Ask(_)
            | Command::Status { .. }
            | Command::Ready(_)
            | Command::Reload { .. }
            | Command::Check { .. }
            | Command::Schema
            | Command::Config(_)
            | Command::ThinEdge(_)
            | Command::Budget(_)
            | Command::Doctor { .. }
            | Command::Key { .. }
            | Command::Bench(_)
            | Command::Calibrate(_)
            | Command::Golden { .. }
            | Command::Explain(_)
            | Command::Simulate(_)
            | Command::Mcp
            | Command::Model(_)
            | Command::Tools(_)
            | Command::PackageFiles { .. }
            | Command::Completions { .. } => true,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Any error that ends the command.
    async fn run(self) -> anyhow::Result<ExitCode> {
        let path = self.config.as_deref();
        let code = match self.command {
            Command::Serve { dry } => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                let config = if dry { config::dry(config) } else { config };
                foreign::log(&config, path);
                let path = path.map(Path::to_owned);
                let source = ConfigSource { path, is_dry: dry, update: None };
                Box::pin(daemon::run(config, source)).await?;
                DONE
            }
            Command::Ask(ask) => {
                let config = if ask.is_local() { loaded_to_start(path)? } else { loaded(path) };
                let Some(config) = config else {
                    return Ok(ExitCode::from(WRONG));
                };
                ask.run(config).await?
            }
            Command::Status { json } => status::run(path, json).await?,
            Command::Ready(ready) => ready.run(path).await?,
            Command::Reload { json } => reload::run(path, json).await?,
            Command::Budget(command) => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                command.run(&config).await?
            }
            Command::Check { json, file } => check::run(file.as_deref().or(path), json)?,
            Command::Schema => {
                print_line!("{}", json_schema::text());
                DONE
            }
            Command::Config(command) => command.run(path).await?,
            Command::ThinEdge(command) => command.run(path).await?,
            Command::Doctor { samples: Some(count), .. } => doctor::samples(path, count).await?,
            Command::Doctor { json, samples: None } => doctor::run(path, json).await?,
            Command::Key { json } => key::run(path, json)?,
            Command::Bench(bench) => Box::pin(bench.run(path)).await?,
            Command::Calibrate(calibrate) => {
                let Some(config) = loaded_to_start(path)? else {
                    return Ok(ExitCode::from(WRONG));
                };
                calibrate.run(config).await?
            }
            Command::Golden { json } => {
                let Some(config) = loaded_to_start(path)? else {
                    return Ok(ExitCode::from(WRONG));
                };
                golden::run(config, json).await?
            }
            Command::Explain(explain) => explain.run()?,
            Command::Simulate(simulate) if simulate.is_live() => {
                let Some(config) = loaded_to_start(path)? else {
                    return Ok(ExitCode::from(WRONG));
                };
                simulate.run(Some(config)).await?
            }
            Command::Simulate(simulate) => simulate.run(None).await?,
            Command::Mcp => {
                let Some(config) = loaded_to_start(path)? else {
                    return Ok(ExitCode::from(WRONG));
                };
                engine::serve_service(&config).await?;
                DONE
            }
            Command::Model(command) => command.run(path).await?,
            Command::Tools(command) => command.run(path)?,
            Command::Completions { shell } => package_files::print_completions(shell),
            Command::PackageFiles { folder } => package_files::write(&folder)?,
            Command::Engine(engine) => {
                engine.run().await?;
                DONE
            }
            Command::EngineUnit => engine_unit::run()?,
        };
        Ok(ExitCode::from(code))
    }
}

/// Loads the configuration; its mistakes are printed on standard error.
fn loaded(path: Option<&std::path::Path>) -> Option<Config> {
    if let Err(error) = start::disable_core_dumps() {
        print_error!("error: {error:#}");
        return None;
    }
    let config = config::variables().and_then(|variables| config::load(path, &variables));
    match config {
        Ok(config) => {
            print_mistakes("warning", &config.warnings);
            Some(config)
        }
        Err(mistakes) => {
            print_mistakes("error", &mistakes);
            None
        }
    }
}

/// [`loaded`], for a command that starts the models itself.
///
/// # Errors
/// If it would start programs of a file that was not named.
fn loaded_to_start(path: Option<&std::path::Path>) -> anyhow::Result<Option<Config>> {
    let config = loaded(path);
    if let Some(config) = &config {
        foreign::refuse(config, path)?;
    }
    Ok(config)
}

/// Prints mistakes in the form of compilers, which editors and CI know: a place comes first.
fn print_mistakes(kind: &str, mistakes: &[Mistake]) {
    for mistake in mistakes {
        match (kind, &mistake.place) {
            ("error", Some(_)) => print_error!("{mistake}"),
            (_, Some(place)) => {
                print_error!("{place}: {kind}: {}: {}", mistake.path, mistake.message);
            }
            (_, None) => print_error!("{kind}: {mistake}"),
        }
    }
}
