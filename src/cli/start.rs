//! Entry point: parses the command line, starts logging and runtime, and returns the exit code.
//!
//! It is in the library and not generic, so that the service is compiled once and not again in the
//! binary.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::prctl;
use tracing_subscriber::EnvFilter;

use super::{BROKE, Cli, UNREAD};
use crate::limits::LAST_CALLS_MAX;
use crate::net::tls;

/// Default log filter: `info` of Pilotlight, and warnings or errors of the libraries.
/// `rmcp::service` logs each closed connection as an error; the caller of the connection reports
/// it.
const LOG: &str =
    "info,rmcp=error,rmcp::service=off,llama-cpp-2=warn,ort=warn,mqtt5=error,rumqttc=warn";
/// Default log filter of short commands.
const LOG_QUIET: &str = "error,rmcp=off,llama-cpp-2=error,ort=error";
/// Filter of libraries that log whole messages, prompts among them; only `trace` includes them.
const VERBOSE_LIBRARIES: &str = "rmcp=error";

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(&cli);
    tls::install_provider();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(UNREAD),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(BROKE)
        }
    }
}

/// Whether the output pipe is closed.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // one thread: the service mostly waits, and an answer passes so many tasks that moving them
    // between cores costs more than it gains; the models compute in processes of their own
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("the async runtime cannot be started")?;
    let code = runtime.block_on(Box::pin(cli.run()));
    // required work has ended; a silent name server is not awaited
    runtime.shutdown_timeout(LAST_CALLS_MAX);
    code
}

/// Disables core dumps, which would contain keys and prompts, and access by processes of other
/// users.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn disable_core_dumps() -> anyhow::Result<()> {
    prctl::set_dumpable(false).context("core dumps cannot be disabled")
}

/// Starts logging on standard error; standard output is for answers and MCP.
fn start_logging(cli: &Cli) {
    let default = if cli.is_quiet() { LOG_QUIET } else { LOG };
    let filter = match std::env::var("PILOTLIGHT_LOG") {
        Ok(filter) if filter.to_ascii_lowercase().contains("trace") => filter,
        Ok(filter) => format!("{filter},{VERBOSE_LIBRARIES}"),
        Err(_) => default.to_owned(),
    };
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|error| {
        eprintln!("warning: PILOTLIGHT_LOG is not a valid log filter: {error}");
        EnvFilter::new(default)
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
