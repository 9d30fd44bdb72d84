//! The command line: what can be asked of the one binary, and the commands that are not the
//! service itself.

#[macro_use]
mod say;

mod ask;
mod calibrate;
mod doctor;
mod engine;
mod explain;
mod live;
mod model;
mod simulate;
mod start;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use self::start::main;
use crate::catalog::mistake::Mistake;
use crate::config;
use crate::config::Config;
use crate::daemon;

/// It worked.
const DONE: u8 = 0;
/// Something broke.
const BROKE: u8 = 1;
/// The command line or the configuration is wrong.
const WRONG: u8 = 2;
/// The service is there and not ready, or not there.
const NOT_READY: u8 = 3;
/// The prompt was not answered.
const NOT_ANSWERED: u8 = 4;
/// Nobody reads what is printed: what a shell says of a program that SIGPIPE has ended.
const UNREAD: u8 = 141;

/// A small flame that is always on: a tiny language model on the device, the cloud only when it
/// must be.
#[derive(Debug, Parser)]
#[command(name = "pilotlight", version, after_help = AFTER)]
struct Cli {
    /// Path of mcp.json; else $`PILOTLIGHT_CONFIG`, else ./mcp.json.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "Exit codes: 0 it worked, 1 something broke, 2 the command line or the \
                     configuration is wrong, 3 the service is not ready, 4 the prompt was not \
                     answered; 141 nobody reads what is printed.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve {
        /// Answer with a scripted model instead of the configured ones.
        #[arg(long)]
        dry: bool,
    },
    /// Ask a prompt and print the answer as it comes.
    Ask(ask::AskArgs),
    /// Show how the running service is.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check an mcp.json and name every mistake in it.
    Check {
        /// The file; else the one of --config.
        file: Option<PathBuf>,
    },
    /// Look at this machine and say what is missing.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print this many samples of all sensors, one a second, as lines of JSON.
        #[arg(long, value_name = "COUNT")]
        samples: Option<u32>,
    },
    /// Set from how likely its words on an answer of the device is good enough for a task.
    Calibrate(calibrate::CalibrateArgs),
    /// Say a decision record in words, and decide again from its figures.
    Explain(explain::ExplainArgs),
    /// Let our judge decide over a day of a simulated board.
    Simulate(simulate::SimulateArgs),
    /// Be an MCP server on standard input and output.
    Mcp,
    /// Work with model files.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// One model in this process, as an MCP server on standard input and output.
    #[command(hide = true)]
    Engine(engine::EngineArgs),
}

impl Cli {
    /// Whether this process speaks MCP on its standard output, or is a short command: less is
    /// logged.
    fn is_quiet(&self) -> bool {
        match self.command {
            Command::Serve { .. } | Command::Engine(_) => false,
            Command::Ask(_)
            | Command::Status { .. }
            | Command::Check { .. }
            | Command::Doctor { .. }
            | Command::Calibrate(_)
            | Command::Explain(_)
            | Command::Simulate(_)
            | Command::Mcp
            | Command::Model(_)
            | Command::Completions { .. } => true,
        }
    }

    /// Carries the command out.
    ///
    /// # Errors
    /// What the operator must know.
    async fn run(self) -> anyhow::Result<ExitCode> {
        let path = self.config.as_deref();
        let code = match self.command {
            Command::Serve { dry } => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                let config = if dry { config::dry(config) } else { config };
                daemon::run(config).await?;
                DONE
            }
            Command::Ask(ask) => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                ask.run(config).await?
            }
            Command::Status { json } => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                status::run(&config, json).await?
            }
            Command::Check { file } => check(file.as_deref().or(path))?,
            Command::Doctor { samples: Some(count), .. } => doctor::samples(path, count).await?,
            Command::Doctor { json, samples: None } => doctor::run(path, json).await?,
            Command::Calibrate(calibrate) => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                calibrate.run(config).await?
            }
            Command::Explain(explain) => explain.run()?,
            Command::Simulate(simulate) if simulate.is_live() => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                simulate.run(Some(config)).await?
            }
            Command::Simulate(simulate) => simulate.run(None).await?,
            Command::Mcp => {
                let Some(config) = loaded(path) else {
                    return Ok(ExitCode::from(WRONG));
                };
                engine::whole(config).await?;
                DONE
            }
            Command::Model(command) => {
                command.run()?;
                DONE
            }
            Command::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Cli::command(),
                    "pilotlight",
                    &mut std::io::stdout(),
                );
                DONE
            }
            Command::Engine(engine) => {
                engine.run().await?;
                DONE
            }
        };
        Ok(ExitCode::from(code))
    }
}

/// The configuration, or every mistake in it on standard error.
fn loaded(path: Option<&std::path::Path>) -> Option<Config> {
    if let Err(error) = start::leave_no_core() {
        eprintln!("error: {error:#}");
        return None;
    }
    let config = config::variables().and_then(|variables| config::load(path, &variables));
    match config {
        Ok(config) => {
            tell("warning", &config.warnings);
            Some(config)
        }
        Err(mistakes) => {
            tell("error", &mistakes);
            None
        }
    }
}

fn tell(kind: &str, mistakes: &[Mistake]) {
    for mistake in mistakes {
        eprintln!("{kind}: {mistake}");
    }
}

fn check(path: Option<&std::path::Path>) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else {
        return Ok(WRONG);
    };
    let count = config.catalog.servers.len();
    say!("{}: no mistakes, {count} model server(s)", config.path.display());
    Ok(DONE)
}
