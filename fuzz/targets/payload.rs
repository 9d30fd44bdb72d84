//! Requests of the MQTT interface, and of the tool `generate` with its `_meta`.
#![no_main]

use pilotlight::ingress::mqtt::fuzzing::ask;
use pilotlight::limits::{DEADLINE_MAX, NAME_BYTES_MAX};
use pilotlight::mcp::contract::{cache_group_of, deadline_of, furthest_of, hops_of, open_bytes_of};
use pilotlight::request::client::Client;
use pilotlight::wire::{self, Ask};
use pilotlight_fuzz::{accepted, catalog, refused, target};
use rmcp::model::RequestMetaObject;
use serde_json::Value;

target!(|payload| {
    match ask(payload) {
        Ok(ask) => {
            let text = serde_json::to_vec(&ask).expect("a request has JSON");
            assert_eq!(wire::read::<Ask>(&text).as_ref(), Ok(&ask), "changed by JSON");
            checked(ask);
        }
        Err(refusal) => refused(&refusal),
    }
    let Ok(value) = serde_json::from_slice::<Value>(payload) else { return };
    match wire::read_value(value) {
        Ok(ask) => checked(ask),
        Err(refusal) => refused(&refusal),
    }
    let Ok(meta) = serde_json::from_slice::<RequestMetaObject>(payload) else { return };
    assert!(deadline_of(&meta).is_none_or(|left| !left.is_zero() && left <= DEADLINE_MAX));
    assert!(cache_group_of(&meta).len() <= NAME_BYTES_MAX);
    let _ = (hops_of(&meta), open_bytes_of(&meta));
    if let Err(refusal) = furthest_of(&meta) {
        refused(&refusal);
    }
});

fn checked(ask: Ask) {
    match ask.check(&Client::known("app"), catalog()) {
        Ok(job) => accepted(&job),
        Err(refusal) => refused(&refusal),
    }
}
