//! MCP over MQTT 5: a *caller* sends single requests to a *service*, any *worker* of which may answer.
//!
//! The binding is written down in `docs/mcp-over-mqtt.md`, so that others can speak it: topics,
//! properties, the order of messages, what happens when something breaks.

pub mod caller;
mod parts;
pub mod worker;

/// User property: the place of a message among those that answer one call, from 0 on.
const SEQ: &str = "mcp-seq";
/// User property: the JSON text goes on in the next message.
const MORE: &str = "mcp-more";
/// User property: who answers.
const WORKER: &str = "mcp-worker";
/// What a worker says when it is there, and what is said when it is gone.
const ONLINE: &[u8] = br#"{"state":"online"}"#;
const OFFLINE: &[u8] = br#"{"state":"offline"}"#;

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

    /// Where requests go; one worker gets each.
    fn call(&self) -> String {
        format!("{}/call", self.base)
    }

    /// What workers subscribe to for their part of the requests.
    fn calls(&self) -> String {
        let group = self.base.rsplit('/').next().unwrap_or_default();
        format!("$share/{group}/{}", self.call())
    }

    /// Where every worker hears what callers say besides.
    fn tell(&self) -> String {
        format!("{}/tell", self.base)
    }

    /// Below which callers get their answers.
    fn answers(&self) -> String {
        format!("{}/answer/", self.base)
    }

    /// Where this caller does.
    fn answer(&self, caller: &str) -> String {
        format!("{}{caller}", self.answers())
    }

    /// Below which workers say that they are there.
    fn workers(&self) -> String {
        format!("{}/worker/", self.base)
    }

    /// Where this worker does.
    fn worker(&self, worker: &str) -> String {
        format!("{}{worker}", self.workers())
    }
}

/// The value of a property.
fn property<'p>(properties: &'p [(String, String)], name: &str) -> Option<&'p str> {
    properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}
