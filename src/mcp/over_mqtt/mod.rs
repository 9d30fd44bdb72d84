//! MCP over MQTT 5: a *caller* sends single requests to a *service*, any *worker* of which may answer.
//!
//! `docs/mcp-over-mqtt.md` specifies the binding: topics, properties, order of messages, failures.

pub mod caller;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod identity;
pub mod keys;
mod parts;
mod sealed;
mod signed;
pub mod worker;
mod workers;

/// User property: the place of a message among those that answer one call, from 0 on.
const SEQ: &str = "mcp-seq";
/// User property: the JSON text continues in the next message.
const MORE: &str = "mcp-more";
/// User property: the worker's key that a call is encrypted for.
const KEY: &str = "mcp-key";
/// User property: the name of the worker that answers.
const WORKER: &str = "mcp-worker";
/// The payloads of a worker's presence topic: present, and gone.
const ONLINE: &[u8] = br#"{"state":"online"}"#;
const OFFLINE: &[u8] = br#"{"state":"offline"}"#;

/// Parts of topics, between the base and the name of a caller or worker.
const ANSWER: &str = "/answer/";
const WORKERS: &str = "/worker/";

/// The topics of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTopics {
    base: String,
}

impl ServiceTopics {
    /// The topics below `base`, such as `pilotlight/mcp/big`.
    pub fn new(base: &str) -> ServiceTopics {
        ServiceTopics { base: base.to_owned() }
    }

    /// The topic of requests, each of which one worker receives.
    fn call(&self) -> String {
        format!("{}/call", self.base)
    }

    /// The topic of encrypted requests to this worker.
    fn call_to(&self, worker: &str) -> String {
        format!("{}/{worker}", self.call())
    }

    /// The shared subscription through which workers receive requests.
    fn calls(&self) -> String {
        let group = self.base.rsplit('/').next().unwrap_or_default();
        format!("$share/{group}/{}", self.call())
    }

    /// The topic of notifications from callers, which every worker receives.
    fn tell(&self) -> String {
        format!("{}/tell", self.base)
    }

    /// The topic for responses to this caller.
    fn answer(&self, caller: &str) -> String {
        format!("{}{ANSWER}{caller}", self.base)
    }

    /// The name of the caller whose topic for responses this is.
    fn caller_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        topic.strip_prefix(&self.base)?.strip_prefix(ANSWER)
    }

    /// The prefix of the workers' presence topics.
    fn workers(&self) -> String {
        format!("{}{WORKERS}", self.base)
    }

    /// The name of the worker whose presence topic this is.
    fn worker_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        topic.strip_prefix(&self.base)?.strip_prefix(WORKERS)
    }

    /// The presence topic of this worker.
    fn worker(&self, worker: &str) -> String {
        format!("{}{worker}", self.workers())
    }
}

/// The value of a property.
fn property<'p>(properties: &'p [(String, String)], name: &str) -> Option<&'p str> {
    properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}
