//! A cloud's model over HTTPS, asked in its provider's own protocol.
//!
//! What each failure leads to, in one table ([`fault_of`]):
//!
//! | the provider says | this attempt | and then |
//! |---|---|---|
//! | 400, 404, 413, 422 | unfit | another model may try; this one is not asked again |
//! | 401, 403 | unfit | the same: a key that is refused is refused again |
//! | 408, 409, 424, 425, 429, 5xx | away | it rests, for `Retry-After` if it says so; another may try |
//! | a filter or rule forbids the answer | unfit | only its `fallbacks` are tried; without any the asker is told |
//! | 3xx | broken | nobody is followed to another host with our key |
//! | no connection, no answer | away, hung | as for 5xx |
//! | not what it should be | broken | as for 5xx |
//!
//! After the first piece was written nobody else goes on with the answer.

mod answer;
mod anthropic;
#[cfg(feature = "bedrock")]
mod bedrock;
#[cfg(feature = "bedrock")]
mod frames;
mod openai;
mod stream;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};
use serde_json::{Value, json};

use crate::catalog::provider::{Provider, ProviderKind};
#[cfg(feature = "bedrock")]
use crate::clock;
use crate::clock::now;
use crate::limits::RETRY_AFTER_MAX;
use crate::model::context::{
    Capabilities, Identification, InferenceSettings, ModelContext, Runtime,
};
use crate::model::generate::{BoxFuture, Fault, Generate, Out, Usage};
use crate::net::client;
use crate::net::tls;
use crate::request::format::Format;
use crate::request::job::{Job, Message, Role};
use crate::request::refusal::{Code, Refusal};
use crate::request::skill::GENERATE;
use crate::request::tools::{Name, Tool, ToolChoice, Tools, any_object};

/// The most of an error's text that is told on, in characters.
const ERROR_CHARS_MAX: usize = 300;
/// The most of an error's body that is read, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// The name of the tool that stands for the answer.
const ANSWER_TOOL: &str = "answer";

/// How a provider is talked to.
struct Protocol {
    /// Its name in a `ModelContext`.
    name: &'static str,
    /// What follows the base URL.
    path: fn(&Provider) -> String,
    /// The body of a request.
    request: fn(&Job, &Provider) -> Result<Value, Fault>,
    /// What an event says, or a whole answer.
    parse: fn(&str) -> Result<answer::News, Fault>,
    /// It has no words for JSON, but a tool that it has to call: the answer is that call's arguments.
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

/// A model of a provider.
struct Cloud {
    entry: Provider,
    protocol: &'static Protocol,
    url: Url,
    #[cfg(feature = "bedrock")]
    signer: Option<bedrock::Signer>,
    client: reqwest::Client,
    context: ModelContext,
    silence: Duration,
    /// It has asked not to be asked before then.
    rests_until: Mutex<Option<Instant>>,
}

/// Makes what answers by this provider; nothing is sent yet.
///
/// # Errors
/// [`Fault::Unavailable`] if a certificate or the key can't be used.
pub fn open(entry: &Provider, silence: Duration) -> Result<Arc<dyn Generate>, Fault> {
    let away = |why: String| Fault::unavailable(why);
    let files = tls::TlsFiles { ca: entry.ca.clone(), ..tls::TlsFiles::default() };
    let tls = tls::client(&files).map_err(|e| away(format!("{e:#}")))?;
    let mut tls = tls.as_ref().clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let headers =
        headers_of(entry).ok_or_else(|| away("the key can't stand in a header".to_owned()))?;
    let protocol = protocol_of(entry.kind);
    let url = format!("{}/{}", entry.base_url, (protocol.path)(entry));
    let url = Url::parse(&url).map_err(|e| away(format!("{url} is no URL: {e}")))?;
    let client = client::builder(&url)
        .tls_backend_preconfigured(tls)
        .default_headers(headers)
        .read_timeout(silence)
        .build()
        .map_err(|e| away(format!("the HTTP client can't be made: {e}")))?;
    Ok(Arc::new(Cloud {
        entry: entry.clone(),
        protocol,
        url,
        #[cfg(feature = "bedrock")]
        signer: match entry.kind {
            ProviderKind::Bedrock => Some(bedrock::Signer::of(entry)?),
            ProviderKind::OpenAi | ProviderKind::Anthropic => None,
        },
        client,
        context: context_of(entry),
        silence,
        rests_until: Mutex::new(None),
    }))
}

/// The headers of every request, the key among them; none if it can't stand in one.
fn headers_of(entry: &Provider) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let (name, before) = match entry.kind {
        ProviderKind::OpenAi => (AUTHORIZATION, "Bearer "),
        ProviderKind::Anthropic => {
            headers.insert("anthropic-version", HeaderValue::from_static(anthropic::VERSION));
            (HeaderName::from_static("x-api-key"), "")
        }
        // each request has its own
        #[cfg(feature = "bedrock")]
        ProviderKind::Bedrock => return Some(headers),
    };
    if let Some(key) = &entry.key {
        let mut value = HeaderValue::try_from(format!("{before}{}", key.0)).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Some(headers)
}

/// The fault of a prompt that asks for what no provider is asked for.
fn no_words() -> Fault {
    let message = "this model writes text; what was asked for needs another";
    Fault::Rejected(Refusal::field(Code::Incapable, "format", message))
}

/// The one tool that stands for the answer where JSON is asked for with `json_by_tool`; its arguments
/// are the answer.
fn answer_tool(format: &Format) -> Result<Option<Tool>, Fault> {
    let input_schema = match format {
        Format::Text => return Ok(None),
        Format::Json => any_object(),
        Format::Schema(schema) if schema["type"] == "object" => schema.as_ref().clone(),
        Format::Schema(_) => {
            let message =
                "this model writes JSON objects only; give the schema \"type\": \"object\"";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "schema", message)));
        }
        Format::Label(_) | Format::Embedding => return Err(no_words()),
    };
    let description = Some("Gives the answer. Always call it, with the whole answer.".to_owned());
    Ok(Some(Tool { name: ANSWER_TOOL.to_owned(), description, input_schema }))
}

