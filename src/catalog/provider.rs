//! One provider of the catalog: a cloud model that is called in its provider's own protocol.

use http::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::addresses::AddressRule;
use super::secret::Secret;
use crate::money::Price;

/// One entry of `pilotlight.providers`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its entry")]
pub struct Provider {
    /// The protocol.
    pub kind: ProviderKind,
    /// The URL that the protocol's paths are appended to, without a slash at the end.
    pub base_url: String,
    /// Which addresses the provider may have.
    pub addresses: AddressRule,
    /// The provider's name of the model.
    pub model: String,
    /// The region that requests are signed for; none if they are not signed.
    pub region: Option<String>,
    /// The API key; `cred:NAME` until the configuration has looked the credential up.
    pub key: Option<Secret<String>>,
    /// A PEM file with certificate authorities in addition to the system's.
    pub ca: Option<String>,
    /// The context length: the most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// The most tokens of one answer.
    pub max_output_tokens: u32,
    /// The answer can be constrained to JSON and to a JSON Schema.
    pub json_schema: bool,
    /// The model calls tools.
    pub tools: bool,
    /// The provider returns the log-probabilities of the answer's tokens.
    pub logprobs: bool,
    /// The field of a request with the token limit of the answer.
    pub max_tokens_field: MaxTokensField,
    /// Further fields of each request; none that the service writes itself.
    pub extra_body: Secret<Map<String, Value>>,
    /// A JSON Schema is sent with the demand to keep to it strictly.
    pub strict: bool,
    /// Further headers of each request; none that the service writes itself.
    pub headers: Secret<HeaderMap>,
    /// The most concurrent requests.
    pub slots: u32,
    /// The price of the model's tokens.
    pub price: Price,
}

impl Provider {
    /// The token limit of an answer: the wanted one, at most the provider's own.
    pub fn most_tokens(&self, wanted: Option<u32>) -> u32 {
        wanted.unwrap_or(self.max_output_tokens).min(self.max_output_tokens)
    }
}

/// The names that the token limit of an answer has in `OpenAI`'s protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// The name that most services know.
    #[default]
    MaxTokens,
    /// The name that reasoning models require.
    MaxCompletionTokens,
}

impl MaxTokensField {
    /// The name of the field.
    pub fn name(self) -> &'static str {
        match self {
            MaxTokensField::MaxTokens => "max_tokens",
            MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
        }
    }

    /// The other name.
    #[must_use]
    pub fn other(self) -> MaxTokensField {
        match self {
            MaxTokensField::MaxTokens => MaxTokensField::MaxCompletionTokens,
            MaxTokensField::MaxCompletionTokens => MaxTokensField::MaxTokens,
        }
    }
}

/// The protocols of providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Chat completions of `OpenAI` and of services compatible with it.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
    /// AWS Bedrock's Converse API.
    #[cfg(feature = "bedrock")]
    Bedrock,
}

impl ProviderKind {
    /// Whether requests are signed for a region.
    pub(super) fn has_regions(self) -> bool {
        match self {
            ProviderKind::OpenAi | ProviderKind::Anthropic => false,
            #[cfg(feature = "bedrock")]
            ProviderKind::Bedrock => true,
        }
    }

    /// The fields that requests of this protocol may have by themselves.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            ProviderKind::OpenAi => &OPENAI_FIELDS,
            ProviderKind::Anthropic => &ANTHROPIC_FIELDS,
            #[cfg(feature = "bedrock")]
            ProviderKind::Bedrock => &["inferenceConfig", "messages", "system", "toolConfig"],
        }
    }

    /// The headers that requests of this protocol have besides the key.
    pub(super) fn headers(self) -> &'static [&'static str] {
        match self {
            ProviderKind::OpenAi => &[],
            ProviderKind::Anthropic => &["anthropic-version"],
            #[cfg(feature = "bedrock")]
            ProviderKind::Bedrock => &["authorization", "x-amz-date", "x-amz-security-token"],
        }
    }

    /// The header that the key is sent in.
    pub(super) fn key_header(self) -> &'static str {
        match self {
            ProviderKind::OpenAi => "authorization",
            ProviderKind::Anthropic => "x-api-key",
            #[cfg(feature = "bedrock")]
            ProviderKind::Bedrock => "authorization",
        }
    }
}

const OPENAI_FIELDS: [&str; 16] = [
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "parallel_tool_calls",
    "response_format",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
];

const ANTHROPIC_FIELDS: [&str; 11] = [
    "max_tokens",
    "messages",
    "model",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
];
