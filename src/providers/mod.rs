//! Cloud providers: models over HTTPS, each in its provider's own protocol.
//!
//! The fault of each failure (`fault_of`), under the name that it has on the wire:
//!
//! | response | fault | consequence |
//! |---|---|---|
//! | 400, 404, 413, 422 | `unfit` | another model may be tried; this one is not asked again for the job, except with the other name of the token limit (`learned`) |
//! | 401, 403 | `away`, the key was refused | one warning in the log; the circuit breaker opens with its own backoff |
//! | 408, 409, 424, 425, 429, 5xx | `away` | the circuit breaker opens, for `Retry-After` if it is given; another model may be tried |
//! | content filter or refusal | `unfit`, code `forbidden` | only the `fallbacks` are tried; without any the client is told |
//! | 3xx | `broken` | redirects are not followed: they would leak the key |
//! | no connection, no response | `away`, `hung` | as for 5xx |
//! | malformed response | `broken` | as for 5xx |
//!
//! A provider keeps no state of its own about failures: the scheduler's circuit breaker decides when
//! the next attempt is made. Once the first chunk is sent to the client, no other model continues the
//! answer.

mod answer;
mod anthropic;
#[cfg(feature = "bedrock")]
mod bedrock;
mod calls;
mod content;
mod finish;
#[cfg(feature = "bedrock")]
mod frames;
#[cfg(fuzzing)]
pub mod fuzzing;
mod learned;
mod openai;
mod reason;
mod retry_after;
mod sse;
mod stream;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use serde_json::{Value, json};

use self::learned::LearnedForm;
use self::retry_after::retry_after;
use crate::catalog::provider::{MaxTokensField, Provider, ProviderKind};
use crate::catalog::url::ServerSecrets;
use crate::clock;
use crate::model::context::{
    Capabilities, Identification, InferenceSettings, ModelContext, Runtime,
};
use crate::model::generate::{BoxFuture, Fault, Generate, Usage};
use crate::model::out::Out;
use crate::net::client;
use crate::random;
use crate::request::format::Format;
use crate::request::job::{Job, Message, Role};
use crate::request::refusal::{Code, Refusal};
use crate::request::skill::GENERATE;
use crate::request::tools::{Name, Tool, ToolChoice, Tools, any_object};

/// Name of the tool whose forced call emulates JSON mode.
const ANSWER_TOOL: &str = "answer";

/// A provider's protocol: how requests are built and events parsed.
struct Protocol {
    /// Name in a `ModelContext`.
    name: &'static str,
    /// Path after the base URL.
    path: fn(&Provider) -> String,
    /// Builds the body of a request.
    request: fn(&Job, &Provider) -> Result<Value, Fault>,
    /// Parses one event of a stream, or a buffered answer.
    parse: fn(&str) -> Result<answer::AnswerDelta, Fault>,
    /// The protocol has no JSON mode; it is emulated by a forced tool call, whose arguments are the
    /// answer.
    json_by_tool: bool,
}

const OPENAI: Protocol = Protocol {
    name: "openai",
    path: |_| "chat/completions".to_owned(),
    request: openai::request,
    parse: openai::parse,
    json_by_tool: false,
};
const ANTHROPIC: Protocol = Protocol {
    name: "anthropic",
    path: |_| "messages".to_owned(),
    request: anthropic::request,
    parse: anthropic::parse,
    json_by_tool: true,
};

#[cfg(feature = "bedrock")]
const BEDROCK: Protocol = Protocol {
    name: "bedrock",
    path: bedrock::path,
    request: bedrock::request,
    parse: bedrock::parse,
    json_by_tool: true,
};

fn protocol_of(kind: ProviderKind) -> &'static Protocol {
    match kind {
        ProviderKind::OpenAi => &OPENAI,
        ProviderKind::Anthropic => &ANTHROPIC,
        #[cfg(feature = "bedrock")]
        ProviderKind::Bedrock => &BEDROCK,
    }
}

