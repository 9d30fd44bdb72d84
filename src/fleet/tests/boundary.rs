//! What a remote configuration may not do, against a local file and a trust policy.

use serde_json::{Value, json};

use super::{Known, bytes_of, entry, envelope, pair};
use crate::catalog::expand::Variables;
use crate::catalog::read;
use crate::fleet::check::{self, CheckedConfig};
use crate::fleet::local::LocalConfig;
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::trust::Trust;
use crate::money::Limits;

fn local() -> Value {
    json!({
        "mcpServers": {
            "local": {"command": "pilotlight", "args": ["engine", "--gguf", "a.gguf"]},
            "near": {"url": "https://near.example/mcp", "headers": {"Authorization": "Bearer ${NEAR}"}},
            "big": {"type": "mqtt", "topic": "pilotlight/mcp/big"},
        },
        "pilotlight": {
            "device": {"name": "pi-7", "group": "line-3"},
            "mqtt": {"url": "mqtts://broker.example"},
            "http": {"token": "${HTTP}"},
            "servers": {"near": {"reach": "peer"}, "big": {"reach": "peer"}},
            "providers": {
                "cloud": {
                    "kind": "openai", "base_url": "https://api.example/v1", "model": "m", "key": "${CLOUD}",
                    "ca": "/etc/ca.pem", "price": {"input": 1, "output": 2},
                },
            },
            "tasks": {"label": {"template": "{{x}}", "reach": "device"}},
            "policy": {
                "reach": "cloud",
                "redact": ["email", {"name": "BADGE", "pattern": "B-[0-9]+"}],
                "apps": {
                    "guest": {"refuse": true},
                    "slow": {"class": "batch", "reach": "peer", "http_token": "${SLOW}"},
                    "+": {"class": "normal"},
                },
                "budget": {"usd_per_day": 2, "per_app": {"usd_per_day": 1}, "apps": {"slow": {"usd_per_day": 0.5}}},
            },
        },
    })
}

fn trust() -> Trust {
    let policy = json!({
        "fleet": "plant-a",
        "keys": {"ops-2026": entry(&pair())},
        "commands": {"engine-a": {"path": "/usr/bin/pilotlight", "sha256": "0a".repeat(32), "args": ["engine", "--gguf", "/m/a.gguf"]}},
        "ceiling": {"reach": "cloud", "usd_per_month": 5},
        "neighbours": ["https://10.0.0.7:8080"],
        "secrets": {"OTHER": ["https://other.example"]},
    });
    Trust::read(policy.to_string().as_bytes()).unwrap()
}

/// A remote configuration that is accepted.
fn remote() -> Value {
    json!({
        "mcpServers": {
            "local": {"command": "engine-a"},
            "near": {"url": "https://near.example/mcp", "headers": {"Authorization": "Bearer ${NEAR}"}},
            "seven": {"url": "https://10.0.0.7:8080/mcp"},
            "big": {"type": "mqtt", "topic": "pilotlight/mcp/big"},
        },
        "pilotlight": {
            "version": 12,
            "servers": {"near": {"reach": "peer"}, "seven": {"reach": "peer"}, "big": {"reach": "peer"}},
            "providers": {
                "cloud": {
                    "kind": "openai", "base_url": "https://api.example/v1", "model": "m", "key": "${CLOUD}",
                    "ca": "/etc/ca.pem", "price": {"input": 1, "output": 2},
                },
                "other": {
                    "kind": "anthropic", "base_url": "https://other.example", "model": "n", "key": "${OTHER}",
                    "price": {"input": 3, "output": 4},
                },
            },
            "tasks": {"label": {"template": "Say {{x}}", "reach": "device"}, "new": {"template": "{{y}} for $$5"}},
            "policy": {
                "redact": ["phone", "email", {"name": "badge", "pattern": "B-[0-9]+"}],
                "apps": {
                    "guest": {"refuse": true}, "slow": {"class": "batch", "reach": "device"}, "+": {"class": "batch"},
                },
                "budget": {
                    "usd_per_day": 1, "usd_per_month": 5, "per_app": {"usd_per_day": 1},
                    "apps": {"slow": {"usd_per_day": 0.1}},
                },
            },
        },
    })
}