/// The tools of a request with `json_by_tool`: the asker's own, or the one that stands for the answer.
fn tools_or_answer(job: &Job) -> Result<Option<Cow<'_, Tools>>, Fault> {
    match (answer_tool(&job.format)?, job.tools.as_deref()) {
        (None, tools) => Ok(tools.map(Cow::Borrowed)),
        (Some(tool), None) => {
            let choice = ToolChoice::Named(Name { name: tool.name.clone() });
            Ok(Some(Cow::Owned(Tools { offered: vec![tool], choice, parallel: false })))
        }
        (Some(_), Some(_)) => {
            let message = "this model is asked for JSON by a tool; leave out schema or tools";
            Err(Fault::Rejected(Refusal::field(Code::Incapable, "schema", message)))
        }
    }
}

/// The turns of a conversation where what tools have returned stands in one message of the user, a block
/// for each result; every other turn as `said` has it.
fn with_results(
    talk: &[&Message],
    result: fn(&Message) -> Value,
    said: fn(&Message) -> Value,
) -> Vec<Value> {
    let is_result = |turn: &Message| turn.role == Role::Tool;
    let turn = |run: &[&Message]| {
        if !is_result(run[0]) {
            return said(run[0]);
        }
        let results: Vec<Value> = run.iter().map(|turn| result(turn)).collect();
        json!({"role": Role::User, "content": results})
    };
    talk.chunk_by(|a, b| is_result(a) && is_result(b)).map(turn).collect()
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

impl Generate for Cloud {
    fn generate<'a>(
        &'a self,
        job: &'a Job,
        out: &'a mut Out,
    ) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(async move {
            let body = (self.protocol.request)(job, &self.entry)?;
            if let Some(left) = self.rests() {
                let seconds = left.as_secs_f64().ceil();
                return Err(Fault::unavailable(format!(
                    "it asked to be left alone for {seconds} s more"
                )));
            }
            let response = tokio::select! {
                response = self.send(&body) => response?,
                () = out.gone() => return Err(Fault::Cancelled),
            };
            let mut usage = answer::read(response, self.protocol, job, out).await?;
            usage.cost_usd =
                self.entry.price.of(usage.prompt_tokens, usage.completion_tokens).dollars();
            usage.model.clone_from(&self.entry.model);
            Ok(usage)
        })
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }
}

impl Cloud {
    async fn send(&self, body: &Value) -> Result<Response, Fault> {
        let key = format!("{:032x}", fastrand::u128(..));
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
        // from the first byte to the head of the answer
        let response = match tokio::time::timeout(self.silence, sent).await {
            Ok(response) => response.map_err(|e| fault_of_line(&e))?,
            Err(_) => return Err(Fault::TimedOut(format!("no answer in {:?}", self.silence))),
        };
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    async fn refused(&self, response: Response) -> Fault {
        let status = response.status();
        let after = retry_after(response.headers());
        let said = self.without_key(&error_text(response).await);
        let fault = fault_of(status, &said);
        if let (Some(wait), Fault::Unavailable { .. }) = (after, &fault) {
            let until = now() + wait.min(RETRY_AFTER_MAX);
            *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        fault
    }

    /// How much longer it wants to be left alone.
    fn rests(&self) -> Option<Duration> {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(now()).filter(|left| !left.is_zero())
    }

    /// A provider may repeat the key in its complaint about it.
    fn without_key(&self, text: &str) -> String {
        // one key may have parts
        let parts = self.entry.key.iter().flat_map(|key| key.0.split(':'));
        parts
            .filter(|part| !part.is_empty())
            .fold(text.to_owned(), |text, part| text.replace(part, "(the key)"))
    }
}

/// The table at the head of this file.
fn fault_of(status: StatusCode, said: &str) -> Fault {
    let what = format!("the provider answered {status}: {said}");
    match status.as_u16() {
        400 | 401 | 403 | 404 | 413 | 422 => Fault::Rejected(Refusal::new(Code::Incapable, what)),
        408 | 409 | 424 | 425 | 429 | 500..=599 => Fault::unavailable(what),
        _ => Fault::ProtocolError(what),
    }
}

/// What went wrong on the way, without the URL.
fn fault_of_line(error: &reqwest::Error) -> Fault {
    let mut why = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    // bounded by the depth of the error
    while let Some(error) = cause {
        why = error.to_string();
        cause = error.source();
    }
    if error.is_timeout() {
        Fault::TimedOut(format!("it was silent for too long: {why}"))
    } else if error.is_connect() || error.is_request() {
        Fault::unavailable(format!("it can't be reached: {why}"))
    } else {
        Fault::Crashed(format!("the line broke: {why}"))
    }
}

/// Seconds, as RFC 9110 has it; a date is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What an error's body says, shortened.
async fn error_text(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        body.extend_from_slice(&part);
        if body.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    let told: Option<Value> = serde_json::from_slice(&body).ok();
    let message = told.as_ref().and_then(|told| {
        let error = &told["error"];
        error["message"].as_str().or(error.as_str()).or(told["message"].as_str())
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
    text.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect()
}