/// One model of a provider.
struct CloudModel {
    entry: Provider,
    protocol: &'static Protocol,
    url: Url,
    /// What its faults must not contain, besides the key.
    secrets: ServerSecrets,
    #[cfg(feature = "bedrock")]
    signer: Option<bedrock::Signer>,
    client: reqwest::Client,
    context: ModelContext,
    silence: Duration,
    /// The log has a warning that the key is refused; cleared by the next success.
    is_key_warned: AtomicBool,
    learned: LearnedForm,
}

/// A response that is no answer.
struct ErrorResponse {
    status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
}

/// Builds the client of a provider's model, without sending anything. `silence` bounds the time to the
/// response's head, and between two reads of its body.
///
/// # Errors
/// [`Fault::Unavailable`] if a certificate, the key or the URL can't be used.
pub fn open(entry: &Provider, silence: Duration) -> Result<Arc<dyn Generate>, Fault> {
    let mut headers =
        headers_of(entry).ok_or_else(|| Fault::unavailable("the key is no valid header value"))?;
    let extra = &entry.headers.0;
    headers.extend(extra.clone());
    let protocol = protocol_of(entry.kind);
    let url = format!("{}/{}", entry.base_url, (protocol.path)(entry));
    let url = Url::parse(&url)
        .map_err(|e| Fault::unavailable(format!("the value of base_url is not a URL: {e}")))?;
    let protocols: [&[u8]; 2] = [b"h2", b"http/1.1"];
    let client = client::trusting(&url, &entry.addresses, entry.ca.as_deref(), &protocols)
        .map_err(Fault::unavailable)?
        .default_headers(headers)
        .read_timeout(silence)
        .build()
        .map_err(|e| {
            let why = e.without_url();
            Fault::unavailable(format!("the HTTP client cannot be created: {why}"))
        })?;
    Ok(Arc::new(CloudModel {
        entry: entry.clone(),
        protocol,
        url,
        secrets: ServerSecrets::new(
            &entry.base_url,
            extra.values().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok()),
        ),
        #[cfg(feature = "bedrock")]
        signer: match entry.kind {
            ProviderKind::Bedrock => Some(bedrock::Signer::of(entry)?),
            ProviderKind::OpenAi | ProviderKind::Anthropic => None,
        },
        client,
        context: context_of(entry),
        silence,
        is_key_warned: AtomicBool::new(false),
        learned: LearnedForm::default(),
    }))
}

/// The headers of every request, the key among them; `None` if the key is no valid header value.
fn headers_of(entry: &Provider) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let (name, prefix) = match entry.kind {
        ProviderKind::OpenAi => (AUTHORIZATION, "Bearer "),
        ProviderKind::Anthropic => {
            headers.insert("anthropic-version", HeaderValue::from_static(anthropic::VERSION));
            (HeaderName::from_static("x-api-key"), "")
        }
        // each request is signed
        #[cfg(feature = "bedrock")]
        ProviderKind::Bedrock => return Some(headers),
    };
    if let Some(key) = &entry.key {
        let mut value = HeaderValue::try_from(format!("{prefix}{}", key.0)).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Some(headers)
}

/// The fault of a format that no provider has: labels and embeddings.
fn unsupported_format() -> Fault {
    let message = "this model generates text only; labels and embeddings need another model";
    Fault::Rejected(Refusal::field(Code::Incapable, "format", message))
}

/// The tool whose forced call emulates JSON mode (`json_by_tool`): its arguments are the answer. `None`
/// for plain text.
fn answer_tool(format: &Format) -> Result<Option<Tool>, Fault> {
    let input_schema = match format {
        Format::Text => return Ok(None),
        Format::Json => any_object(),
        Format::Schema(schema) if schema["type"] == "object" => schema.clone(),
        Format::Schema(_) => {
            let message =
                "this model supports JSON objects only; the schema needs \"type\": \"object\"";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "schema", message)));
        }
        Format::Label(_) | Format::Embedding => return Err(unsupported_format()),
    };
    let description = Some("Gives the answer. Always call it, with the whole answer.".to_owned());
    Ok(Some(Tool { name: ANSWER_TOOL.to_owned(), description, input_schema }))
}

