//! Foreign commands: programs that an `mcp.json` starts and that are no engine of this program.
//!
//! A command that answers prompts in its own process uses the `mcp.json` of the current folder if none
//! is named. That folder may be a stranger's, so its programs are not started unless the file is named.

use std::path::Path;

use anyhow::bail;

use crate::catalog::server::Endpoint;
use crate::config;
use crate::config::Config;

/// Most files that name each other with `--config FILE mcp`.
const DEPTH_MAX: usize = 4;

/// Refuses a configuration that was found by default and starts foreign commands.
///
/// # Errors
/// An error that names them.
pub(super) fn refuse(config: &Config, path: Option<&Path>) -> anyhow::Result<()> {
    if config::is_named(path) {
        return Ok(());
    }
    let commands = commands(config, DEPTH_MAX);
    if commands.is_empty() {
        return Ok(());
    }
    let (shown, commands) = (config.path.display(), commands.join("; "));
    bail!(
        "{shown} of this folder was not named and starts other programs: {commands}; if you trust it, \
         name it: --config {shown}"
    )
}

/// Writes the foreign commands of a configuration that was found by default into the log.
pub(super) fn log(config: &Config, path: Option<&Path>) {
    let commands = commands(config, DEPTH_MAX);
    if !config::is_named(path) && !commands.is_empty() {
        let (file, commands) = (config.path.display(), commands.join("; "));
        tracing::warn!(%file, commands, "the file of this folder starts other programs");
    }
}

/// The foreign commands, each as `NAME: COMMAND`. Arguments may contain the value of a variable.
fn commands(config: &Config, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for server in &config.catalog.servers {
        let Endpoint::Child { command, args, env, .. } = &server.endpoint else { continue };
        let (name, args): (_, Vec<&str>) =
            (&server.name, args.iter().map(String::as_str).collect());
        if !is_this_program(command) {
            found.push(format!("{name}: {command}"));
        } else if !env.is_empty() {
            // of the loader, for example
            found.push(format!("{name}: {command} with variables in env"));
        } else {
            match args.as_slice() {
                // the runtime is a library of any origin
                ["engine", rest @ ..] if !rest.iter().any(|a| a.starts_with("--runtime")) => {}
                ["--config", file, "mcp"] if depth > 0 => match load(file) {
                    Some(inner) => found.extend(commands(&inner, depth - 1)),
                    None => found.push(format!("{name}: {command} --config {file} mcp")),
                },
                _ => found.push(format!("{name}: {command} with other arguments than an engine's")),
            }
        }
    }
    found
}

fn load(file: &str) -> Option<Config> {
    let variables = config::variables().ok()?;
    config::load(Some(Path::new(file)), &variables).ok()
}

/// Whether the command is the running program.
fn is_this_program(command: &str) -> bool {
    let same = || {
        let own = std::env::current_exe().and_then(|own| own.canonicalize()).ok()?;
        // a command without a slash is looked up in PATH
        let named = Path::new(command).canonicalize().ok().filter(|_| command.contains('/'))?;
        Some(own == named)
    };
    command == "pilotlight" || same() == Some(true)
}
