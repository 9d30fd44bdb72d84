//! What an asker says: a prompt with its wishes and bounds, and what it is told when it can't be had.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::format::Format;
use super::labels::Classification;
use super::tools::{ToolCall, Tools};
use crate::limits::FRAME_TOKENS_MAX;

/// Frames that a provider's own words on how to call tools are counted as; Anthropic's take the
/// most, 530 tokens, by its documentation of prices.
const TOOLS_FRAMES: usize = 20;

/// Names one job inside this process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Rules that hold for the whole conversation.
    System,
    /// The asker.
    User,
    /// The model.
    Assistant,
    /// The asker, with what a tool has returned.
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
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// The tools that the model calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call of which this is the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A turn without tools.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// Bytes of what is said and called.
    pub fn bytes(&self) -> usize {
        self.content.len() + self.tool_calls.iter().map(ToolCall::bytes).sum::<usize>()
    }

    /// Whether it speaks of tools, so that not every model can read it.
    pub fn has_tools(&self) -> bool {
        self.role == Role::Tool || !self.tool_calls.is_empty()
    }
}

/// Where a prompt may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Never leaves this device.
    LocalOnly,
    /// On this device as long as it can; elsewhere with a reason.
    #[default]
    PreferLocal,
    /// Elsewhere if it can be had, else here.
    PreferCloud,
    /// Never on this device.
    CloudOnly,
}

/// How models work together on one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// One model answers.
    #[default]
    Single,
    /// The device answers; a model elsewhere is asked if that answer is not good enough.
    Cascade,
    /// The device drafts, a model elsewhere makes it better; the draft counts if that fails.
    Refine,
    /// Several answer at once, and the best of these answers counts.
    Compare,
}

/// How urgent a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody waits for it.
    Interactive,
    /// The usual.
    #[default]
    Normal,
    /// Any time before its deadline.
    Batch,
}

/// How the next token is chosen; what is absent is the model's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// 0 is greedy; 0 ..= 2.
    pub temperature: Option<f32>,
    /// Nucleus, 0 < p ≤ 1.
    pub top_p: Option<f32>,
    /// The k likeliest; 0 is all.
    pub top_k: Option<u32>,
    /// Share of the likeliest token's probability below which a token is dropped, 0 ..= 1.
    pub min_p: Option<f32>,
    /// Divides the logits of recent tokens, 1 (off) ..= 2.
    pub repeat_penalty: Option<f32>,
    /// Makes sampling repeatable.
    pub seed: Option<u32>,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// Say how likely each token was, and this many others at its place; none says nothing.
    pub logprobs: Option<u8>,
}

/// One prompt on its way: parsed once at a door, checked there, trusted from there on.
#[derive(Debug, Clone)]
pub struct Job {
    /// Given by the dispatcher.
    pub id: JobId,
    /// The application that asks.
    pub app: String,
    /// The asker's own name for this request; the same key gives the same answer.
    pub key: Option<String>,
    /// The task whose template made the prompt.
    pub task: Option<String>,
    /// The conversation, never empty.
    pub messages: Vec<Message>,
    /// The shape of the answer.
    pub format: Format,
    /// The tools that may be called.
    pub tools: Option<Arc<Tools>>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Time left for the answer, counted from when this value was made.
    pub time_left: Duration,
    /// How urgent it is.
    pub priority: Priority,
    /// Where it may be answered.
    pub mode: Mode,
    /// The one model that shall answer, by name.
    pub model: Option<String>,
    /// A talent that the model must state, besides what the format needs.
    pub skill: Option<String>,
    /// The answer, if a rule of the task gave it: no model is asked.
    pub ruled: Option<Classification>,
    /// How models work together on it.
    pub strategy: Strategy,
    /// With [`Strategy::Cascade`], the mean log-probability of its tokens from which on an answer of
    /// the device is good enough; at most 0.
    pub threshold: Option<f32>,
    /// With [`Strategy::Compare`], the model that says which answer is best where none agree, by name.
    pub judge: Option<String>,
    /// Services that it has passed already.
    pub hops: u8,
    /// The asker reads the answer piece by piece while it is written.
    pub streamed: bool,
}

impl Job {
    /// Bytes of all messages and tools together.
    pub fn prompt_bytes(&self) -> usize {
        let tools = self.tools.as_ref().map_or(0, |tools| tools.bytes());
        self.messages.iter().map(Message::bytes).sum::<usize>() + tools
    }

    /// Whether only a model that calls tools can answer it.
    pub fn wants_tools(&self) -> bool {
        self.tools.is_some() || self.messages.iter().any(Message::has_tools)
    }

    /// The most tokens that this can be for any model: no tokenizer makes more than one of a byte.
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

    /// Whether nothing of the answer is handed out before its end.
    pub fn is_buffered(&self) -> bool {
        !self.streamed || matches!(self.format, Format::Label(_) | Format::Embedding)
    }

    /// All messages as one text.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.messages.iter().map(|m| m.content.as_str()).collect();
        texts.join("\n")
    }

    /// A plain prompt with nothing else said, for tests and the command line.
    pub fn plain(prompt: impl Into<String>, time_left: Duration) -> Job {
        Job {
            id: JobId(0),
            app: "cli".into(),
            key: None,
            task: None,
            messages: vec![Message::new(Role::User, prompt)],
            format: Format::Text,
            tools: None,
            sampling: Sampling::default(),
            time_left,
            priority: Priority::default(),
            mode: Mode::default(),
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
