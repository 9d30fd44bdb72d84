//! The configuration that a device runs: the parts of the remote one, and the local file's own parts.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::trust::{Operation, Trust};

/// The parts of `pilotlight` that are always those of the local file: they say who the device is, how it
/// is reached, and what it can bear.
pub(super) const LOCAL_PARTS: [&str; 4] = ["device", "mqtt", "http", "device_limits"];
/// The parts of `pilotlight` that a remote configuration has.
pub(super) const REMOTE_PARTS: [&str; 6] =
    ["servers", "providers", "models", "tasks", "policy", "version"];

/// The text of the `mcp.json` that a device with this local file runs. The remote one has passed the
/// checks of its parts.
pub fn effective(local: &Value, remote: &Value, trust: &Trust) -> String {
    let mut whole = remote.clone();
    if let Some(servers) = whole.get_mut("mcpServers").and_then(Value::as_object_mut) {
        for server in servers.values_mut() {
            put_command(server, trust);
        }
    }
    let mut ours = match whole.get_mut("pilotlight").map(Value::take) {
        Some(Value::Object(map)) => map,
        Some(_) | None => Map::new(),
    };
    for part in LOCAL_PARTS {
        if let Some(value) = local["pilotlight"].get(part) {
            ours.insert(part.to_owned(), value.clone());
        }
    }
    put_tokens(&local["pilotlight"]["policy"]["apps"], &mut ours);
    if let Value::Object(whole) = &mut whole {
        whole.insert("pilotlight".to_owned(), Value::Object(ours));
    }
    format!("{whole:#}\n")
}

/// Replaces the name of a command by its path and arguments.
fn put_command(server: &mut Value, trust: &Trust) {
    let name = server["command"].as_str().unwrap_or_default();
    let Some(command) = trust.commands.get(name) else { return };
    server["command"] = command.path.clone().into();
    server["args"] = command.args.clone().into();
}

/// The tokens of applications are those of the local file.
fn put_tokens(local: &Value, ours: &mut Map<String, Value>) {
    for (name, app) in local.as_object().into_iter().flatten() {
        let Some(token) = app.get("http_token") else { continue };
        let mut at = ours.entry("policy").or_insert_with(|| Value::Object(Map::new()));
        for key in ["apps", name] {
            let Value::Object(map) = at else { return };
            at = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
        }
        if let Value::Object(app) = at {
            app.insert("http_token".to_owned(), token.clone());
        }
    }
}

/// What a remote configuration changes in that which runs. Its own version does not count, nor do the
/// parts that it can't have.
pub(super) fn changes(running: &Value, remote: &Value) -> BTreeSet<Operation> {
    let (running, remote) = (compared(running), compared(remote));
    let models = (running.1 != remote.1).then_some(Operation::Models);
    let others = (running.0 != remote.0).then_some(Operation::Config);
    models.into_iter().chain(others).collect()
}

/// What is compared: all parts but the models, and the models.
fn compared(config: &Value) -> (Value, Value) {
    let mut rest = config.clone();
    if let Some(file) = rest.as_object_mut() {
        file.shift_remove("$schema");
    }
    let mut models = Value::Null;
    if let Some(ours) = rest.get_mut("pilotlight").and_then(Value::as_object_mut) {
        models = ours.shift_remove("models").unwrap_or_default();
        for part in LOCAL_PARTS.into_iter().chain(["version"]) {
            ours.shift_remove(part);
        }
    }
    (rest, models)
}