/// The tools of a request with `json_by_tool`: the client's own, or the one that emulates JSON mode.
fn tools_or_answer(job: &Job) -> Result<Option<Cow<'_, Tools>>, Fault> {
    match (answer_tool(&job.format)?, job.tools.as_deref()) {
        (None, tools) => Ok(tools.map(Cow::Borrowed)),
        (Some(tool), None) => {
            let choice = ToolChoice::Named(Name { name: tool.name.clone() });
            Ok(Some(Cow::Owned(Tools { offered: vec![tool], choice, parallel: false })))
        }
        (Some(_), Some(_)) => {
            let message = "this model emulates JSON by a tool call; omit schema or tools";
            Err(Fault::Rejected(Refusal::field(Code::Incapable, "schema", message)))
        }
    }
}

/// The messages of a conversation in a protocol where tool results are blocks of a user's message:
/// consecutive results become one message, every other message is built by `message`.
fn with_results(
    messages: &[&Message],
    result: fn(&Message) -> Value,
    message: fn(&Message) -> Value,
) -> Vec<Value> {
    let is_result = |message: &Message| message.role == Role::Tool;
    let build = |run: &[&Message]| {
        if !is_result(run[0]) {
            return message(run[0]);
        }
        let results: Vec<Value> = run.iter().map(|message| result(message)).collect();
        json!({"role": Role::User, "content": results})
    };
    messages.chunk_by(|a, b| is_result(a) && is_result(b)).map(build).collect()
}

fn context_of(entry: &Provider) -> ModelContext {
    let uri: Option<http::Uri> = entry.base_url.parse().ok();
    let host = uri.and_then(|uri| uri.host().map(str::to_owned));
    ModelContext {
        identification: Identification {
            name: entry.model.clone(),
            provider: host,
            ..Identification::default()
        },
        capabilities: Capabilities {
            context_tokens: entry.context_tokens,
            max_output_tokens: entry.max_output_tokens,
            modalities: vec!["text".to_owned()],
            json_schema: entry.json_schema,
            tools: entry.tools,
            logprobs: entry.logprobs,
            streaming: true,
            skills: vec![GENERATE.to_owned()],
            ..Capabilities::default()
        },
        inference_settings: InferenceSettings {
            max_tokens: entry.max_output_tokens,
            ..InferenceSettings::default()
        },
        runtime: Runtime {
            backend: protocol_of(entry.kind).name.to_owned(),
            location: "cloud".to_owned(),
            slots: entry.slots,
            ..Runtime::default()
        },
        ..ModelContext::default()
    }
}

impl Generate for CloudModel {
    fn generate<'a>(&'a self, job: &'a Job, mut out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(async move {
            let answered = self.answer(job, &mut out).await;
            answered.map_err(|fault| fault.map_text(|text| self.without_key(text)))
        })
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }
}

impl CloudModel {
    async fn answer(&self, job: &Job, out: &mut Out) -> Result<Usage, Fault> {
        let mut body = (self.protocol.request)(job, &self.entry)?;
        for (name, value) in &self.entry.extra_body.0 {
            body[name] = value.clone();
        }
        let response = tokio::select! {
            response = self.send(body) => response?,
            () = out.gone() => return Err(Fault::Cancelled),
        };
        let mut usage = answer::read(response, self.protocol, job, out).await?;
        usage.cost_usd =
            self.entry.price.of(usage.prompt_tokens, usage.completion_tokens).dollars();
        usage.model.clone_from(&self.entry.model);
        Ok(usage)
    }

