//! `key`: the public keys of this device for calls over MQTT.

use std::path::Path;

use anyhow::bail;
use serde_json::{Map, json};

use super::{DONE, WRONG, loaded};
use crate::daemon::call_keys;

/// Prints the public keys, with the place where each is to be written. Keys that do not exist yet are
/// generated.
///
/// # Errors
/// If a key is not usable, or this device needs none.
pub(super) fn run(path: Option<&Path>, as_json: bool) -> anyhow::Result<u8> {
    let Some(config) = &loaded(path) else { return Ok(WRONG) };
    let is_caller = config.catalog.services().next().is_some();
    let serves = config.catalog.mqtt.serve.as_deref();
    if !is_caller && serves.is_none() {
        bail!(
            "this device neither calls nor serves over MQTT: {} has no server of type mqtt and no \
             pilotlight.mqtt.serve",
            config.path.display()
        );
    }
    let device = &config.device;
    let mut all = Map::new();
    if is_caller {
        let key = call_keys::caller_pair(config)?.public();
        all.insert("caller".to_owned(), json!({"name": device, "key": key}));
        if !as_json {
            print_line!(
                "This device as a caller. In mcp.json of the workers, pilotlight.mqtt.callers:"
            );
            print_line!("  \"{device}\": \"{key}\"");
        }
    }
    if let Some(topic) = serves {
        let key = call_keys::service_pair(config)?.public();
        all.insert("service".to_owned(), json!({"topic": topic, "key": key}));
        if !as_json {
            print_line!(
                "The service {topic}. In mcp.json of its callers, pilotlight.servers.NAME:"
            );
            print_line!("  \"service_key\": \"{key}\"");
            print_line!(
                "Every worker of the service has this key: copy the private one to the others."
            );
        }
    }
    if as_json {
        print_line!("{:#}", serde_json::Value::Object(all));
    }
    Ok(DONE)
}
