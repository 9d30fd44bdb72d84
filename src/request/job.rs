//! Job: one checked request with its prompt, options and bounds.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::format::Format;
use super::labels::Classification;
use super::schema::Schema;
use super::tools::{ToolCall, Tools};
use crate::limits::FRAME_TOKENS_MAX;
use crate::model::context::Locality;

/// Frames that stand for the provider's own instructions on tool calls. Anthropic's are the longest
/// with 530 tokens (its price documentation).
const TOOLS_FRAMES: usize = 20;

/// Identifies a job inside this process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// Author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The client.
    User,
    /// The model.
    Assistant,
    /// The client, with the result of a tool call.
    Tool,
}

impl Role {
    /// The role's name in chat templates and on every wire.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Author.
    pub role: Role,
    /// Text.
    pub content: String,
    /// Tool calls of the model; only in messages of [`Role::Assistant`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Id of the call of which this is the result; only in messages of [`Role::Tool`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message without tool calls.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// Bytes of the text and the tool calls.
    pub fn bytes(&self) -> usize {
        self.content.len() + self.tool_calls.iter().map(ToolCall::bytes).sum::<usize>()
    }

    /// Whether the message contains tool calls or a result, which not every model can read.
    pub fn has_tools(&self) -> bool {
        self.role == Role::Tool || !self.tool_calls.is_empty()
    }
}

/// Where a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Never leaves this device.
    LocalOnly,
    /// On this device while it can meet the deadline; else by a remote model.
    #[default]
    PreferLocal,
    /// By a remote model if one is available, else on this device.
    PreferCloud,
    /// Never on this device.
    CloudOnly,
}

/// How models cooperate on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// One model answers.
    #[default]
    Single,
    /// The device answers; a remote model is asked if the confidence is below the threshold.
    Cascade,
    /// The device drafts and a remote model improves the draft; the draft is the answer if that
    /// fails.
    Refine,
    /// Several models answer in parallel, and the best answer is selected.
    Compare,
}

/// Priority of a request.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// A person waits for the answer.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Any time before its deadline.
    Batch,
}

/// Sampling parameters; an absent one is the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Maximum tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Temperature, 0 ..= 2; 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling, 0 < p ≤ 1.
    pub top_p: Option<f32>,
    /// Only the k most probable tokens, 0 ..= 1000; 0 means all.
    pub top_k: Option<u32>,
    /// Minimum probability of a token, relative to the most probable one, 0 ..= 1.
    pub min_p: Option<f32>,
    /// Divides the logits of recent tokens, 1 (off) ..= 2.
    pub repeat_penalty: Option<f32>,
    /// Seed of the sampling.
    pub seed: Option<u32>,
    /// The answer depends on the request and the model alone, not on what the engine computes beside it or has
    /// computed before. Without a seed, the seed is 0.
    pub deterministic: bool,
    /// Stop strings: the answer ends before the first of them.
    pub stop: Vec<String>,
    /// Return the log-probability of each token and of this many alternatives; none returns
    /// neither.
    pub logprobs: Option<u8>,
}

/// One request, parsed and checked once by a client protocol and trusted afterwards.
#[derive(Debug, Clone)]
pub struct Job {
    /// Given by the dispatcher.
    pub id: JobId,
    /// Who sent it.
    pub client: Client,
    /// The client's id of the request (idempotency key): a repeated key gets the same answer.
    pub key: Option<String>,
    /// Task whose template produced the prompt.
    pub task: Option<String>,
    /// Whose prompts may share an engine's prefix cache with this one: the application, or the group
    /// that it trusts. Others learn from the speed of their answers what is in the cache.
    pub cache_group: String,
    /// Leading bytes of the first message that the operator wrote and all groups may share: the text of
    /// the task's template before its first value. With labels it is more than 0 if the examples are
    /// the task's.
    pub open_bytes: usize,
    /// The conversation, never empty.
    pub messages: Vec<Message>,
    /// Format of the answer.
    pub format: Format,
    /// Tools that the model may call.
    pub tools: Option<Arc<Tools>>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Time left until the deadline, counted from the moment at which the dispatcher takes the job in.
    pub time_left: Duration,
    /// Priority.
    pub priority: Priority,
    /// Where the request may be answered.
    pub mode: Mode,
    /// The furthest locality that may read the request, whatever its mode.
    pub furthest: Locality,
    /// Name of the model to use; none lets the scheduler select.
    pub model: Option<String>,
    /// Skill that the model must state, besides that of the format.
    pub skill: Option<String>,
    /// The answer if a rule of the task gave it; no model is asked then.
    pub ruled: Option<Classification>,
    /// How models cooperate on the request.
    pub strategy: Strategy,
    /// With [`Strategy::Cascade`]: the least mean log-probability of the tokens with which the
    /// device's answer is accepted; at most 0.
    pub threshold: Option<f32>,
    /// With [`Strategy::Compare`]: the model that selects the best answer if no two agree, by name.
    pub judge: Option<String>,
    /// Number of services that the request has passed.
    pub hops: u8,
    /// Whether the client receives the answer in pieces while it is generated.
    pub streamed: bool,
}