    /// Sends a request, and once more if the provider proposes another name of its token limit.
    async fn send(&self, mut body: Value) -> Result<Response, Fault> {
        let field = self.learned.max_tokens_field(&self.entry);
        if let Some(field) = field {
            learned::rename(&mut body, field);
        }
        let error = match self.post(&body).await? {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let other = field
            .filter(|field| learned::proposes_other(error.status, *field, &error.message))
            .map(MaxTokensField::other);
        let Some(other) = other else { return Err(self.refused(error)) };
        learned::rename(&mut body, other);
        match self.post(&body).await? {
            Ok(response) => {
                let (model, field) = (&self.entry.model, other.name());
                tracing::info!(model, field, "the provider takes another name of the token limit");
                self.learned.keep(&self.entry, other);
                Ok(response)
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn post(&self, body: &Value) -> Result<Result<Response, ErrorResponse>, Fault> {
        let key = random::id().map_err(|error| Fault::unavailable(error.to_string()))?;
        let body = body.to_string();
        let request = self.client.post(self.url.clone()).header("idempotency-key", key);
        let request = request.header(CONTENT_TYPE, "application/json");
        #[cfg(feature = "bedrock")]
        let request = match &self.signer {
            Some(signer) => request.headers(signer.headers(
                self.url.as_str(),
                body.as_bytes(),
                clock::time_of_day(),
            )?),
            None => request,
        };
        let sent = request.body(body).send();
        // from the request's first byte to the response's head
        let response = match tokio::time::timeout(self.silence, sent).await {
            Ok(response) => response.map_err(|e| fault_of_connection(&e))?,
            Err(_) => return Err(Fault::TimedOut(format!("no response in {:?}", self.silence))),
        };
        if response.status() == StatusCode::OK {
            self.is_key_warned.store(false, Ordering::Relaxed);
            return Ok(Ok(response));
        }
        let status = response.status();
        let retry_after = retry_after(response.headers(), clock::time_of_day());
        let message = reason::of_response(response).await;
        Ok(Err(ErrorResponse { status, message, retry_after }))
    }

    fn refused(&self, error: ErrorResponse) -> Fault {
        let ErrorResponse { status, message, retry_after } = error;
        let message = self.without_key(&message);
        if is_key_refused(status) && !self.is_key_warned.swap(true, Ordering::Relaxed) {
            let model = &self.entry.model;
            tracing::warn!(model, %status, reason = message, "the provider refused the key");
        }
        fault_of(status, &message, retry_after)
    }

    /// Removes the key, and the secrets of URLs, from a text: a provider may repeat them in its error
    /// message.
    fn without_key(&self, text: &str) -> String {
        // a key for signatures has several parts
        let parts = self.entry.key.iter().flat_map(|key| key.0.split(':'));
        parts
            .filter(|part| !part.is_empty())
            .fold(self.secrets.hide(text), |text, part| text.replace(part, "(the key)"))
    }
}

fn is_key_refused(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// The fault of a response that is no answer; see the table of the module.
fn fault_of(status: StatusCode, message: &str, retry_after: Option<Duration>) -> Fault {
    if is_key_refused(status) {
        return Fault::unavailable(format!("the provider refused the key ({status}): {message}"));
    }
    let reason = format!("the provider answered {status}: {message}");
    match status.as_u16() {
        400 | 404 | 413 | 422 => Fault::Rejected(Refusal::new(Code::Incapable, reason)),
        408 | 409 | 424 | 425 | 429 | 500..=599 => Fault::Unavailable { reason, retry_after },
        _ => Fault::ProtocolError(reason),
    }
}

/// The fault of a response that exceeds a bound.
fn too_long() -> Fault {
    Fault::ProtocolError("the response exceeds the size limit".to_owned())
}

/// The fault of a failed connection, with the innermost cause and without the URL.
fn fault_of_connection(error: &reqwest::Error) -> Fault {
    let mut why = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    // bounded by the depth of the error
    while let Some(error) = cause {
        why = error.to_string();
        cause = error.source();
    }
    if error.is_timeout() {
        Fault::TimedOut(format!("the provider sent nothing for too long: {why}"))
    } else if error.is_connect() || error.is_request() {
        Fault::unavailable(format!("not reachable: {why}"))
    } else {
        Fault::Crashed(format!("connection lost: {why}"))
    }
}
