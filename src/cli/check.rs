//! `check`: the mistakes of an `mcp.json`, for people and for programs.

use std::path::Path;

use super::{DONE, WRONG, loaded, print_mistakes, start};
use crate::catalog::mistake::Mistake;
use crate::catalog::server::{Endpoint, ServerEntry};
use crate::config::{self, Config};
use crate::store::trust_file;

/// Checks the configuration. With `as_json` the mistakes are a list on standard output, which is empty for
/// a valid file; warnings are text on standard error in any case.
///
/// # Errors
/// If the output cannot be written.
pub(super) fn run(path: Option<&Path>, as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        return list(path);
    }
    let Some(config) = loaded(path) else {
        return Ok(WRONG);
    };
    let trust = trust_mistakes(&config);
    if !trust.is_empty() {
        print_mistakes("error", &trust);
        return Ok(WRONG);
    }
    let is_provider = |server: &&ServerEntry| matches!(server.endpoint, Endpoint::Provider(_));
    let providers = config.catalog.servers.iter().filter(is_provider).count();
    let servers = config.catalog.servers.len() - providers;
    print_line!(
        "{}: valid, {servers} model server(s), {providers} provider(s)",
        config.path.display()
    );
    Ok(DONE)
}

/// The mistakes of the trust policy, without which the service refuses each remote configuration.
fn trust_mistakes(config: &Config) -> Vec<Mistake> {
    let Some(file) = &config.trust else { return Vec::new() };
    let mut mistakes = trust_file::read(file).err().unwrap_or_default();
    for mistake in &mut mistakes {
        mistake.path = format!("{}: {}", file.display(), mistake.path);
    }
    mistakes
}

fn list(path: Option<&Path>) -> anyhow::Result<u8> {
    start::disable_core_dumps()?;
    let config = config::variables().and_then(|variables| config::load(path, &variables));
    let mistakes = match config {
        Ok(config) => {
            print_mistakes("warning", &config.warnings);
            trust_mistakes(&config)
        }
        Err(mistakes) => mistakes,
    };
    let all: Vec<_> = mistakes.iter().map(Mistake::report).collect();
    print_line!("{}", serde_json::to_string_pretty(&all)?);
    Ok(if all.is_empty() { DONE } else { WRONG })
}
