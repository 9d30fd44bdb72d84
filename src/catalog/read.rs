//! The reader of `mcp.json`: text into a checked catalog, or every mistake in it.
//!
//! Each part of the file is deserialized by itself, so that a mistake in one does not conceal those
//! of the others. A check of values is skipped where the shape of the part is wrong already.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::catalog::{Catalog, Device, DeviceLimits, MqttPart, RESERVE_MB_MAX};
use super::expand::{Variables, expand};
use super::mistake::{FILE, Mistake, Mistakes, Scope};
use super::read_models;
use super::read_policy::CheckedPolicy;
use super::read_provider;
use super::read_server;
use super::read_task;
use super::secret;
use super::server::{Endpoint, ServerEntry};
use super::shape::{Members, entries, read_or_default};
use super::strict;
use super::strict::Scanned;
use crate::limits::call::CALLERS_MAX;
use crate::limits::models::{INTERFACE_BYTES_MAX, METERED_MAX};
use crate::limits::{SERVERS_MAX, ZONES_MAX};
use crate::pressure::limit::ZoneLimit;
use crate::request::name::is_name;

/// Keys that are reserved by the format and not implemented: refused, never ignored.
const NOT_IMPLEMENTED: [&str; 1] = ["fleet"];

/// The parts under `pilotlight`.
const PARTS: [&str; 10] = [
    "version",
    "device",
    "device_limits",
    "mqtt",
    "http",
    "servers",
    "providers",
    "models",
    "tasks",
    "policy",
];

/// Reads the text of an `mcp.json`, with the values of these variables.
///
/// Returns the catalog as far as it could be read, and every mistake with its place. The catalog is to be used only
/// if there is no mistake, or to look for further ones.
pub fn read(text: &str, variables: &Variables) -> (Catalog, Vec<Mistake>) {
    let mut mistakes = Mistakes::default();
    let Scanned { places, is_json } = strict::scan(text, &mut mistakes);
    let catalog = match serde_json::from_str(text) {
        Ok(file) if is_json => read_file(file, variables, &mut mistakes),
        Err(e) if is_json && mistakes.is_empty() => {
            let place = Some(places.place_of(e.line(), e.column()));
            let message = format!("{}{e}", strict::SYNTAX);
            mistakes.push(Mistake { place, ..Mistake::new(FILE, message) });
            Catalog::default()
        }
        Ok(_) | Err(_) => Catalog::default(),
    };
    let mut mistakes = mistakes.into_vec();
    places.locate(&mut mistakes);
    (catalog, mistakes)
}

fn read_file(file: Value, variables: &Variables, mistakes: &mut Mistakes) -> Catalog {
    let secrets = secret::variables(&file);
    let written = file.get("mcpServers").or(file.get("servers")).cloned().unwrap_or_default();
    let Value::Object(mut file) = expand_all(file, &mut mistakes.at(""), variables) else {
        mistakes.at(FILE).add("must be a JSON object");
        return Catalog::default();
    };
    let is_alias = !file.contains_key("mcpServers") && file.contains_key("servers");
    let servers = file.remove("mcpServers").or_else(|| file.remove("servers"));
    // for editors alone
    if file.shift_remove("$schema").is_some_and(|schema| !schema.is_string()) {
        mistakes.at("$schema").add("must be the URL or path of the JSON Schema of this file");
    }
    let mut ours = file.remove("pilotlight").unwrap_or(Value::Object(Map::new()));
    for key in file.keys() {
        let message =
            "unknown key; model servers belong under mcpServers, all else under pilotlight";
        mistakes.at(key).add(message);
    }
    refuse_not_implemented(&mut ours, mistakes);
    let parts = Members::read(ours, &PARTS, &mut mistakes.at("pilotlight"));
    let mut catalog = read_parts(servers, parts, mistakes);
    read_server::check_plain_text(&catalog.servers, &written, mistakes);
    if is_alias {
        mistakes.rename("mcpServers", "servers");
    }
    for server in &mut catalog.servers {
        if let Endpoint::Child { hidden, .. } = &mut server.endpoint {
            hidden.clone_from(&secrets);
        }
    }
    catalog
}