impl Job {
    /// Bytes of all messages and tools together.
    pub fn prompt_bytes(&self) -> usize {
        let tools = self.tools.as_ref().map_or(0, |tools| tools.bytes());
        self.messages.iter().map(Message::bytes).sum::<usize>() + tools
    }

    /// Whether only a model that supports tool calls can answer.
    pub fn wants_tools(&self) -> bool {
        self.tools.is_some() || self.messages.iter().any(Message::has_tools)
    }

    /// Upper bound of the input tokens for any model: no tokenizer makes more than one token of a
    /// byte.
    pub fn input_tokens_max(&self) -> u32 {
        let schema = match &self.format {
            Format::Schema(schema) => schema.to_string().len(),
            Format::Text | Format::Json | Format::Label(_) | Format::Embedding => 0,
        };
        let calls: usize = self.messages.iter().map(|m| m.tool_calls.len()).sum();
        let tools = self.tools.as_ref().map_or(0, |tools| tools.offered.len() + TOOLS_FRAMES);
        let frames = FRAME_TOKENS_MAX * (self.messages.len() + calls + tools + 1);
        u32::try_from(self.prompt_bytes() + schema + frames).unwrap_or(u32::MAX)
    }

    /// The schemas that have to be compiled, each with its field of the request.
    pub fn uncompiled_schemas(&self) -> Vec<(String, Schema)> {
        let answer = match &self.format {
            Format::Schema(schema) => Some(("schema".to_owned(), schema)),
            Format::Text | Format::Json | Format::Label(_) | Format::Embedding => None,
        };
        let tools = self.tools.iter().flat_map(|tools| tools.offered.iter().enumerate());
        let tools = tools.map(|(n, tool)| (format!("tools[{n}].input_schema"), &tool.input_schema));
        let all = answer.into_iter().chain(tools).filter(|(_, schema)| !schema.is_compiled());
        all.map(|(field, schema)| (field, schema.clone())).collect()
    }

    /// Whether the answer is delivered as a whole at its end.
    pub fn is_buffered(&self) -> bool {
        !self.streamed || matches!(self.format, Format::Label(_) | Format::Embedding)
    }

    /// All messages as one text.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.messages.iter().map(|m| m.content.as_str()).collect();
        texts.join("\n")
    }

    /// The cache group that brings the labels of its classification. The operator's labels have none: all
    /// groups share what an engine has learned of their examples.
    pub fn label_owner(&self) -> Option<&str> {
        (self.open_bytes == 0).then_some(self.cache_group.as_str())
    }

    /// A job with a prompt and default options, for tests and the command line.
    pub fn plain(prompt: impl Into<String>, time_left: Duration) -> Job {
        Job {
            id: JobId(0),
            client: Client::known("cli"),
            key: None,
            task: None,
            cache_group: String::new(),
            open_bytes: 0,
            messages: vec![Message::new(Role::User, prompt)],
            format: Format::Text,
            tools: None,
            sampling: Sampling::default(),
            time_left,
            priority: Priority::default(),
            mode: Mode::default(),
            furthest: Locality::Cloud,
            model: None,
            skill: None,
            ruled: None,
            strategy: Strategy::Single,
            threshold: None,
            judge: None,
            hops: 0,
            streamed: false,
        }
    }
}
