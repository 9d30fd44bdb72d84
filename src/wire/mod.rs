//! Request and reply as JSON, with the same fields on MQTT, in the tool `generate` and on the
//! command line. A request is parsed and checked here, once.

mod checks;
mod reading;
mod reply;
mod tools;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use self::reading::{read, read_value};
pub use self::reply::{Reply, ReplyUsage, Source, Status, Timing, WireError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::checks::{
    check_admitted, check_length, check_logprobs, check_mode, check_range, check_schema,
    check_stops,
};
use crate::catalog::catalog::Catalog;
use crate::catalog::task::Task;
use crate::limits::{
    DEADLINE_MAX, DEADLINE_MIN, EMBED_TEXTS_MAX, KEY_BYTES_MAX, MESSAGES_MAX, OUTPUT_TOKENS_MAX,
    PROMPT_BYTES_MAX,
};
use crate::request::client::Client;
use crate::request::format::Format;
use crate::request::job::{Job, JobId, Message, Mode, Priority, Role, Sampling, Strategy};
use crate::request::labels::Labels;
use crate::request::numbers::whole;
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::{Schema, SchemaBounds};
use crate::request::tools::{Tool, ToolChoice};
use crate::time::millis;

/// A request as written by the client, not checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(rename_all = "snake_case")]
pub struct Ask {
    /// The client's id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// One user message. Exactly one of `prompt`, `messages` and `task` is required; a prompt
    /// beside a task is its value `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// The name of a task in `mcp.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Values of the task's template and rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Map<String, Value>>,
    /// `text`, `json` or `embedding`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<AskFormat>,
    /// JSON Schema of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// Tools that the model may call. The client executes the calls and returns the results in the
    /// `messages` of its next request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Tool>>,
    /// Whether the model must call a tool: `auto`, `none`, `required`, or an object with its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// Whether parallel calls are allowed; the default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// The labels to choose from, each with examples; the answer is one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, Vec<String>>>,
    /// See [`Labels::margin`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Required skill of the model.
    #[serde(rename = "talent", skip_serializing_if = "Option::is_none")]
    pub skill: Option<String>,
    /// See [`Sampling`].
    #[serde(deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// See [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// See [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// See [`Sampling`].
    #[serde(deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// See [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// See [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// See [`Sampling`].
    #[serde(deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// See [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deterministic: Option<bool>,
    /// See [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Return the log-probability of each token; see [`Sampling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Return this many alternatives of each token; see [`Sampling`].
    #[serde(deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u8>,
    /// Send the pieces of the answer while it is generated, besides the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Deadline in milliseconds.
    #[serde(deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Priority; on the wire `class`.
    #[serde(rename = "class", skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Where the request may be answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How models cooperate: `single`, `cascade`, `refine` or `compare`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// With `compare`: the model that selects the best answer if no two agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
    /// Name of the model to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// Format of the answer, without schema or labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskFormat {
    /// Any text.
    Text,
    /// A JSON object.
    Json,
    /// An embedding of each message.
    Embedding,
}

impl Ask {
    /// Checks every field and returns the job, completed with the defaults of the task and the
    /// catalog.
    ///
    /// # Errors
    /// A refusal that names the first invalid field.
    pub fn check(self, client: &Client, catalog: &Catalog) -> Result<Job, Refusal> {
        let policy = catalog.app_policy(client);
        check_admitted(client, policy)?;
        let task = self.task_of(catalog)?;
        let input = self.input_of(task)?;
        let messages = self.messages_of(task, input.as_deref())?;
        let ruled = match (task, &input) {
            (Some(task), Some(input)) => task.ruled(input)?,
            (_, _) => None,
        };
        drop(input);
        let prompt_bytes: usize = messages.iter().map(Message::bytes).sum();
        if prompt_bytes > PROMPT_BYTES_MAX {
            let message = format!("{prompt_bytes} bytes, at most {PROMPT_BYTES_MAX}");
            return Err(Refusal::field(Code::TooLarge, "prompt", message));
        }
        let priority = self.priority.unwrap_or_default().max(policy.most_urgent);
        let deadline = self
            .deadline_ms
            .or(task.and_then(|t| t.deadline_ms))
            .map_or(catalog.deadline(priority), Duration::from_millis);
        if !(DEADLINE_MIN..=DEADLINE_MAX).contains(&deadline) {
            let most = DEADLINE_MAX.as_millis();
            let message = format!("{} ms, must be 1 to {most}", deadline.as_millis());
            return Err(Refusal::field(Code::Invalid, "deadline_ms", message));
        }
        if let Some(id) = &self.id {
            check_length("id", id, KEY_BYTES_MAX)?;
        }
        if let Some(model) = &self.model {
            check_length("model", model, KEY_BYTES_MAX)?;
        }
        if let Some(judge) = &self.judge {
            check_length("judge", judge, KEY_BYTES_MAX)?;
        }
        if let Some(skill) = &self.skill {
            check_length("talent", skill, KEY_BYTES_MAX)?;
        }
        let strategy = self.strategy.or(task.map(|t| t.strategy)).unwrap_or_default();
        let mut bounds = SchemaBounds::default();
        let format = self.format_of(task, &messages, &mut bounds)?;
        if strategy != Strategy::Single
            && !matches!(format, Format::Text | Format::Json | Format::Schema(_))
        {
            let message = "applies to text and JSON only; for labels use margin";
            return Err(Refusal::field(Code::Invalid, "strategy", message));
        }
        if self.judge.is_some() && strategy != Strategy::Compare {
            let message = "requires \"strategy\": \"compare\"";
            return Err(Refusal::field(Code::Invalid, "judge", message));
        }
        let own_labels = self.labels.is_some();
        let mode = self.mode.unwrap_or(catalog.default_mode);
        let furthest = catalog.furthest(policy, task);
        check_mode(mode, furthest)?;
        Ok(Job {
            id: JobId(0),
            cache_group: policy.cache_group(client),
            client: client.clone(),
            open_bytes: task.filter(|_| !own_labels).map_or(0, Task::open_bytes),
            tools: self.tools_of(&format, &messages, &mut bounds)?,
            format,
            sampling: self.sampling_of(task)?,
            messages,
            ruled,
            skill: self.skill.or_else(|| task.and_then(|t| t.skill.clone())),
            time_left: deadline,
            priority,
            mode,
            furthest,
            key: self.id,
            task: self.task,
            model: self.model,
            strategy,
            threshold: task.and_then(|t| t.threshold),
            judge: self.judge.or_else(|| task.and_then(|t| t.judge.clone())),
            hops: 0,
            streamed: self.stream == Some(true),
        })
    }

    /// The request of this job, for another service. The furthest locality is sent separately.
    pub fn of(job: &Job) -> Ask {
        // what is ignored here is not sent; what is sent is redacted by `redact::pieces`
        let Job {
            id: _,
            client: _,
            key,
            task: _,
            cache_group: _,
            open_bytes: _,
            messages,
            format: asked_format,
            tools,
            sampling,
            time_left,
            priority,
            mode,
            furthest: _,
            model: _,
            skill: _,
            ruled: _,
            strategy: _,
            threshold: _,
            judge: _,
            hops: _,
            streamed,
        } = job;
        let (mut format, mut schema, mut labels) = (None, None, None);
        match asked_format {
            Format::Text => {}
            Format::Json => format = Some(AskFormat::Json),
            Format::Schema(asked) => schema = Some(asked.clone()),
            Format::Label(asked) => labels = Some(asked.as_ref().clone()),
            Format::Embedding => format = Some(AskFormat::Embedding),
        }
        let sampling = sampling.clone();
        let tools = tools.as_deref();
        Ask {
            id: key.clone(),
            messages: Some(messages.clone()),
            tools: tools.map(|tools| tools.offered.clone()),
            tool_choice: tools.map(|tools| tools.choice.clone()),
            parallel_tool_calls: tools.map(|tools| tools.parallel),
            format,
            schema,
            margin: labels.as_ref().map(|labels| labels.margin),
            labels: labels.map(|labels| labels.examples),
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repeat_penalty: sampling.repeat_penalty,
            seed: sampling.seed,
            deterministic: sampling.deterministic.then_some(true),
            stop: Some(sampling.stop).filter(|stop| !stop.is_empty()),
            logprobs: sampling.logprobs.map(|_| true),
            top_logprobs: sampling.logprobs.filter(|top| *top > 0),
            stream: Some(*streamed),
            deadline_ms: Some(millis((*time_left).clamp(DEADLINE_MIN, DEADLINE_MAX))),
            priority: Some(*priority),
            // local and cloud are relative to the service; a private request is private everywhere
            mode: Some(*mode).filter(|mode| *mode == Mode::LocalOnly),
            ..Ask::default()
        }
    }

    fn task_of<'c>(&self, catalog: &'c Catalog) -> Result<Option<&'c Task>, Refusal> {
        let Some(name) = &self.task else {
            return Ok(None);
        };
        match catalog.tasks.get(name) {
            Some(task) => Ok(Some(task)),
            None => {
                let known: Vec<&str> = catalog.tasks.keys().map(String::as_str).collect();
                let message = format!("unknown task {name:?}; tasks: {}", known.join(", "));
                Err(Refusal::field(Code::Unknown, "task", message))
            }
        }
    }

    /// Values of the task's template; a prompt beside a task is the value `input`.
    fn input_of(
        &self,
        task: Option<&Task>,
    ) -> Result<Option<Cow<'_, Map<String, Value>>>, Refusal> {
        match (&self.input, task, &self.prompt) {
            (Some(_), None, _) => {
                let message = "requires task";
                Err(Refusal::field(Code::Invalid, "input", message))
            }
            (None, None, _) => Ok(None),
            (Some(input), Some(_), _) => Ok(Some(Cow::Borrowed(input))),
            (None, Some(_), Some(prompt)) => {
                let input = Map::from_iter([("input".to_owned(), Value::from(prompt.clone()))]);
                Ok(Some(Cow::Owned(input)))
            }
            (None, Some(_), None) => Ok(Some(Cow::Owned(Map::new()))),
        }
    }

    fn messages_of(
        &self,
        task: Option<&Task>,
        input: Option<&Map<String, Value>>,
    ) -> Result<Vec<Message>, Refusal> {
        let user = |content| vec![Message::new(Role::User, content)];
        let messages = match (&self.prompt, &self.messages, task.zip(input)) {
            (Some(prompt), None, None) => user(prompt.clone()),
            (None, Some(messages), None) => messages.clone(),
            (None, None, Some((task, input))) => user(task.render(input)?),
            (Some(_), None, Some((task, input))) if self.input.is_none() => {
                user(task.render(input)?)
            }
            (_, _, _) => {
                let message = "give exactly one of prompt, messages, or task (with input)";
                return Err(Refusal::field(Code::Invalid, "prompt", message));
            }
        };
        if messages.len() > MESSAGES_MAX {
            let message = format!("{} messages, at most {MESSAGES_MAX}", messages.len());
            return Err(Refusal::field(Code::TooLarge, "messages", message));
        }
        if messages.iter().all(|m| m.content.trim().is_empty()) {
            return Err(Refusal::field(Code::Invalid, "prompt", "the prompt is empty"));
        }
        Ok(messages)
    }

    fn format_of(
        &self,
        task: Option<&Task>,
        messages: &[Message],
        bounds: &mut SchemaBounds,
    ) -> Result<Format, Refusal> {
        if let Some(labels) = self.labels_of(task)? {
            return Ok(Format::Label(Arc::new(labels)));
        }
        let schema = self.schema.as_ref().or(task.and_then(|t| t.schema.as_ref()));
        match (schema, self.format) {
            (Some(schema), None | Some(AskFormat::Json)) => {
                check_schema(bounds, "schema", schema)?;
                Ok(Format::Schema(schema.clone()))
            }
            (Some(_), Some(AskFormat::Text | AskFormat::Embedding)) => {
                let message = "schema implies JSON; omit format or set it to json";
                Err(Refusal::field(Code::Invalid, "format", message))
            }
            (None, Some(AskFormat::Json)) => Ok(Format::Json),
            (None, Some(AskFormat::Embedding)) if messages.len() > EMBED_TEXTS_MAX => {
                let message = format!("{} texts, at most {EMBED_TEXTS_MAX}", messages.len());
                Err(Refusal::field(Code::TooLarge, "messages", message))
            }
            (None, Some(AskFormat::Embedding)) => Ok(Format::Embedding),
            (None, None | Some(AskFormat::Text)) => Ok(Format::Text),
        }
    }

    fn labels_of(&self, task: Option<&Task>) -> Result<Option<Labels>, Refusal> {
        let own = self.labels.clone().map(|examples| Labels { examples, margin: 0.0 });
        let Some(labels) = own.or_else(|| task.and_then(Task::labels)) else {
            let message = "requires labels";
            return match self.margin {
                Some(_) => Err(Refusal::field(Code::Invalid, "margin", message)),
                None => Ok(None),
            };
        };
        if self.schema.is_some() || self.format.is_some() {
            let field = if self.schema.is_some() { "schema" } else { "format" };
            let message = "cannot be combined with labels; remove it";
            return Err(Refusal::field(Code::Invalid, field, message));
        }
        check_range("margin", self.margin, 0.0, 1.0)?;
        let labels = Labels { margin: self.margin.unwrap_or(labels.margin), ..labels };
        labels.check().map_err(|(place, message)| {
            Refusal::field(Code::Invalid, format!("labels{place}"), message)
        })?;
        Ok(Some(labels))
    }

    fn sampling_of(&self, task: Option<&Task>) -> Result<Sampling, Refusal> {
        let max_tokens = self.max_tokens.or(task.and_then(|t| t.max_tokens));
        if let Some(n) = max_tokens
            && !(1..=OUTPUT_TOKENS_MAX).contains(&n)
        {
            let message = format!("{n}, must be 1 to {OUTPUT_TOKENS_MAX}");
            return Err(Refusal::field(Code::Invalid, "max_tokens", message));
        }
        check_range("temperature", self.temperature, 0.0, 2.0)?;
        check_range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        check_range("min_p", self.min_p, 0.0, 1.0)?;
        check_range("repeat_penalty", self.repeat_penalty, 1.0, 2.0)?;
        if let Some(k) = self.top_k
            && k > 1000
        {
            return Err(Refusal::field(Code::Invalid, "top_k", format!("{k}, must be 0 to 1000")));
        }
        let stop = self.stop.clone().unwrap_or_default();
        check_stops(&stop)?;
        Ok(Sampling {
            max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
            deterministic: self.deterministic == Some(true),
            stop,
            logprobs: check_logprobs(self.logprobs, self.top_logprobs)?,
        })
    }
}