fn meaning_of(
    remote: &Value,
    local: &Value,
    trust: &Trust,
) -> Result<CheckedConfig, UpdateRefusal> {
    let variables: Variables = ["NEAR", "HTTP", "CLOUD", "SLOW", "OTHER", "PATH_OF"]
        .map(|name| (name.to_owned(), "value-of-it".to_owned()))
        .into();
    let (catalog, mistakes) = read::read(&local.to_string(), &variables);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    let known = Known::new();
    let verified = known.check(&bytes_of(&envelope())).unwrap();
    let local =
        LocalConfig { file: local, catalog: &catalog, variables: &variables, running: local };
    check::meaning(&verified, &remote.to_string(), trust, local)
}

/// The mistakes of the accepted configuration with this change.
fn mistakes(change: impl Fn(&mut Value)) -> Vec<String> {
    let mut changed = remote();
    change(&mut changed);
    match meaning_of(&changed, &local(), &trust()) {
        Ok(_) => Vec::new(),
        Err(refusal) => {
            assert_eq!(refusal.code(), "forbidden-config", "{refusal}");
            refusal.mistakes().iter().map(ToString::to_string).collect()
        }
    }
}

/// The change is refused, with one mistake that begins like this.
#[expect(clippy::needless_pass_by_value, reason = "a table of values")]
fn refused(path: &[&str], value: Value, expected: &str) {
    let found = mistakes(|remote| {
        let (last, parents) = path.split_last().unwrap();
        let at = parents.iter().fold(remote, |at, key| &mut at[*key]);
        if value.is_null() {
            at.as_object_mut().unwrap().shift_remove(*last);
        } else {
            at[*last] = value.clone();
        }
    });
    assert!(found.iter().any(|one| one.starts_with(expected)), "{path:?}: {found:#?}");
}

#[test]
fn the_effective_configuration_has_the_local_parts() {
    let checked = meaning_of(&remote(), &local(), &trust()).unwrap();
    let whole: Value = serde_json::from_str(&checked.effective).unwrap();
    for part in ["device", "mqtt", "http"] {
        assert_eq!(whole["pilotlight"][part], local()["pilotlight"][part]);
    }
    let engine =
        json!({"command": "/usr/bin/pilotlight", "args": ["engine", "--gguf", "/m/a.gguf"]});
    assert_eq!(whole["mcpServers"]["local"], engine);
    assert_eq!(whole["pilotlight"]["policy"]["apps"]["slow"]["http_token"], "${SLOW}");
    assert_eq!(whole["pilotlight"]["tasks"]["label"]["template"], "Say {{x}}");
    assert_eq!(check::commands_of(&checked.text, &trust()).len(), 1);
    assert_eq!(checked.catalog.device.name.as_deref(), Some("pi-7"));
}

#[test]
fn the_parts_of_the_device_are_its_own() {
    for part in ["device", "mqtt", "http", "device_limits"] {
        let expected = format!("pilotlight.{part}: is always that of the device's own mcp.json");
        refused(&["pilotlight", part], json!({}), &expected);
    }
    refused(&["pilotlight", "trust"], json!({}), "pilotlight.trust: is no part of a remote");
    refused(&["servers"], json!({}), "servers: a remote configuration has mcpServers");
    refused(&["extra"], json!(1), "extra: a remote configuration has");
    let twice = remote().to_string().replace("\"version\":12", "\"version\":12,\"version\":13");
    let known = Known::new();
    let verified = known.check(&bytes_of(&envelope())).unwrap();
    let variables = Variables::new();
    let file = json!({"mcpServers": {"a": {"command": "x"}}});
    let (catalog, _) = read::read(&file.to_string(), &variables);
    let local =
        LocalConfig { file: &file, catalog: &catalog, variables: &variables, running: &file };
    let refusal = check::meaning(&verified, &twice, &trust(), local).unwrap_err();
    assert!(refusal.to_string().contains("duplicate key \"version\""), "{refusal}");
}

