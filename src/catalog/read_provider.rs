//! The reader of `pilotlight.providers`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::addresses::AddressRule;
use super::mistake::Scope;
use super::provider::{MaxTokensField, Provider, ProviderKind};
use super::read_budget::RawPrice;
use super::read_extra::{check_body, check_headers};
use super::secret::Secret;
use super::server::{Endpoint, ServerEntry};
use super::shape;
use crate::model::context::Locality;
use crate::request::name::is_name;

/// Context length, answer length and concurrency of a provider whose entry states none: what the
/// smallest common cloud models offer.
const CONTEXT_TOKENS: u32 = 32_768;
const MAX_OUTPUT_TOKENS: u32 = 4_096;
const SLOTS: u32 = 8;
/// The most concurrent requests that an entry may state.
const SLOTS_MAX: u32 = 256;
/// The longest pause within an answer of a provider whose entry states none.
const SILENCE: Duration = Duration::from_secs(30);

/// An entry of `pilotlight.providers`: a cloud model in its provider's own protocol.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Provider", extend("required" = REQUIRED))]
#[serde(deny_unknown_fields)]
pub(super) struct RawProvider {
    /// The protocol.
    #[schemars(with = "ProviderKind")]
    kind: Option<ProviderKind>,
    /// The URL that the protocol's paths are appended to; `http://` is for loopback addresses only.
    #[schemars(with = "String", regex(pattern = "^https?://[^@?]+$"))]
    base_url: Option<String>,
    /// The provider's name of the model.
    #[schemars(with = "String", length(min = 1))]
    model: Option<String>,
    /// The region of AWS, if the host of `base_url` does not name it.
    region: Option<String>,
    /// The API key, written as `${VAR}` or `cred:NAME`.
    key: Option<Secret<String>>,
    /// A PEM file with certificate authorities besides those of the system.
    ca: Option<String>,
    /// The context length: the most tokens of prompt and answer together.
    #[schemars(range(min = 1), extend("default" = CONTEXT_TOKENS))]
    context_tokens: Option<u32>,
    /// The most tokens of one answer, `context_tokens` at most.
    #[schemars(range(min = 1), extend("default" = MAX_OUTPUT_TOKENS))]
    max_output_tokens: Option<u32>,
    /// Whether answers can be constrained to a JSON Schema.
    #[schemars(extend("default" = true))]
    json_schema: Option<bool>,
    /// Whether the model calls tools.
    #[schemars(extend("default" = true))]
    tools: Option<bool>,
    /// Whether the provider returns log-probabilities; for the kind `openai` only.
    #[serde(default)]
    logprobs: bool,
    /// The field of a request with the token limit of the answer; for the kind `openai` only.
    #[serde(default)]
    max_tokens_field: MaxTokensField,
    /// Whether a JSON Schema is sent with `strict`; for the kind `openai` only.
    #[schemars(extend("default" = true))]
    strict: Option<bool>,
    /// Further fields of each request, none that the service writes itself.
    #[serde(default)]
    extra_body: Map<String, Value>,
    /// Further headers of each request, none that the service writes itself.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The most concurrent requests.
    #[schemars(range(min = 1, max = SLOTS_MAX), extend("default" = SLOTS))]
    slots: Option<u32>,
    /// The price of its tokens.
    #[serde(default)]
    price: RawPrice,
    /// Where the model runs, which bounds how far text may go.
    #[serde(rename = "reach")]
    #[schemars(extend("default" = "cloud"))]
    locality: Option<Locality>,
    /// The longest pause within an answer, in milliseconds.
    #[schemars(extend("default" = 30_000))]
    silence_ms: Option<u64>,
    /// Skills of the model; a request or task can require one.
    #[serde(rename = "talents", default)]
    skills: Vec<String>,
    /// Other models that may answer what this one refuses.
    #[serde(default)]
    fallbacks: Vec<String>,
}

/// The fields that an entry must have. They are options in [`RawProvider`], so that one run names
/// all that are missing.
const REQUIRED: [&str; 3] = ["kind", "base_url", "model"];

/// Appends the providers to the servers, in the order of their names.
///
/// Names of entries that can't be read are added to `unread`.
pub(super) fn read(
    entries: Vec<(String, Value)>,
    servers: &mut Vec<ServerEntry>,
    unread: &mut BTreeSet<String>,
    scope: &mut Scope<'_>,
) {
    let entries: BTreeMap<String, Value> = entries.into_iter().collect();
    for (name, value) in entries {
        let mut scope = scope.at(&name);
        if servers.iter().any(|server| server.name == name) {
            scope.add("an entry of mcpServers has the same name");
        }
        shape::require(&value, &REQUIRED, &mut scope);
        let raw = shape::read::<RawProvider>(value, &mut scope);
        match raw.and_then(|raw| raw.check(&name, &mut scope)) {
            Some(server) => servers.push(server),
            None => {
                unread.insert(name);
            }
        }
    }
}

