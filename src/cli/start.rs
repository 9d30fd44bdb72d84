//! The program's beginning and end: command line, logging, runtime, exit code.
//!
//! It lies in the library and is no generic, so that the whole of the service is compiled once and
//! not again in the binary.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::prctl;
use tracing_subscriber::EnvFilter;

use super::{BROKE, Cli, UNREAD};
use crate::limits::LAST_CALLS_MAX;
use crate::net::tls;

/// What is logged if nobody says: our own affairs, and only the troubles of the libraries. What
/// `rmcp::service` calls an error is a line that has gone; who needed it says so.
const LOG: &str =
    "info,rmcp=error,rmcp::service=off,llama-cpp-2=warn,ort=warn,mqtt5=error,rumqttc=warn";
/// The same for short commands.
const LOG_QUIET: &str = "error,rmcp=off,llama-cpp-2=error,ort=error";
/// Libraries that print whole messages, prompts among them: they are heard with `trace` only.
const TALKATIVE: &str = "rmcp=error";

/// Reads the command line of this process, carries it out and says how it went.
pub fn main() -> ExitCode {
    let line = Cli::parse();
    start_logging(&line);
    tls::install_provider();
    match run(line) {
        Ok(code) => code,
        Err(error) if is_unread(&error) => ExitCode::from(UNREAD),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(BROKE)
        }
    }
}

/// Whether nobody reads our output any more.
fn is_unread(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(line: Cli) -> anyhow::Result<ExitCode> {
    // one thread: the service waits most of the time, and an answer passes so many tasks that handing
    // them from core to core costs more than it gains; the models compute in processes of their own
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("the async runtime cannot be started")?;
    let code = runtime.block_on(Box::pin(line.run()));
    // what must be done was waited for; a name server that is silent is not
    runtime.shutdown_timeout(LAST_CALLS_MAX);
    code
}

/// A core dump would hold keys and prompts: the kernel writes none of this process, and lets nobody but
/// root look into it.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn leave_no_core() -> anyhow::Result<()> {
    prctl::set_dumpable(false).context("core dumps cannot be disabled")
}

/// Standard output belongs to answers and to MCP: logs go to standard error.
fn start_logging(line: &Cli) {
    let default = if line.is_quiet() { LOG_QUIET } else { LOG };
    let filter = match std::env::var("PILOTLIGHT_LOG") {
        Ok(wanted) if wanted.to_ascii_lowercase().contains("trace") => wanted,
        Ok(wanted) => format!("{wanted},{TALKATIVE}"),
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