#[test]
fn commands_are_those_of_the_trust_policy() {
    let told = "mcpServers.local.command: must be the name of a command in the trust policy";
    for command in ["/bin/sh", "pilotlight", "engine-b", "", "/usr/bin/pilotlight"] {
        refused(&["mcpServers", "local", "command"], json!(command), told);
    }
    refused(&["mcpServers", "local", "command"], json!(["engine-a"]), told);
    refused(&["mcpServers", "local", "args"], json!(["--x"]), "mcpServers.local.args: is fixed");
    refused(
        &["mcpServers", "local", "env"],
        json!({"LD_PRELOAD": "/x"}),
        "mcpServers.local.env: is fixed",
    );
    refused(&["mcpServers", "near", "env"], json!({}), "mcpServers.near.env: is fixed");
    let tool = json!({"command": "sensor-mcp"});
    refused(&["mcpServers", "tool"], tool, "mcpServers.tool.command: must be the name");
    let memory = json!({"memory_mb": 4096});
    refused(&["pilotlight", "servers", "local"], memory, "pilotlight.servers.local.memory_mb");
}

#[test]
fn urls_are_public_or_neighbours() {
    for url in [
        "http://near.example/mcp",
        "https://10.0.0.8/mcp",
        "https://[::ffff:10.0.0.7]:8080/",
        "https://localhost/x",
    ] {
        refused(&["mcpServers", "near", "url"], json!(url), "mcpServers.near.url: ");
        let base = ["pilotlight", "providers", "cloud", "base_url"];
        refused(&base, json!(url), "pilotlight.providers.cloud.base_url: ");
    }
    let tool = json!({"url": "https://127.0.0.1:1883/"});
    refused(&["mcpServers", "tool"], tool, "mcpServers.tool.url: 127.0.0.1");
    refused(
        &["pilotlight", "providers", "cloud", "ca"],
        json!("/etc/shadow"),
        "pilotlight.providers.cloud.ca",
    );
    let model = json!({"a.gguf": {"source": "http://10.0.0.7/a.gguf", "bytes": 1}});
    refused(&["pilotlight", "models"], model, "pilotlight.models.a.gguf.source: must begin");
    for source in ["/etc/passwd", "./a.gguf", "file:/etc/passwd", "http://127.0.0.1/a.gguf"] {
        let model = json!({"a.gguf": {"source": source}});
        refused(&["pilotlight", "models"], model, "pilotlight.models.a.gguf.source: ");
        let model = json!({"m": {"source": "https://x.example", "files": [{"source": source}]}});
        refused(&["pilotlight", "models"], model, "pilotlight.models.m.files[0].source: ");
    }
    let model = json!({"a.gguf": {"source": "https://x.example/a", "ca": "/etc/shadow"}});
    refused(&["pilotlight", "models"], model, "pilotlight.models.a.gguf.ca: must be a file");
}

/// A remote configuration replaces all servers, so it may repeat what the local file has.
#[test]
fn a_url_of_the_local_file_keeps_its_rights() {
    let (mut local, mut remote) = (local(), remote());
    let near = json!({"url": "http://127.0.0.1:9000/mcp"});
    let provider = json!({"kind": "openai", "base_url": "http://127.0.0.1:9001/v1", "model": "m",
        "price": {"input": 1, "output": 2}});
    let model = json!({"source": "http://127.0.0.1:9002/a", "sha256": "0a".repeat(32), "bytes": 1,
        "licence": "mit"});
    remote["mcpServers"]["side"] = near.clone();
    remote["pilotlight"]["providers"]["model"] = provider.clone();
    remote["pilotlight"]["models"] = json!({"a.gguf": model});
    let refusal = |local: &Value| match meaning_of(&remote, local, &trust()) {
        Err(UpdateRefusal::Forbidden(mistakes)) => format!("{mistakes:?}"),
        other => panic!("{other:?}"),
    };
    let found = refusal(&local);
    for place in ["mcpServers.side.url", "providers.model.base_url", "models.a.gguf.source"] {
        assert!(found.contains(place), "{place}: {found}");
    }
    local["mcpServers"]["other"] = near;
    local["pilotlight"]["providers"]["own"] = provider;
    local["pilotlight"]["models"] = json!({"b.gguf": model});
    let mut swapped = local.clone();
    let done = meaning_of(&remote, &local, &trust());
    assert!(done.is_ok(), "{}", done.unwrap_err());
    swapped["mcpServers"]["other"]["url"] = json!("http://127.0.0.1:9001/v1");
    swapped["pilotlight"]["providers"]["own"]["base_url"] = json!("http://127.0.0.1:9000/mcp");
    let found = refusal(&swapped);
    assert!(found.contains("mcpServers.side.url"), "{found}");
    assert!(found.contains("providers.model.base_url"), "{found}");
}

