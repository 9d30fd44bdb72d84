//! Entry point: parses the command line, starts logging and runtime, and returns the exit code.
//!
//! It is in the library and not generic, so that the service is compiled once and not again in the
//! binary.

use std::fmt::{Debug, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::prctl;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::format::Writer;

use super::output::Escaping;
use super::{BROKE, Cli, UNREAD};
use crate::config;
use crate::limits::LAST_CALLS_MAX;
use crate::net::tls;

/// Default log filter: `info` of Pilotlight, and warnings or errors of the libraries.
/// `rmcp::service` logs each closed connection as an error; the caller of the connection reports
/// it.
const LOG: &str =
    "info,rmcp=error,rmcp::service=off,llama-cpp-2=warn,ort=warn,mqtt5=error,rumqttc=error";
/// Default log filter of short commands.
const LOG_QUIET: &str = "error,rmcp=off,llama-cpp-2=error,ort=error";
/// Filter of libraries that log whole messages, prompts among them; only `trace` includes them.
const VERBOSE_LIBRARIES: &str = "rmcp=error";

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.config.is_some() {
        config::set_named();
    }
    start_logging(&cli);
    tls::install_provider();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(UNREAD),
        Err(error) => {
            print_error!("error: {error:#}");
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
        print_error!("warning: PILOTLIGHT_LOG is not a valid log filter: {error}");
        EnvFilter::new(default)
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(format::debug_fn(write_field).delimited(" "))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Writes one field of a log line, escaped: a value may be the text of a model or a server.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let name = field.name();
    // facts about a record of the `log` crate, which the line has already
    if name.starts_with("log.") {
        return Ok(());
    }
    if name != "message" {
        write!(writer, "{name}=")?;
    }
    write!(Escaping(writer), "{value:?}")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_line_has_nothing_that_a_terminal_obeys() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(format::debug_fn(write_field).delimited(" "))
            .with_ansi(true)
            .with_writer(move || writer.clone());
        let text = "\x1b[2J\u{9b}31m\u{202e}\r\n2000-01-01 ERROR forged";
        tracing::subscriber::with_default(subscriber.finish(), || {
            tracing::warn!(reason = text, error = %text, ms = 7, "said: {text}");
        });
        let line = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(line.lines().count(), 1, "{line:?}");
        for raw in ["\x1b[2J", "\u{9b}", "\u{202e}", "\r"] {
            assert!(!line.contains(raw), "{raw:?} is in {line:?}");
        }
        for part in ["said: ", " reason=\"", " error=\\u{1b}[2J", " ms=7"] {
            assert!(line.contains(part), "{part} is not in {line:?}");
        }
    }
}
