//! What a remote configuration may not do. The local `mcp.json` and the trust policy are the ceiling:
//! whoever has a key can narrow what the device does, and never free it.
//!
//! The checks are of the effective catalog where they concern a meaning, and of the remote text where they
//! concern what it brings itself.

mod policy;
mod servers;

use serde_json::Value;

use super::local::LocalConfig;
use super::merge::{LOCAL_PARTS, REMOTE_PARTS};
use super::strict;
use super::trust::Trust;
use crate::catalog::catalog::Catalog;
use crate::catalog::expand::{self, Variables};
use crate::catalog::mistake::{Mistake, Mistakes, Scope};
use crate::limits::fleet::REMOTE_CONFIG_DEPTH_MAX;

/// The keys of a remote configuration; `$schema` is for editors alone.
const FILE_KEYS: [&str; 3] = ["mcpServers", "pilotlight", "$schema"];

/// Parses a remote configuration.
///
/// # Errors
/// One mistake: it is not valid JSON, too deep, or ambiguous because of a duplicate key.
pub fn parse(text: &str) -> Result<Value, Vec<Mistake>> {
    strict::parse(text, REMOTE_CONFIG_DEPTH_MAX).map_err(|message| {
        let mut mistakes = Mistakes::default();
        mistakes.at("config").add(message);
        mistakes.into_vec()
    })
}

/// A value for each variable that a remote configuration uses, to check all else on a machine that has
/// none of them.
pub fn any_value(remote: &Value) -> Variables {
    let mut found = Variables::new();
    each_text(remote, &mut Mistakes::default().at(""), &mut |text, _| {
        found.extend(expand::names(text).map(|name| (name.to_owned(), "any".to_owned())));
    });
    found
}

/// The parts that a remote configuration has and may not have.
pub fn check_parts(remote: &Value) -> Vec<Mistake> {
    let mut mistakes = Mistakes::default();
    let Value::Object(file) = remote else {
        mistakes.at("config").add("must be a JSON object");
        return mistakes.into_vec();
    };
    for key in file.keys().filter(|key| !FILE_KEYS.contains(&key.as_str())) {
        mistakes
            .at(key)
            .add("a remote configuration has mcpServers and pilotlight alone; remove it");
    }
    if file.get("pilotlight").is_some_and(|ours| !ours.is_object()) {
        mistakes.at("pilotlight").add("must be a JSON object");
    }
    for key in remote["pilotlight"].as_object().into_iter().flat_map(|ours| ours.keys()) {
        let mut scope = mistakes.at("pilotlight");
        let mut scope = scope.at(key);
        if LOCAL_PARTS.contains(&key.as_str()) {
            scope.add("is always that of the device's own mcp.json; remove it");
        } else if !REMOTE_PARTS.contains(&key.as_str()) {
            let known = REMOTE_PARTS.join(", ");
            scope.add(format!("is no part of a remote configuration; the parts are {known}"));
        }
    }
    mistakes.into_vec()
}

/// What the remote configuration does and may not do: `effective` is the catalog that the device would
/// run, `remote` the text of the update. Without a catalog, because it has mistakes, only the text is checked.
pub fn check(
    local: LocalConfig<'_>,
    effective: Option<&Catalog>,
    remote: &Value,
    trust: &Trust,
) -> Vec<Mistake> {
    let mut mistakes = Mistakes::default();
    servers::check_text(local, remote, trust, &mut mistakes);
    policy::check_text(remote, &mut mistakes);
    if let Some(effective) = effective {
        servers::check(local.catalog, effective, trust, &mut mistakes);
        policy::check(local.catalog, effective, trust, &mut mistakes);
    }
    mistakes.into_vec()
}

/// Calls `visit` with each string of a value and its path.
fn each_text(value: &Value, scope: &mut Scope<'_>, visit: &mut dyn FnMut(&str, &mut Scope<'_>)) {
    match value {
        Value::String(text) => visit(text, scope),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                each_text(item, &mut scope.item(at), visit);
            }
        }
        Value::Object(map) => {
            for (key, member) in map {
                each_text(member, &mut scope.at(key), visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