#[test]
fn a_pinned_tool_stays_pinned() {
    let mut local = local();
    let digest = |byte: &str| json!({"generate": format!("sha256:{}", byte.repeat(32))});
    local["pilotlight"]["servers"]["near"]["tools"] = digest("0a");
    for (tools, is_right) in [(json!({}), false), (digest("0b"), false), (digest("0a"), true)] {
        let mut remote = remote();
        remote["pilotlight"]["servers"]["near"]["tools"] = tools.clone();
        let done = meaning_of(&remote, &local, &trust()).map_err(|refusal| refusal.to_string());
        match done {
            Ok(_) => assert!(is_right, "{tools}"),
            Err(refusal) => {
                let expected = "pilotlight.servers.near.tools.generate: must be that of the device";
                assert!(!is_right && refusal.contains(expected), "{tools}: {refusal}");
            }
        }
    }
}

#[test]
fn secrets_go_to_their_hosts_alone() {
    let told = "pilotlight.providers.other.key: would send CLOUD to https://other.example";
    refused(&["pilotlight", "providers", "other", "key"], json!("${CLOUD}"), told);
    let told = "pilotlight.providers.other.key: would send cred:root to https://other.example";
    refused(&["pilotlight", "providers", "other", "key"], json!("cred:root"), told);
    let told = "pilotlight.providers.other.headers.X: would send CLOUD to https://other.example";
    refused(&["pilotlight", "providers", "other", "headers"], json!({"X": "${CLOUD}"}), told);
    let told = "mcpServers.near.headers.X: would send HTTP to https://near.example";
    refused(&["mcpServers", "near", "headers"], json!({"X": "a${HTTP:-b}"}), told);
    let told = "mcpServers.near.headers.X: would send CLOUD to https://near.example";
    refused(&["mcpServers", "near", "headers"], json!({"X": "${env:CLOUD}"}), told);
    let told = "pilotlight.tasks.new.template: a remote configuration may use a variable";
    refused(&["pilotlight", "tasks", "new", "template"], json!("${CLOUD}"), told);
    let told = "mcpServers.near.url: has a variable";
    refused(&["mcpServers", "near", "url"], json!("https://near.example/${CLOUD}"), told);
    let told = "pilotlight.providers.other.model: a remote configuration may use";
    refused(&["pilotlight", "providers", "other", "model"], json!("${CLOUD"), told);
    // a host gets the headers and the key of its own entry
    let own = mistakes(|remote| {
        let headers = json!({"X-Key": "${CLOUD}", "X-Plain": "x"});
        remote["pilotlight"]["providers"]["cloud"]["headers"] = headers;
    });
    assert_eq!(own, Vec::<String>::new());
    let mut local = local();
    local["pilotlight"]["providers"]["cloud"]["headers"] = json!({"X-Who": "${SLOW}"});
    let mut remote = remote();
    remote["pilotlight"]["providers"]["cloud"]["headers"] = json!({"X-Other": "${SLOW}"});
    assert!(meaning_of(&remote, &local, &trust()).is_ok());
    // no message shows a value
    let shown =
        mistakes(|remote| remote["pilotlight"]["providers"]["cloud"]["key"] = json!("${HTTP}"));
    assert!(!shown.is_empty() && !shown.join(" ").contains("value-of-it"), "{shown:?}");
}