impl RawProvider {
    /// The server; none if a required field is missing, which is a mistake already.
    fn check(self, name: &str, scope: &mut Scope<'_>) -> Option<ServerEntry> {
        let (kind, base_url, model) = (self.kind?, self.base_url?, self.model?);
        let mut mistake = |key: &str, message: &str| scope.at(key).add(message);
        if let Err(message) = check_url(&base_url) {
            mistake("base_url", &message);
        }
        let tools = self.tools.unwrap_or(true);
        let can_json = kind == ProviderKind::OpenAi || tools;
        if self.json_schema == Some(true) && !can_json {
            mistake(
                "json_schema",
                "needs tool calls for this kind, and tools is false; remove one of \
                 them",
            );
        }
        let strict = self.strict.unwrap_or(true);
        for (key, is_used) in [
            ("logprobs", self.logprobs),
            ("max_tokens_field", self.max_tokens_field != MaxTokensField::default()),
            ("strict", !strict),
        ] {
            if kind != ProviderKind::OpenAi && is_used {
                mistake(key, "is supported for the kind openai only; remove it");
            }
        }
        let region = self.region.or_else(|| region_of(&base_url));
        let region = region.filter(|_| kind.has_regions());
        if kind.has_regions() && region.as_ref().is_none_or(|region| !is_name(region)) {
            mistake("region", "must name the region, such as eu-central-1");
        }
        if model.is_empty() {
            mistake("model", "must be the provider's name of the model");
        }
        let slots = self.slots.unwrap_or(SLOTS);
        if !(1..=SLOTS_MAX).contains(&slots) {
            mistake("slots", "must be 1 to 256");
        }
        let context_tokens = self.context_tokens.unwrap_or(CONTEXT_TOKENS);
        let max_output_tokens = self.max_output_tokens.unwrap_or(MAX_OUTPUT_TOKENS);
        if !(1..=context_tokens).contains(&max_output_tokens) {
            mistake("max_output_tokens", "must be 1 to context_tokens");
        }
        let price = self.price.check(scope);
        check_body(kind, &self.extra_body, scope);
        let headers = check_headers(kind, self.key.is_some(), &self.headers, scope);
        let provider = Provider {
            kind,
            base_url: base_url.trim_end_matches('/').to_owned(),
            addresses: AddressRule::Any,
            model,
            region,
            key: self.key,
            ca: self.ca,
            context_tokens,
            max_output_tokens,
            json_schema: can_json && self.json_schema.unwrap_or(true),
            tools,
            logprobs: self.logprobs,
            max_tokens_field: self.max_tokens_field,
            extra_body: Secret(self.extra_body),
            strict,
            headers: Secret(headers),
            slots,
            price,
        };
        Some(ServerEntry {
            name: name.to_owned(),
            endpoint: Endpoint::Provider(Box::new(provider)),
            locality: self.locality.unwrap_or(Locality::Cloud),
            silence: Some(self.silence_ms.map_or(SILENCE, Duration::from_millis)),
            idle_probe: None,
            skills: self.skills,
            fallbacks: self.fallbacks,
            price,
            tools: BTreeMap::new(),
        })
    }
}

/// The region in an AWS host name, `SERVICE.REGION.amazonaws.com`.
fn region_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let mut parts = uri.host()?.split('.').skip(1);
    let region = parts.next()?;
    (parts.next() == Some("amazonaws")).then(|| region.to_owned())
}

/// Whether the host of the URL is this device.
pub(super) fn is_loopback(uri: &http::Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_numeric = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
    matches!(host, "localhost" | "::1") || host.strip_prefix("127.").is_some_and(is_numeric)
}

/// The URL is encrypted or loopback, so that the key is never sent in plain text over a network.
fn check_url(url: &str) -> Result<(), String> {
    let uri: http::Uri = url.parse().map_err(|_| "is not a URL".to_owned())?;
    match uri.scheme_str() {
        Some("https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(()),
        Some("http") if is_loopback(&uri) => Ok(()),
        Some("http") => Err("must begin with https://; http would expose the key".to_owned()),
        _ => Err("must begin with https://".to_owned()),
    }?;
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    if authority.contains('@') || uri.query().is_some() {
        return Err("must not contain a user name or query; put the key into `key`".to_owned());
    }
    Ok(())
}
