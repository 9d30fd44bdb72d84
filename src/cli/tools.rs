//! `tools`: the pinned tools of MCP servers, and the approval of a change.

use std::path::Path;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::{DONE, NOT_READY, WRONG, loaded};
use crate::config::Config;
use crate::limits::REST_MAX;
use crate::store::tool_pins::{ToolPin, ToolPins};

#[derive(Debug, Subcommand)]
pub(super) enum ToolsCommand {
    /// Print the pinned tools of all servers.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Approve the tools of a server that have changed: it is called again.
    Approve {
        /// The server, as `mcp.json` names it.
        server: String,
        /// The digest that is approved, if another one has not come in the meantime (default: the present
        /// one).
        #[arg(long, value_name = "SHA256")]
        digest: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl ToolsCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// If there is no state folder, or its file can't be read or written.
    pub(super) fn run(&self, path: Option<&Path>) -> anyhow::Result<u8> {
        let Some(config) = loaded(path) else { return Ok(WRONG) };
        match self {
            ToolsCommand::List { json } => list(&pins(&config)?, *json),
            ToolsCommand::Approve { server, digest, json } => {
                approve(&pins(&config)?, server, digest.as_deref(), *json)
            }
        }
    }
}

fn pins(config: &Config) -> anyhow::Result<ToolPins> {
    let state = config.state.as_ref().context("there is no state folder; set PILOTLIGHT_STATE")?;
    Ok(ToolPins::new(Some(state)))
}

fn list(pins: &ToolPins, as_json: bool) -> anyhow::Result<u8> {
    let all = pins.list()?;
    if as_json {
        print_line!("{:#}", json!(all));
        return Ok(DONE);
    }
    if all.is_empty() {
        print_line!("no tool is pinned: no MCP server was called yet");
    }
    for pin in &all {
        let state = match (&pin.found, pin.is_stated) {
            (Some(_), _) => "quarantined",
            (None, true) => "pinned by mcp.json",
            (None, false) => "pinned",
        };
        let ToolPin { server, place, tool, pinned, found, .. } = pin;
        print_line!("{server} ({place}) {tool}: {state}");
        print_line!("  {} {:?}", pinned.digest, pinned.description);
        if let Some(found) = found {
            print_line!("  now {} {:?}", found.digest, found.description);
        }
    }
    Ok(DONE)
}

fn approve(
    pins: &ToolPins,
    server: &str,
    digest: Option<&str>,
    as_json: bool,
) -> anyhow::Result<u8> {
    let approved = pins.approve(server, digest)?;
    if as_json {
        print_line!("{:#}", json!(approved));
    }
    if !approved.is_empty() {
        for ToolPin { tool, pinned, .. } in approved.iter().filter(|_| !as_json) {
            print_line!("{server} {tool}: {} is approved", pinned.digest);
            print_line!("  a running service calls it within {} s", REST_MAX.as_secs());
        }
        return Ok(DONE);
    }
    let of_server: Vec<ToolPin> = pins.list()?;
    let of_server: Vec<&ToolPin> = of_server.iter().filter(|pin| pin.server == server).collect();
    let changed = of_server.iter().find_map(|pin| Some((pin, pin.found.as_ref()?)));
    let why = match changed {
        None if of_server.is_empty() => "no tool of it is pinned".to_owned(),
        None => "no tool of it has changed".to_owned(),
        Some((pin, found)) if pin.is_stated => {
            format!("mcp.json states the digest of {}; write {} there", pin.tool, found.digest)
        }
        Some((pin, found)) => format!("{} is {}, not that digest", pin.tool, found.digest),
    };
    print_error!("error: {server}: {why}");
    Ok(NOT_READY)
}