#[test]
fn localities_are_not_made_nearer() {
    for (name, locality) in [("near", "device"), ("seven", "device"), ("big", "device")] {
        let expected = format!("pilotlight.servers.{name}.reach: is device, and by");
        refused(&["pilotlight", "servers", name, "reach"], json!(locality), &expected);
    }
    let far = json!({"type": "mqtt", "topic": "pilotlight/mcp/far"});
    let found = mistakes(|remote| {
        remote["mcpServers"]["far"] = far.clone();
        remote["pilotlight"]["servers"]["far"] = json!({"reach": "peer"});
    });
    assert!(found[0].starts_with("pilotlight.servers.far.reach: is peer"), "{found:?}");
    refused(
        &["pilotlight", "providers", "other", "reach"],
        json!("device"),
        "pilotlight.providers.other.reach: is device",
    );
}

#[test]
fn the_policy_is_not_loosened() {
    let policy = |path: &[&'static str], value: Value, expected: &str| {
        let path: Vec<&str> = ["pilotlight", "policy"].iter().chain(path).copied().collect();
        refused(&path, value, &format!("pilotlight.policy.{expected}"));
    };
    policy(&["redact"], json!(["email"]), "redact: lacks the rule BADGE");
    policy(&["redact"], json!(["phone"]), "redact: lacks the rule EMAIL");
    policy(&["redact"], Value::Null, "redact: lacks the rule");
    let other = json!(["email", {"name": "BADGE", "pattern": "B-[0-9]{9}"}]);
    policy(&["redact"], other, "redact: lacks the rule BADGE");
    policy(&["apps", "guest"], json!({}), "apps.guest.refuse: must be true");
    policy(&["apps", "guest"], Value::Null, "apps.guest.refuse: must be true");
    policy(&["apps", "slow", "class"], json!("normal"), "apps.slow.class: must not be more urgent");
    policy(&["apps", "slow", "class"], Value::Null, "apps.slow.class: must not be more urgent");
    policy(&["apps", "slow", "reach"], json!("cloud"), "apps.slow.reach: must be peer at most");
    policy(&["apps", "slow", "reach"], Value::Null, "apps.slow.reach: must be peer at most");
    policy(&["apps", "slow", "http_token"], json!("x"), "apps.slow.http_token: is always that");
    policy(&["apps", "slow", "trust_group"], json!("g"), "apps.slow.trust_group: joins");
    policy(
        &["apps", "+"],
        json!({"class": "interactive"}),
        "apps.+.class: must not be more urgent",
    );
    // a name that was one of all others
    policy(
        &["apps", "new"],
        json!({"class": "interactive"}),
        "apps.new.class: must not be more urgent",
    );
    policy(&["apps", "new"], json!({}), "apps.new.class: must not be more urgent");
    policy(
        &["budget", "usd_per_day"],
        json!(3),
        "budget.usd_per_day: must be stated and 2 at most",
    );
    policy(&["budget", "usd_per_day"], Value::Null, "budget.usd_per_day: must be stated");
    policy(
        &["budget", "usd_per_month"],
        json!(5.01),
        "budget.usd_per_month: must be stated and 5 at most",
    );
    policy(&["budget", "usd_per_month"], Value::Null, "budget.usd_per_month: must be stated");
    policy(&["budget", "per_app"], json!({"usd_per_day": 2}), "budget.apps.+.usd_per_day");
    policy(&["budget", "apps", "slow"], json!({}), "budget.apps.slow.usd_per_day: must be");
    policy(&["budget", "apps", "new"], json!({"usd_per_day": 2}), "budget.apps.new.usd_per_day");
    policy(&["budget"], Value::Null, "budget.usd_per_day: must be stated");
    refused(
        &["pilotlight", "tasks", "label", "reach"],
        json!("peer"),
        "pilotlight.tasks.label.reach: must be device",
    );
    refused(
        &["pilotlight", "tasks", "label", "reach"],
        Value::Null,
        "pilotlight.tasks.label.reach: must be device",
    );
}