/// Expands the variables in every string; a string with a mistake stays as it is.
fn expand_all(value: Value, scope: &mut Scope<'_>, variables: &Variables) -> Value {
    match value {
        Value::String(text) => match expand(&text, variables) {
            Ok(text) => Value::String(text),
            Err(message) => {
                scope.add(message);
                Value::String(text)
            }
        },
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            items
                .map(|(i, item)| {
                    if is_literal(&item) {
                        item
                    } else {
                        expand_all(item, &mut scope.item(i), variables)
                    }
                })
                .collect()
        }
        Value::Object(map) => map
            .into_iter()
            .map(|(key, member)| {
                if is_literal(&member) {
                    return (key, member);
                }
                let member = expand_all(member, &mut scope.at(&key), variables);
                (key, member)
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// Whether a value has no variable, so that its path, which may be long, is not needed.
fn is_literal(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('$'),
        Value::Array(items) => items.iter().all(is_literal),
        Value::Object(map) => map.values().all(is_literal),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

fn refuse_not_implemented(ours: &mut Value, mistakes: &mut Mistakes) {
    for key in NOT_IMPLEMENTED {
        for place in ["", "policy", "device"] {
            let part = if place.is_empty() { Some(&mut *ours) } else { ours.get_mut(place) };
            let Some(Value::Object(part)) = part else { continue };
            if part.shift_remove(key).is_some() {
                let mut ours = mistakes.at("pilotlight");
                let message = "is not supported by this version; remove it";
                if place.is_empty() {
                    ours.at(key).add(message);
                } else {
                    ours.at(place).at(key).add(message);
                }
            }
        }
    }
}

fn read_parts(servers: Option<Value>, mut parts: Members, mistakes: &mut Mistakes) -> Catalog {
    let providers = parts.take("providers");
    let has_providers =
        providers.as_ref().and_then(Value::as_object).is_some_and(|all| !all.is_empty());
    // names of entries that are there and could not be read: naming them is no mistake
    let mut unread = BTreeSet::new();
    let entries_of_file = read_servers(servers, has_providers, &mut mistakes.at("mcpServers"));
    let ours = entries(parts.take("servers"), &mut mistakes.at("pilotlight").at("servers"));
    let mut servers = read_server::read(entries_of_file, ours, &mut unread, mistakes);
    let mut scope = mistakes.at("pilotlight");
    let providers = entries(providers, &mut scope.at("providers"));
    read_provider::read(providers, &mut servers, &mut unread, &mut scope.at("providers"));
    if servers.len() > SERVERS_MAX {
        let message = format!("there are {} models, at most {SERVERS_MAX}", servers.len());
        scope.at("providers").add(message);
    }
    check_fallbacks(&servers, &unread, &mut scope);
    let models = entries(parts.take("models"), &mut scope.at("models"));
    let models = read_models::read(models, &mut scope.at("models"));
    let tasks = entries(parts.take("tasks"), &mut scope.at("tasks"));
    let tasks = read_task::read(tasks, &mut scope.at("tasks"));
    let mut device_limits: DeviceLimits =
        read_or_default(parts.take("device_limits"), &mut scope.at("device_limits"));
    check_limits(&mut device_limits, &mut scope.at("device_limits"));
    let mqtt: MqttPart = read_or_default(parts.take("mqtt"), &mut scope.at("mqtt"));
    if mqtt.serve.as_ref().is_some_and(|topic| !read_server::is_topic(topic)) {
        scope.at("mqtt").at("serve").add(read_server::TOPIC_LEVELS);
    }
    check_callers(&mqtt, &mut scope.at("mqtt"));
    read_server::check_service_keys(&servers, &mut scope.at("servers"));
    let device: Device = read_or_default(parts.take("device"), &mut scope.at("device"));
    if device.group.as_ref().is_some_and(|group| !is_name(group)) {
        scope.at("device").at("group").add("must be [A-Za-z0-9_-]{1,64}");
    }
    let policy = CheckedPolicy::read(parts.take("policy"), &mut scope.at("policy"));
    Catalog {
        version: read_or_default(parts.take("version"), &mut scope.at("version")),
        servers,
        models,
        tasks,
        default_mode: policy.default_mode,
        furthest: policy.furthest,
        models_download: policy.models_download,
        apps: policy.apps,
        caps: policy.caps,
        redactor: policy.redactor,
        deadlines: policy.deadlines,
        device,
        device_limits,
        mqtt,
        http: read_or_default(parts.take("http"), &mut scope.at("http")),
    }
}

/// Callers are served by a worker alone, and have names of devices.
fn check_callers(mqtt: &MqttPart, scope: &mut Scope<'_>) {
    if mqtt.serve.is_none() {
        let without =
            "is for a worker, and this is none: set mqtt.serve to the topic of the service";
        if mqtt.callers.is_some() {
            scope.at("callers").add(without);
        }
        if mqtt.service_secret.is_some() {
            scope.at("service_secret").add(without);
        }
    }
    let callers = mqtt.callers.as_ref();
    for name in callers.into_iter().flat_map(|all| all.keys()).filter(|name| !is_name(name)) {
        scope.at("callers").at(name).add("must be the name of a device, [A-Za-z0-9_-]{1,64}");
    }
    if callers.is_some_and(|all| all.len() > CALLERS_MAX) {
        scope.at("callers").add(format!("has more than {CALLERS_MAX} entries"));
    }
}

/// The entries of `mcpServers`, which may be absent only if there are providers.
fn read_servers(
    servers: Option<Value>,
    has_providers: bool,
    scope: &mut Scope<'_>,
) -> Vec<(String, Value)> {
    let servers = servers.or_else(|| has_providers.then(|| Value::Object(Map::new())));
    let Some(Value::Object(map)) = servers else {
        scope.add("is required: an object with one entry per model server");
        return Vec::new();
    };
    if (map.is_empty() && !has_providers) || map.len() > SERVERS_MAX {
        scope.add(format!("has {} entries, must have 1 to {SERVERS_MAX}", map.len()));
    }
    map.into_iter().collect()
}

/// Fallbacks must name another existing server.
fn check_fallbacks(servers: &[ServerEntry], unread: &BTreeSet<String>, scope: &mut Scope<'_>) {
    for server in servers {
        let others = || servers.iter().filter(|other| other.name != server.name);
        for (at, name) in server.fallbacks.iter().enumerate() {
            if unread.contains(name) || others().any(|other| other.name == *name) {
                continue;
            }
            let is_provider = matches!(server.endpoint, Endpoint::Provider(_));
            let part = if is_provider { "providers" } else { "servers" };
            let known: Vec<&str> = others().map(|other| other.name.as_str()).collect();
            let message = format!(
                "fallbacks must name another existing model; {name:?} is unknown; there are: {}",
                known.join(", ")
            );
            scope.at(part).at(&server.name).at("fallbacks").item(at).add(message);
        }
    }
}

fn check_metered(limits: &DeviceLimits, scope: &mut Scope<'_>) {
    let all = limits.metered_interfaces.as_deref().unwrap_or_default();
    if all.len() > METERED_MAX {
        scope.add(format!("has {} entries, at most {METERED_MAX}", all.len()));
    }
    for (at, pattern) in all.iter().enumerate() {
        let is_name = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
        if !(1..=INTERFACE_BYTES_MAX).contains(&pattern.len()) || !pattern.chars().all(is_name) {
            scope.item(at).add(format!(
                "{pattern:?} is no name of a network interface, such as \"wwan0\" or \"wwan*\": 1 to \
                 {INTERFACE_BYTES_MAX} bytes"
            ));
        }
    }
}

fn check_limits(limits: &mut DeviceLimits, scope: &mut Scope<'_>) {
    let check = |low: f64, high: f64, scope: &mut Scope<'_>| {
        if !(20.0 <= low && low < high && high <= 120.0) {
            scope.add(format!(
                "[{low}, {high}] must be two temperatures from 20 to 120 °C in ascending order"
            ));
        }
    };
    if let Some((low, high)) = limits.heat_c {
        check(low, high, &mut scope.at("heat_c"));
    }
    if limits.zones.len() > ZONES_MAX {
        scope.at("zones").add(format!("has more than {ZONES_MAX} entries"));
    }
    for (name, limit) in &limits.zones {
        if let ZoneLimit::Between(low, high) = limit {
            check(*low, *high, &mut scope.at("zones").at(name));
        }
    }
    check_metered(limits, &mut scope.at("metered_interfaces"));
    // the kernel's types of zones have capitals on some boards and none on others
    let zones = std::mem::take(&mut limits.zones);
    limits.zones = zones.into_iter().map(|(name, limit)| (name.to_lowercase(), limit)).collect();
    for (name, value) in
        [("memory_floor_mb", limits.memory_reserve_mb), ("disk_floor_mb", limits.disk_reserve_mb)]
    {
        if value.is_some_and(|mb| mb > RESERVE_MB_MAX) {
            scope.at(name).add(format!("must be at most {RESERVE_MB_MAX}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mistakes(file: &Value) -> Vec<String> {
        let (_, mistakes) = read(&file.to_string(), &Variables::new());
        mistakes.iter().map(|one| format!("{}: {}", one.path, one.message)).collect()
    }

    #[test]
    fn mistakes_of_all_parts_are_found_at_once() {
        let file = json!({
            "mcpServers": {
                "a": {"comand": "x"},
                "b": {"command": "x", "args": [1, "y", 2]},
                "c": {"command": "x"},
            },
            "pilotlight": {
                "versoin": 1,
                "device": {"nmae": "a", "group": "a/b"},
                "device_limits": {"heat_c": "hot"},
                "mqtt": {"prefix": 3},
                "http": null,
                "servers": {"c": {"reach": "moon", "fallbacks": ["a", "big"]}},
                "providers": {"big": {"kind": "opnai", "base_url": 7}, "small": {"slots": 1}},
                "tasks": {
                    "t": {"max_token": 5, "rules": [{"when": "x", "label": "y"}]},
                    "u": {"template": ""},
                },
                "policy": {
                    "default_mode": "local_only",
                    "budget": {"usd_per_day": "1", "apps": {"x": {"usd": 1}}},
                    "redact": ["email", 5, {"name": "x"}],
                    "classes": {"batch": {"deadline": 1}, "vip": {}},
                    "fleet": {},
                },
            },
        });
        let found = mistakes(&file);
        let expected = [
            "pilotlight.policy.fleet: is not supported",
            "pilotlight.versoin: unknown field `versoin`, expected one of `version`, `device`",
            "mcpServers.a.comand: unknown field `comand`",
            "mcpServers.b.args[0]: invalid type: integer `1`",
            "mcpServers.b.args[2]: invalid type: integer `2`",
            "pilotlight.servers.c.reach: unknown variant `moon`",
            "pilotlight.providers.big: missing field `model`",
            "pilotlight.providers.big.kind: unknown variant `opnai`",
            "pilotlight.providers.big.base_url: invalid type: integer `7`",
            "pilotlight.providers.small: missing field `kind`",
            "pilotlight.providers.small: missing field `base_url`",
            "pilotlight.providers.small: missing field `model`",
            "pilotlight.tasks.t.max_token: unknown field `max_token`",
            "pilotlight.tasks.t.rules[0].when: \"x\" is not a valid condition",
            "pilotlight.tasks.t: missing field `template`",
            "pilotlight.tasks.u.template: is empty",
            "pilotlight.device_limits.heat_c: invalid type: string, expected",
            "pilotlight.mqtt.prefix: invalid type: integer `3`",
            "pilotlight.device.nmae: unknown field `nmae`",
            "pilotlight.policy.default_mode: unknown variant `local_only`",
            "pilotlight.policy.classes.batch.deadline: unknown field `deadline`",
            "pilotlight.policy.classes.vip: must be interactive",
            "pilotlight.policy.budget.usd_per_day: invalid type: string, expected",
            "pilotlight.policy.budget.apps.x.usd: unknown field `usd`",
            "pilotlight.policy.redact[1]: must be a name, or an object with name and pattern",
            "pilotlight.policy.redact[2]: must be a name, or an object with name and pattern",
            "pilotlight.http: invalid type: null",
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for nearest in ["comand", "versoin", "nmae", "opnai", "max_token", "local_only"] {
            let message = found.iter().find(|message| message.contains(&format!("`{nearest}`")));
            assert!(message.is_some_and(|m| m.contains("; the nearest is `")), "{message:?}");
        }
    }

    #[test]
    fn a_redaction_rule_is_named_by_its_index() {
        let own = json!({"name": "a b", "pattern": "x"});
        let file = json!({
            "mcpServers": {"a": {"command": "x"}},
            "pilotlight": {"policy": {"redact": ["email", "mail-address", own]}},
        });
        let expected = [
            "pilotlight.policy.redact[1]: \"mail-address\" is not one of email",
            "pilotlight.policy.redact[2]: name must be",
        ];
        let found = mistakes(&file);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
    }

    #[test]
    fn an_unreadable_server_can_still_be_named() {
        let file = json!({
            "mcpServers": {"a": {"command": 1}, "b": {"command": "x"}},
            "pilotlight": {"servers": {"a": {}, "b": {"fallbacks": ["a", "none"]}}},
        });
        let found = mistakes(&file);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].starts_with("mcpServers.a.command: "), "{found:#?}");
        assert!(found[1].starts_with("pilotlight.servers.b.fallbacks[1]: "), "{found:#?}");
    }
}
