//! AWS Bedrock's Converse API: requests, their signature, and the events of an answer.
//!
//! Source: the API reference of `ConverseStream`; Signature Version 4 is computed by `aws-sigv4`.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{AnswerDelta, gave_up, unreadable};
use super::calls::CallDelta;
use super::finish::finish_of;
use super::{content, reason, tools_or_answer, with_results};
use crate::catalog::provider::Provider;
use crate::model::generate::Fault;
use crate::request::job::{Job, Message, Role};
use crate::request::tools::{Tool, ToolCall, ToolChoice, Tools};

/// Name of the service in a signature.
const SERVICE: &str = "bedrock";
/// Content type of every body.
const JSON: &str = "application/json";

/// The path after the base URL, percent-encoded: a model's name may contain colons and slashes.
pub(super) fn path(entry: &Provider) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let bytes = entry.model.bytes().map(|byte| {
        if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    });
    let model: String = bytes.collect();
    format!("model/{model}/converse-stream")
}

/// Authentication of requests: a key pair that signs each one, or an API key that is sent along.
#[derive(Debug)]
pub(super) struct Signer {
    region: String,
    authentication: Authentication,
}

#[derive(Debug)]
enum Authentication {
    KeyPair(Credentials),
    Bearer(HeaderValue),
}

impl Signer {
    /// Uses the key pair `ID:SECRET` or `ID:SECRET:TOKEN`; a key without colons is an API key.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] without a key, or with one of another form.
    pub(super) fn of(entry: &Provider) -> Result<Signer, Fault> {
        let region = entry.region.clone().unwrap_or_default();
        let key = entry.key.as_ref().map_or("", |key| key.0.as_str());
        let away = |why: &str| Fault::unavailable(why.to_owned());
        let mut parts = key.splitn(3, ':');
        let authentication = match (parts.next(), parts.next(), parts.next()) {
            (Some(id), Some(secret), token) if !id.is_empty() && !secret.is_empty() => {
                let token = token.map(str::to_owned);
                Authentication::KeyPair(Credentials::new(id, secret, token, None, "configuration"))
            }
            (Some(key), None, None) if !key.is_empty() => {
                let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| {
                    away("the key contains characters that are invalid in a header")
                })?;
                value.set_sensitive(true);
                Authentication::Bearer(value)
            }
            (_, _, _) => {
                return Err(away("the key must be ID:SECRET, ID:SECRET:TOKEN or an API key"));
            }
        };
        Ok(Signer { region, authentication })
    }

    /// The authentication headers of a request with this body, signed for that time.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if it can't be signed.
    pub(super) fn headers(
        &self,
        url: &str,
        body: &[u8],
        time: SystemTime,
    ) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        let pair = match &self.authentication {
            Authentication::KeyPair(pair) => pair,
            Authentication::Bearer(key) => {
                headers.insert(AUTHORIZATION, key.clone());
                return Ok(headers);
            }
        };
        let away = |why: String| Fault::unavailable(format!("the request cannot be signed: {why}"));
        let identity = pair.clone().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(time)
            .settings(SigningSettings::default())
            .build()
            .map_err(|e| away(e.to_string()))?;
        let signed = [(CONTENT_TYPE.as_str(), JSON)].into_iter();
        let request = SignableRequest::new("POST", url, signed, SignableBody::Bytes(body))
            .map_err(|e| away(e.to_string()))?;
        let (made, _) =
            sign(request, &params.into()).map_err(|e| away(e.to_string()))?.into_parts();
        for (name, value) in made.headers() {
            let name = HeaderName::try_from(name).map_err(|e| away(e.to_string()))?;
            let mut value = HeaderValue::try_from(value).map_err(|e| away(e.to_string()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Builds the body of a request. System messages are a field beside the conversation.
///
/// # Errors
/// [`Fault::Rejected`] for a format that this protocol lacks.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let tools = tools_or_answer(job)?;
    let sampling = &job.sampling;
    let (system, conversation): (Vec<_>, Vec<_>) =
        job.messages.iter().partition(|message| message.role == Role::System);
    let conversation = with_results(&conversation, result, message);
    let mut inference = json!({"maxTokens": entry.most_tokens(sampling.max_tokens)});
    let options = [
        ("temperature", sampling.temperature.map(|t| json!(t))),
        ("topP", sampling.top_p.map(|p| json!(p))),
        ("stopSequences", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
    ];
    for (name, option) in options {
        if let Some(value) = option {
            inference[name] = value;
        }
    }
    let mut body = json!({"messages": conversation, "inferenceConfig": inference});
    if !system.is_empty() {
        let system: Vec<Value> =
            system.iter().map(|message| json!({"text": message.content})).collect();
        body["system"] = json!(system);
    }
    if let Some(tools) = tools {
        body["toolConfig"] = tool_config(&tools);
    }
    Ok(body)
}

fn result(message: &Message) -> Value {
    let content = [json!({"text": message.content})];
    json!({"toolResult": {"toolUseId": message.tool_call_id, "content": content}})
}

fn message(message: &Message) -> Value {
    // text blocks must not be empty
    let text = Some(&message.content);
    let text = text.filter(|text| message.tool_calls.is_empty() || !text.is_empty());
    let text = text.map(|text| json!({"text": text}));
    let call = |call: &ToolCall| json!({"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.arguments}});
    let blocks = text.into_iter().chain(message.tool_calls.iter().map(call));
    json!({"role": message.role, "content": blocks.collect::<Vec<_>>()})
}

/// The protocol lacks a tool choice `none` and a bound of one call; an answer that breaks either is
/// rejected when it is read.
fn tool_config(tools: &Tools) -> Value {
    let tool = |tool: &Tool| {
        let mut spec = json!({"name": tool.name, "inputSchema": {"json": tool.input_schema}});
        if let Some(description) = &tool.description {
            spec["description"] = json!(description);
        }
        json!({"toolSpec": spec})
    };
    let choice = match &tools.choice {
        ToolChoice::Auto | ToolChoice::None => json!({"auto": {}}),
        ToolChoice::Required => json!({"any": {}}),
        ToolChoice::Named(name) => json!({"tool": name}),
    };
    json!({"tools": tools.offered.iter().map(tool).collect::<Vec<_>>(), "toolChoice": choice})
}

/// One event as a field with its name, or a buffered answer.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Event {
    content_block_start: Option<BlockStart>,
    content_block_delta: Option<BlockDelta>,
    message_stop: Option<MessageStop>,
    metadata: Option<Metadata>,
    /// A frame of the message type `exception`.
    exception: Option<Value>,
    output: Option<Output>,
    stop_reason: Option<String>,
    usage: Option<TokenCounts>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockStart {
    content_block_index: Option<u32>,
    start: Block,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockDelta {
    content_block_index: Option<u32>,
    delta: Block,
}

/// A content block or a part of one; a block that is neither text nor a tool call has no field set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Block {
    text: Option<String>,
    tool_use: Option<ToolUse>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolUse {
    #[serde(default, deserialize_with = "content::not_empty")]
    tool_use_id: Option<String>,
    #[serde(default, deserialize_with = "content::not_empty")]
    name: Option<String>,
    /// A part of the JSON text in a stream, an object in a buffered answer.
    #[serde(default, deserialize_with = "content::arguments")]
    input: Option<String>,
}

impl Block {
    /// The tool call that this block is, starts or continues.
    fn call(self, index: Option<u32>) -> Option<CallDelta> {
        let ToolUse { tool_use_id: id, name, input: arguments } = self.tool_use?;
        Some(CallDelta { index, id, name, arguments })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageStop {
    stop_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    usage: Option<TokenCounts>,
}

#[derive(Debug, Deserialize)]
struct Output {
    message: OutputMessage,
}

#[derive(Debug, Deserialize)]
struct OutputMessage {
    content: Vec<Block>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenCounts {
    /// Tokens that were not cached.
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
    cache_read_input_tokens: Option<u32>,
    cache_write_input_tokens: Option<u32>,
}

/// Parses an event, or a buffered answer.
///
/// # Errors
/// [`Fault::ProtocolError`] for an unknown format, [`Fault::Crashed`] for an exception,
/// [`Fault::Rejected`] for a filtered answer.
pub(super) fn parse(data: &str) -> Result<AnswerDelta, Fault> {
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    if let Some(exception) = event.exception {
        return Err(gave_up(reason::of(&exception).as_deref()));
    }
    let started = event.content_block_start.map(|head| (head.content_block_index, head.start));
    let more = event.content_block_delta.map(|delta| (delta.content_block_index, delta.delta));
    let whole = event.output.into_iter().flat_map(|output| output.message.content);
    let whole = (0..).map(Some).zip(whole);
    let blocks: Vec<(Option<u32>, Block)> = started.into_iter().chain(more).chain(whole).collect();
    let text: String = blocks.iter().filter_map(|(_, block)| block.text.as_deref()).collect();
    let reason = event.message_stop.and_then(|ending| ending.stop_reason).or(event.stop_reason);
    // the token counts are the last event, after the end of the message
    let is_last = event.metadata.is_some();
    let counts = event.metadata.and_then(|metadata| metadata.usage).or(event.usage);
    let cached = counts.as_ref().and_then(|counts| counts.cache_read_input_tokens);
    let written = counts.as_ref().and_then(|counts| counts.cache_write_input_tokens);
    Ok(AnswerDelta {
        text: Some(text).filter(|text| !text.is_empty()),
        calls: blocks.into_iter().filter_map(|(n, block)| block.call(n)).collect(),
        finish: reason.map_or(Ok(None), |reason| finish_of(&reason))?,
        prompt_tokens: counts.as_ref().and_then(|counts| counts.input_tokens).map(|tokens| {
            tokens.saturating_add(cached.unwrap_or(0)).saturating_add(written.unwrap_or(0))
        }),
        cached_tokens: cached,
        completion_tokens: counts.and_then(|counts| counts.output_tokens),
        is_last,
        ..AnswerDelta::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::expand::Variables;
    use crate::catalog::read;
    use crate::catalog::server::Endpoint;

    fn entry(key: &str, more: &Value) -> Provider {
        let mut big = json!({
            "kind": "bedrock", "model": "anthropic.claude-3-haiku-20240307-v1:0", "key": key,
            "base_url": "https://bedrock-runtime.eu-central-1.amazonaws.com",
        });
        big.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let file = json!({"pilotlight": {"providers": {"big": big}}}).to_string();
        let (catalog, mistakes) = read::read(&file, &Variables::new());
        assert_eq!(mistakes, []);
        let Endpoint::Provider(entry) = &catalog.servers[0].endpoint else { panic!("no provider") };
        entry.as_ref().clone()
    }

    fn signature(entry: &Provider) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        let url = format!("{}/{}", entry.base_url, path(entry));
        let headers = Signer::of(entry).unwrap().headers(&url, br#"{"a":1}"#, time).unwrap();
        assert!(headers.values().all(HeaderValue::is_sensitive));
        headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    /// The expected signatures were computed by botocore's `SigV4Auth` for the same requests.
    #[test]
    fn signatures_are_those_of_botocore() {
        let signed = |signature: &str, token: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/eu-central-1/bedrock/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date{token}, Signature={signature}"
            )
        };
        let plain = entry("AKIDEXAMPLE:secretsecret", &json!({}));
        let expected = "a4b966ea898da56d5497583c939bdfa6bc8207005fe319436324e64db3c9871c";
        assert_eq!(signature(&plain), signed(expected, ""));
        let temporary = entry("AKIDEXAMPLE:secretsecret:tokentoken", &json!({}));
        let expected = "ea4f13d3ede9c1cdaf4d3326f562adbd610b54f085e0141645c92b7e1c87eac7";
        assert_eq!(signature(&temporary), signed(expected, ";x-amz-security-token"));
        let here = json!({"base_url": "https://127.0.0.1:8443", "region": "eu-central-1"});
        let expected = "f6898ecc7b34646be032ee54a643126e0fcea934f0b320a35b1a25c661c9d2fe";
        assert_eq!(signature(&entry("AKIDEXAMPLE:secretsecret", &here)), signed(expected, ""));
        assert_eq!(signature(&entry("api-key", &json!({}))), "Bearer api-key");
    }

    #[test]
    fn no_key_is_shown() {
        for key in ["AKIDEXAMPLE:secretsecret:tokentoken", "secretsecret"] {
            let shown = format!("{:?}", Signer::of(&entry(key, &json!({}))).unwrap());
            assert!(!shown.contains("secretsecret") && !shown.contains("tokentoken"), "{shown}");
        }
        for key in ["", ":secret", "id:", "two\nlines"] {
            assert!(Signer::of(&entry(key, &json!({}))).is_err(), "{key:?}");
        }
    }
}