#[test]
fn the_locality_and_the_mode_are_not_widened() {
    let mut local_file = local();
    local_file["pilotlight"]["policy"]["default_mode"] = json!("local-only");
    local_file["pilotlight"]["policy"]["reach"] = json!("peer");
    let check = |mode: Value, furthest: Value, expected: &[&str]| {
        let mut changed = remote();
        changed["pilotlight"]["policy"]["default_mode"] = mode;
        changed["pilotlight"]["policy"]["reach"] = furthest;
        let found = match meaning_of(&changed, &local_file, &trust()) {
            Ok(_) => Vec::new(),
            Err(refusal) => refusal.mistakes().iter().map(|mistake| mistake.path.clone()).collect(),
        };
        assert_eq!(found, expected);
    };
    let (furthest, mode) = ("pilotlight.policy.reach", "pilotlight.policy.default_mode");
    check(json!("local-only"), json!("peer"), &[]);
    check(json!("local-only"), json!("device"), &[]);
    check(json!("local-only"), json!("cloud"), &[furthest]);
    check(json!("prefer-local"), json!("peer"), &[mode]);
    check(json!("cloud-only"), json!("cloud"), &[furthest, mode]);
}

#[test]
fn downloads_are_not_made_dearer() {
    let download = |of: Value, rule: &str, value: bool| {
        let mut of = of;
        of["pilotlight"]["policy"]["models_download"] = json!({rule: value});
        of
    };
    for rule in ["only_cool", "only_unmetered"] {
        let own = download(local(), rule, true);
        assert!(meaning_of(&download(remote(), rule, true), &own, &trust()).is_ok());
        for changed in [download(remote(), rule, false), remote()] {
            let refusal = meaning_of(&changed, &own, &trust()).unwrap_err();
            let found: Vec<_> = refusal.mistakes().iter().map(|found| found.path.clone()).collect();
            assert_eq!(found, [format!("pilotlight.policy.models_download.{rule}")]);
        }
        // a remote configuration may be stricter than the device
        assert!(meaning_of(&download(remote(), rule, true), &local(), &trust()).is_ok());
    }
}

#[test]
fn prices_stay_as_high_as_the_caps_need() {
    let price = |name: &str, value: Value, expected: &str| {
        let expected = format!("pilotlight.providers.{name}.price: {expected}");
        refused(&["pilotlight", "providers", name, "price"], value, &expected);
    };
    price("cloud", json!({"input": 0.5, "output": 2}), "is below that of cloud");
    price("cloud", Value::Null, "is below that of cloud");
    price("other", Value::Null, "is missing");
}

#[test]
fn a_key_for_models_changes_models_alone() {
    let variables = Variables::new();
    let file = json!({"mcpServers": {"a": {"command": "x"}}});
    let (catalog, _) = read::read(&file.to_string(), &variables);
    let running =
        json!({"mcpServers": {"a": {"command": "engine-a"}}, "pilotlight": {"version": 1}});
    let check = |operations: Value, remote: &Value| {
        let mut known = Known::new();
        let mut entry = entry(&known.pair);
        entry["operations"] = operations;
        known.trust = super::trust_of(&json!({"k": entry}));
        let verified = known.check(&bytes_of(&envelope())).unwrap();
        let mut trust = trust();
        trust.caps = Limits::default();
        let local = LocalConfig {
            file: &file,
            catalog: &catalog,
            variables: &variables,
            running: &running,
        };
        let result = check::meaning(&verified, &remote.to_string(), &trust, local);
        result.map_or_else(|refusal| refusal.code(), |_| "")
    };
    let mut models = running.clone();
    models["pilotlight"]["models"] = json!({});
    models["pilotlight"]["version"] = json!(2);
    let mut both = models.clone();
    both["pilotlight"]["tasks"] = json!({"t": {"template": "x"}});
    let mut config = both.clone();
    config["pilotlight"].as_object_mut().unwrap().shift_remove("models");
    assert_eq!(check(json!(["models"]), &config), "not-authorised");
    assert_eq!(check(json!(["models"]), &both), "not-authorised");
    assert_eq!(check(json!(["config"]), &models), "not-authorised");
    assert_eq!(check(json!(["config"]), &both), "not-authorised");
    assert_eq!(check(json!(["config"]), &config), "");
    assert_eq!(check(json!(["models"]), &running), "");
    // its own version is that of the file, not a change of what runs
    let mut renumbered = running.clone();
    renumbered["pilotlight"]["version"] = json!(2);
    assert_eq!(check(json!(["models"]), &renumbered), "");
}
