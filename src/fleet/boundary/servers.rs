//! The servers, providers and models of a remote configuration: commands, files, URLs, secrets, localities
//! and prices.

use serde_json::Value;

use super::each_text;
use crate::catalog::catalog::Catalog;
use crate::catalog::expand;
use crate::catalog::mistake::{Mistakes, Scope};
use crate::catalog::server::{Endpoint, ServerEntry};
use crate::fleet::address::check_url;
use crate::fleet::local::LocalConfig;
use crate::fleet::places::{PlaceKind, is_local};
use crate::fleet::trust::{Trust, origin};
use crate::model::context::Locality;

/// Keys of `mcpServers` that belong to a command.
const COMMAND_KEYS: [&str; 2] = ["args", "env"];

pub(super) fn check_text(
    local: LocalConfig<'_>,
    remote: &Value,
    trust: &Trust,
    mistakes: &mut Mistakes,
) {
    let ours = &remote["pilotlight"];
    for (name, server) in members(&remote["mcpServers"]) {
        let mut scope = mistakes.at("mcpServers");
        let mut scope = scope.at(name);
        check_command(server, trust, &mut scope);
        check_place(server, (PlaceKind::Server, "url"), local.catalog, trust, &mut scope);
        let options = &ours["servers"][name.as_str()];
        if let Some(model) =
            options["model"].as_str().filter(|name| ours["models"].get(name).is_none())
        {
            let message = format!("{model:?} is not in pilotlight.models of this configuration");
            mistakes.at("pilotlight").at("servers").at(name).at("model").add(message);
        }
        if server.get("command").is_some() && options.get("memory_mb").is_some() {
            let message = "the arguments of an allowed command are fixed; write --memory-mb into the \
                           trust policy";
            mistakes.at("pilotlight").at("servers").at(name).at("memory_mb").add(message);
        }
    }
    for (name, provider) in members(&ours["providers"]) {
        let mut scope = mistakes.at("pilotlight");
        let mut scope = scope.at("providers");
        let mut scope = scope.at(name);
        let place = (PlaceKind::Provider, "base_url");
        check_place(provider, place, local.catalog, trust, &mut scope);
        check_ca(provider, local.catalog, &mut scope);
    }
    check_models(
        &ours["models"],
        local.catalog,
        trust,
        &mut mistakes.at("pilotlight").at("models"),
    );
    check_variables(local, remote, trust, mistakes);
}

