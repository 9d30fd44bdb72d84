//! An entry of `mcpServers` as it is written: a command, a URL or a topic.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::catalog::{Endpoint, Mistake, Secret};
use crate::limits::SERVICE_TOPIC_BYTES_MAX;
use crate::request::name::is_name;

/// What is wrong with a topic that is none.
pub(super) const TOPIC_LEVELS: &str =
    "topic must consist of levels [A-Za-z0-9_-]{1,64}, separated by /";

/// Whether this can be the first part of the topics of a service.
pub(super) fn is_topic(topic: &str) -> bool {
    topic.len() <= SERVICE_TOPIC_BYTES_MAX && topic.split('/').all(is_name)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    url: Option<String>,
    topic: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

impl RawServer {
    /// How it is reached, if that can be said.
    pub(super) fn link(self, path: &str, mistakes: &mut Vec<Mistake>) -> Option<Endpoint> {
        let raw = self;
        let mut mistake = |message: &str| {
            mistakes.push(Mistake { path: path.to_owned(), message: message.to_owned() });
            None
        };
        match (raw.kind.as_deref(), raw.command, raw.url) {
            (Some("mqtt"), None, None) => match raw.topic {
                Some(topic) if is_topic(&topic) => Some(Endpoint::Mqtt { topic }),
                Some(_) => mistake(TOPIC_LEVELS),
                None => mistake("needs the topic of the service, such as pilotlight/mcp/big"),
            },
            (Some("mqtt"), _, _) => mistake("type mqtt takes a topic, not a command or url"),
            (Some("sse"), _, _) => {
                mistake("the sse transport has been replaced; use type \"http\" (streamable HTTP)")
            }
            (None | Some("stdio"), Some(command), None) if !command.is_empty() => {
                Some(Endpoint::Child {
                    command,
                    args: raw.args,
                    env: raw.env,
                    hidden: BTreeSet::new(),
                })
            }
            (None | Some("http" | "streamable-http"), None, Some(url))
                if url.starts_with("http://") || url.starts_with("https://") =>
            {
                Some(Endpoint::Http { url, headers: Secret(raw.headers) })
            }
            (None | Some("http" | "streamable-http"), None, Some(_)) => {
                mistake("url must start with http:// or https://")
            }
            (None | Some("stdio" | "http" | "streamable-http"), _, _) => {
                mistake("needs either command (a child process) or url (streamable HTTP), not both")
            }
            (Some(_), _, _) => mistake("type must be stdio, http, streamable-http or mqtt"),
        }
    }
}
