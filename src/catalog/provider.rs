//! A cloud's own protocol as an entry of `mcp.json`: where it is, which model, the key's name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::budget::RawPrice;
use super::catalog::{Endpoint, Mistake, Secret, ServerEntry};
use crate::model::context::Locality;
use crate::money::Price;
use crate::request::name::is_name;

/// What a provider's model is taken to be able to do if the entry does not say.
const CONTEXT_TOKENS: u32 = 32_768;
const MAX_OUTPUT_TOKENS: u32 = 4_096;
const SLOTS: u32 = 8;
/// Most requests at once that an entry may ask for.
const SLOTS_MAX: u32 = 256;
/// Longest silence of a provider if the entry does not say.
const SILENCE: Duration = Duration::from_secs(30);

/// One provider under `pilotlight.providers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Which protocol it speaks.
    pub kind: ProviderKind,
    /// Where its paths begin, without a slash at the end.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// Where requests are signed for, if they are.
    pub region: Option<String>,
    /// The key, or `cred:NAME` until the configuration has looked it up.
    pub key: Option<Secret<String>>,
    /// File with the certificates that the host's may be signed by, besides the system's.
    pub ca: Option<String>,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Most tokens of an answer.
    pub max_output_tokens: u32,
    /// It can be held to JSON and to a JSON Schema.
    pub json_schema: bool,
    /// It calls tools.
    pub tools: bool,
    /// It says how likely its tokens were.
    pub logprobs: bool,
    /// Requests at once.
    pub slots: u32,
    /// What it costs.
    pub price: Price,
}

impl Provider {
    /// The most tokens that an answer may have, if this many are wanted.
    pub fn most_tokens(&self, wanted: Option<u32>) -> u32 {
        wanted.unwrap_or(self.max_output_tokens).min(self.max_output_tokens)
    }
}

/// The protocols that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// `OpenAI`'s chat completions, as many others speak them.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// AWS Bedrock's Converse.
    #[cfg(feature = "bedrock")]
    Bedrock,
}

impl ProviderKind {
    /// Whether requests are signed for a region.
    fn has_regions(self) -> bool {
        match self {
            ProviderKind::OpenAi | ProviderKind::Anthropic => false,
            #[cfg(feature = "bedrock")]
            ProviderKind::Bedrock => true,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProvider {
    kind: ProviderKind,
    base_url: String,
    model: String,
    region: Option<String>,
    key: Option<Secret<String>>,
    ca: Option<String>,
    context_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    json_schema: Option<bool>,
    tools: Option<bool>,
    #[serde(default)]
    logprobs: bool,
    slots: Option<u32>,
    #[serde(default)]
    price: RawPrice,
    #[serde(rename = "reach")]
    locality: Option<Locality>,
    silence_ms: Option<u64>,
    #[serde(rename = "talents", default)]
    skills: Vec<String>,
    #[serde(default)]
    fallbacks: Vec<String>,
}

/// Adds the providers to the servers, behind them.
pub(super) fn check(
    raw: BTreeMap<String, RawProvider>,
    servers: &mut Vec<ServerEntry>,
    mistakes: &mut Vec<Mistake>,
) {
    for (name, raw) in raw {
        let path = format!("pilotlight.providers.{name}");
        let mut mistake = |key: &str, message: &str| {
            mistakes.push(Mistake { path: format!("{path}{key}"), message: message.to_owned() });
        };
        if servers.iter().any(|server| server.name == name) {
            mistake("", "an entry of mcpServers has the same name");
        }
        if let Err(message) = is_safe(&raw.base_url) {
            mistake(".base_url", &message);
        }
        let tools = raw.tools.unwrap_or(true);
        let can_json = raw.kind == ProviderKind::OpenAi || tools;
        if raw.json_schema == Some(true) && !can_json {
            mistake(
                ".json_schema",
                "needs tool calls for this kind, and tools is false; remove one of \
                 them",
            );
        }
        if raw.kind != ProviderKind::OpenAi && raw.logprobs {
            mistake(".logprobs", "is supported for the kind openai only; remove it");
        }
        let region = raw.region.or_else(|| region_of(&raw.base_url));
        let region = region.filter(|_| raw.kind.has_regions());
        if raw.kind.has_regions() && region.as_ref().is_none_or(|region| !is_name(region)) {
            mistake(".region", "must name the region, such as eu-central-1");
        }
        if raw.model.is_empty() {
            mistake(".model", "must be the provider's name of the model");
        }
        let slots = raw.slots.unwrap_or(SLOTS);
        if !(1..=SLOTS_MAX).contains(&slots) {
            mistake(".slots", "must be 1 to 256");
        }
        let context_tokens = raw.context_tokens.unwrap_or(CONTEXT_TOKENS);
        let max_output_tokens = raw.max_output_tokens.unwrap_or(MAX_OUTPUT_TOKENS);
        if !(1..=context_tokens).contains(&max_output_tokens) {
            mistake(".max_output_tokens", "must be 1 to context_tokens");
        }
        let price = raw.price.check(&path, mistakes);
        let provider = Provider {
            kind: raw.kind,
            base_url: raw.base_url.trim_end_matches('/').to_owned(),
            model: raw.model,
            region,
            key: raw.key,
            ca: raw.ca,
            context_tokens,
            max_output_tokens,
            json_schema: can_json && raw.json_schema.unwrap_or(true),
            tools,
            logprobs: raw.logprobs,
            slots,
            price,
        };
        servers.push(ServerEntry {
            name,
            link: Endpoint::Provider(Box::new(provider)),
            locality: raw.locality.unwrap_or(Locality::Cloud),
            silence: Some(raw.silence_ms.map_or(SILENCE, Duration::from_millis)),
            skills: raw.skills,
            fallbacks: raw.fallbacks,
            price,
        });
    }
}

/// The region that stands in AWS's own names of hosts, `SERVICE.REGION.amazonaws.com`.
fn region_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let mut parts = uri.host()?.split('.').skip(1);
    let region = parts.next()?;
    (parts.next() == Some("amazonaws")).then(|| region.to_owned())
}

/// A key must not travel where others can read it.
fn is_safe(url: &str) -> Result<(), String> {
    let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_number = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let is_here =
        matches!(host, "localhost" | "::1") || host.strip_prefix("127.").is_some_and(is_number);
    match uri.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if is_here => Ok(()),
        Some("http") => Err("must begin with https://; http would expose the key".to_owned()),
        _ => Err("must begin with https://".to_owned()),
    }?;
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    if authority.contains('@') || uri.query().is_some() {
        return Err("must not contain a user name or query; put the key into `key`".to_owned());
    }
    Ok(())
}