pub(super) fn check(local: &Catalog, effective: &Catalog, trust: &Trust, mistakes: &mut Mistakes) {
    let is_capped = local.caps.is_bound() || trust.caps.is_bound();
    for server in &effective.servers {
        let is_provider = matches!(server.endpoint, Endpoint::Provider(_));
        let mut scope = mistakes.at("pilotlight");
        let mut scope = scope.at(if is_provider { "providers" } else { "servers" });
        check_entry(server, local, trust, is_capped, &mut scope.at(&server.name));
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// A command is the name of one in the trust policy, and has nothing else.
fn check_command(server: &Value, trust: &Trust, scope: &mut Scope<'_>) {
    for key in COMMAND_KEYS.iter().filter(|key| server.get(**key).is_some()) {
        scope.at(key).add("is fixed by the trust policy of the device; remove it");
    }
    let Some(command) = server.get("command") else { return };
    if command.as_str().is_some_and(|name| trust.commands.contains_key(name)) {
        return;
    }
    let known: Vec<&str> = trust.commands.keys().map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let message = format!(
        "must be the name of a command in the trust policy of the device; there are: {known}"
    );
    scope.at("command").add(message);
}

/// The URL of an entry; one that the local file has in such an entry is not checked.
fn check_place(
    entry: &Value,
    (kind, key): (PlaceKind, &str),
    local: &Catalog,
    trust: &Trust,
    scope: &mut Scope<'_>,
) {
    let Some(url) = entry.get(key).and_then(Value::as_str) else { return };
    if is_local(local, kind, url) {
        return;
    }
    if let Err(message) = check_url(url, &trust.neighbours) {
        scope.at(key).add(message);
    }
}

/// A file of certificate authorities is one that the local file names.
fn check_ca(entry: &Value, local: &Catalog, scope: &mut Scope<'_>) {
    let Some(ca) = entry.get("ca").and_then(Value::as_str) else { return };
    let of_server = |server: &ServerEntry| match &server.endpoint {
        Endpoint::Provider(provider) => provider.ca.as_deref() == Some(ca),
        Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Mqtt { .. } => false,
    };
    let is_known = local.servers.iter().any(of_server)
        || local.models.iter().any(|model| model.ca.as_deref() == Some(ca));
    if !is_known {
        scope.at("ca").add("must be a file that the device's own mcp.json names as ca");
    }
}

/// Models come from URLs, never from files of the device.
fn check_models(models: &Value, local: &Catalog, trust: &Trust, scope: &mut Scope<'_>) {
    for (name, model) in members(models) {
        let mut scope = scope.at(name);
        let place = (PlaceKind::Model, "source");
        check_place(model, place, local, trust, &mut scope);
        check_ca(model, local, &mut scope);
        for (at, file) in model["files"].as_array().into_iter().flatten().enumerate() {
            check_place(file, place, local, trust, &mut scope.at("files").item(at));
        }
    }
}

/// Variables and credentials are used in headers and keys alone, and sent to the hosts that get them by the
/// local file or the trust policy.
fn check_variables(local: LocalConfig<'_>, remote: &Value, trust: &Trust, mistakes: &mut Mistakes) {
    let mut remote = remote.clone();
    let taken = |entry: &mut Value, key: &str| {
        entry.as_object_mut().and_then(|entry| entry.shift_remove(key)).unwrap_or_default()
    };
    let parts: [(&str, &str, &[&str]); 2] = [
        ("mcpServers", "url", &["headers"]),
        ("pilotlight.providers", "base_url", &["key", "headers"]),
    ];
    for (part, url, secrets) in parts {
        let entries = match part {
            "mcpServers" => remote.get_mut("mcpServers"),
            _ => remote.get_mut("pilotlight").and_then(|ours| ours.get_mut("providers")),
        };
        for (name, entry) in entries.and_then(Value::as_object_mut).into_iter().flatten() {
            let to = entry[url].as_str().and_then(origin).map(|(origin, _)| origin);
            let to = to.unwrap_or_default();
            let mut scope = mistakes.at(part);
            let mut scope = scope.at(name);
            for secret in secrets {
                each_text(&taken(entry, secret), &mut scope.at(secret), &mut |text, scope| {
                    for name in secrets_in(text) {
                        if !may_get(local, trust, &to, name) {
                            scope.add(format!(
                                "would send {name} to {to}, which gets it neither by the device's \
                                 own mcp.json nor by secrets of the trust policy"
                            ));
                        }
                    }
                });
            }
        }
    }
    each_text(&remote, &mut mistakes.at(""), &mut |text, scope| {
        if text.contains("${") {
            let message = "a remote configuration may use a variable of the device in headers and key \
                           alone; write the value, or $$ for a dollar sign";
            scope.add(message);
        }
    });
}

/// The variables and the credential that a text names.
fn secrets_in(text: &str) -> impl Iterator<Item = &str> {
    expand::names(text).chain(text.starts_with("cred:").then_some(text))
}

/// Whether a host may get the value of a variable or credential.
fn may_get(local: LocalConfig<'_>, trust: &Trust, to: &str, name: &str) -> bool {
    if trust.secrets.get(name).is_some_and(|origins| origins.contains(to)) {
        return true;
    }
    let servers =
        local.file.get("mcpServers").or(local.file.get("servers")).unwrap_or(&Value::Null);
    let providers = &local.file["pilotlight"]["providers"];
    local.catalog.servers.iter().any(|server| {
        let (entry, keys, url): (_, &[&str], _) = match &server.endpoint {
            Endpoint::Http { url, .. } => (&servers[server.name.as_str()], &["headers"], &url.0),
            Endpoint::Provider(provider) => {
                (&providers[server.name.as_str()], &["key", "headers"], &provider.base_url)
            }
            Endpoint::Child { .. } | Endpoint::Mqtt { .. } => return false,
        };
        let mut uses = false;
        for key in keys {
            each_text(&entry[*key], &mut Mistakes::default().at(""), &mut |text, _| {
                uses |= secrets_in(text).any(|used| used == name);
            });
        }
        uses && origin(url).is_some_and(|(origin, _)| origin == to)
    })
}

/// Locality, key and price of one entry of the effective catalog.
fn check_entry(
    server: &ServerEntry,
    local: &Catalog,
    trust: &Trust,
    is_capped: bool,
    scope: &mut Scope<'_>,
) {
    let same: Vec<&ServerEntry> =
        local.servers.iter().filter(|own| is_same_place(&own.endpoint, &server.endpoint)).collect();
    let url = match &server.endpoint {
        // its locality is that of the device, whatever it is called
        Endpoint::Child { .. } => return,
        Endpoint::Http { url, .. } => Some(&url.0),
        Endpoint::Provider(provider) => Some(&provider.base_url),
        Endpoint::Mqtt { service_key, .. } => {
            let has_key = |own: &&&ServerEntry| match own.endpoint {
                Endpoint::Mqtt { service_key: own, .. } => own.is_some() && own != *service_key,
                Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Provider(_) => false,
            };
            if same.iter().any(|own| has_key(&own)) {
                scope.at("service_key").add("must be that of the device's own mcp.json");
            }
            None
        }
    };
    for (tool, digest) in same.iter().flat_map(|own| &own.tools) {
        if server.tools.get(tool) != Some(digest) {
            scope.at("tools").at(tool).add("must be that of the device's own mcp.json");
        }
    }
    let is_neighbour =
        url.and_then(|url| origin(url)).is_some_and(|(o, _)| trust.neighbours.contains(&o));
    let by_trust = if is_neighbour { Locality::Peer } else { Locality::Cloud };
    let nearest = same.iter().map(|own| own.locality).fold(by_trust, Locality::min);
    if server.locality < nearest {
        let (stated, nearest) = (server.locality.name(), nearest.name());
        let message = format!(
            "is {stated}, and by the device's own mcp.json and its trust policy this server is \
             {nearest}: prompts that must not go so far would be sent there"
        );
        scope.at("reach").add(message);
    }
    if is_capped && server.locality == Locality::Cloud {
        check_price(server, &same, scope);
    }
}

/// A price that is too low would make the caps worthless.
fn check_price(server: &ServerEntry, same: &[&ServerEntry], scope: &mut Scope<'_>) {
    let million =
        |server: &ServerEntry| [server.price.of(1_000_000, 0), server.price.of(0, 1_000_000)];
    let [input, output] = million(server);
    for own in same {
        let [own_input, own_output] = million(own);
        if input < own_input || output < own_output {
            let message = format!(
                "is below that of {} in the device's own mcp.json, with which the caps are counted",
                own.name
            );
            scope.at("price").add(message);
            return;
        }
    }
    let is_provider = matches!(server.endpoint, Endpoint::Provider(_));
    if is_provider && same.is_empty() && server.price.is_free() {
        scope
            .at("price")
            .add("is missing: without it the caps of the device do not bind this model");
    }
}

/// Whether two entries call the same model or host.
fn is_same_place(one: &Endpoint, other: &Endpoint) -> bool {
    let is_origin = |one: &str, other: &str| {
        let origin = |url: &str| origin(url).map(|(origin, _)| origin);
        origin(one).is_some_and(|one| Some(one) == origin(other))
    };
    match (one, other) {
        (Endpoint::Http { url: one, .. }, Endpoint::Http { url: other, .. }) => {
            is_origin(&one.0, &other.0)
        }
        (Endpoint::Provider(one), Endpoint::Provider(other)) => {
            one.model == other.model && is_origin(&one.base_url, &other.base_url)
        }
        (Endpoint::Mqtt { topic: one, .. }, Endpoint::Mqtt { topic: other, .. }) => one == other,
        (_, _) => false,
    }
}
