//! The request of `OpenAI`'s chat completions, and its translation into a request of this service.
//!
//! The format is that of the API reference's "Create chat completion".

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::request::job::{Message, Mode, Priority, Role, Strategy};
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::Schema;
use crate::request::tools::{Name, Tool, ToolCall, ToolChoice, any_object};
use crate::wire::{Ask, AskFormat, read_value};

/// Model names that leave the choice of the model to the scheduler.
pub(super) const ANY_MODEL: [&str; 2] = ["auto", "pilotlight"];

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<ChatMessage>,
    tools: Option<Vec<ChatTool>>,
    tool_choice: Option<ChatToolChoice>,
    parallel_tool_calls: Option<bool>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<u32>,
    stop: Option<OneOrMany>,
    logprobs: Option<bool>,
    top_logprobs: Option<u8>,
    #[serde(default)]
    pub(super) stream: bool,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    metadata: Option<Map<String, Value>>,
    n: Option<u32>,
    // accepted and ignored: no effect on the answer
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "store")]
    _store: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatMessage {
    role: ChatRole,
    /// Optional where tools are called.
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<ChatCall>>,
    tool_call_id: Option<String>,
    // accepted and ignored: an earlier refusal of a model is no prompt
    #[serde(rename = "refusal")]
    _refusal: Option<String>,
    #[serde(rename = "name")]
    _name: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChatRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A tool that the model may call.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ChatTool {
    Function { function: Function },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Schema>,
    // accepted and ignored: arguments are always constrained to their schema
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ChatToolChoice {
    Word(ToolChoiceWord),
    Named(NamedChoice),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToolChoiceWord {
    Auto,
    None,
    Required,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum NamedChoice {
    Function { function: Name },
}

/// A call of an earlier answer.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ChatCall {
    Function { id: String, function: Called },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Called {
    name: String,
    /// A JSON object, as text.
    arguments: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Debug, Deserialize)]
struct JsonSchema {
    schema: Schema,
}

/// Options of this service in `metadata`; other keys are the client's own and ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MetadataOptions {
    id: Option<String>,
    deadline_ms: Option<Value>,
    #[serde(rename = "class")]
    priority: Option<Priority>,
    mode: Option<Mode>,
    task: Option<String>,
    strategy: Option<Strategy>,
    judge: Option<String>,
    deterministic: Option<bool>,
}

impl MetadataOptions {
    pub(super) fn read(metadata: Option<Map<String, Value>>) -> Result<MetadataOptions, Refusal> {
        let metadata = Value::Object(metadata.unwrap_or_default());
        read_value(metadata).map_err(|refusal| Refusal {
            field: Some(format!("metadata.{}", refusal.field.unwrap_or_default())),
            ..refusal
        })
    }

    /// A request with these options and nothing else.
    pub(super) fn ask(self) -> Result<Ask, Refusal> {
        Ok(Ask {
            id: self.id,
            deadline_ms: self.deadline_ms.as_ref().map(milliseconds).transpose()?,
            priority: self.priority.or(Some(Priority::Interactive)),
            mode: self.mode,
            task: self.task,
            strategy: self.strategy,
            judge: self.judge,
            deterministic: self.deterministic,
            ..Ask::default()
        })
    }
}

impl ChatRequest {
    /// Whether a stream ends with the usage.
    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }

    /// Translates the request.
    pub(super) fn ask(self) -> Result<Ask, Refusal> {
        if self.n.is_some_and(|n| n != 1) {
            let message = "must be 1";
            return Err(Refusal::field(Code::Invalid, "n", message));
        }
        if self.stream && self.logprobs == Some(true) {
            let message = "not supported with stream; set stream to false";
            return Err(Refusal::field(Code::Invalid, "logprobs", message));
        }
        let options = MetadataOptions::read(self.metadata)?;
        let messages = self.messages.into_iter().enumerate().map(message_of);
        let messages = messages.collect::<Result<Vec<Message>, Refusal>>()?;
        let (prompt, messages) = match &options.task {
            // the input of a task's template is the last message of the user
            Some(_) => (Some(last_of_the_user(messages)?), None),
            None => (None, Some(messages)),
        };
        let (format, schema) = match self.response_format {
            None | Some(ResponseFormat::Text) => (None, None),
            Some(ResponseFormat::JsonObject) => (Some(AskFormat::Json), None),
            Some(ResponseFormat::JsonSchema { json_schema }) => (None, Some(json_schema.schema)),
        };
        Ok(Ask {
            prompt,
            messages,
            tools: self.tools.map(|tools| tools.into_iter().map(tool_of).collect()),
            tool_choice: self.tool_choice.map(choice_of),
            parallel_tool_calls: self.parallel_tool_calls,
            format,
            schema,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
            stop: self.stop.map(|stop| match stop {
                OneOrMany::One(one) => vec![one],
                OneOrMany::Many(many) => many,
            }),
            stream: Some(self.stream),
            model: Some(self.model).filter(|name| !ANY_MODEL.contains(&name.as_str())),
            ..options.ask()?
        })
    }
}

fn last_of_the_user(messages: Vec<Message>) -> Result<String, Refusal> {
    let last = messages.into_iter().rfind(|message| message.role == Role::User);
    last.map(|message| message.content).ok_or_else(|| {
        let message = "a task requires a message of the role user";
        Refusal::field(Code::Invalid, "messages", message)
    })
}

fn message_of((n, message): (usize, ChatMessage)) -> Result<Message, Refusal> {
    let role = match message.role {
        ChatRole::System | ChatRole::Developer => Role::System,
        ChatRole::User => Role::User,
        ChatRole::Assistant => Role::Assistant,
        ChatRole::Tool => Role::Tool,
    };
    let at = |field: &str| format!("messages[{n}].{field}");
    let calls = message.tool_calls.unwrap_or_default();
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let texts: Vec<String> = parts.into_iter().map(|Part::Text { text }| text).collect();
            texts.join("\n")
        }
        None if !calls.is_empty() => String::new(),
        None => return Err(Refusal::field(Code::Invalid, at("content"), "is missing")),
    };
    let call_of = |(c, ChatCall::Function { id, function }): (usize, ChatCall)| {
        let arguments = serde_json::from_str(&function.arguments).map_err(|e| {
            let place = at(&format!("tool_calls[{c}].function.arguments"));
            Refusal::field(Code::Invalid, place, format!("is not a JSON object: {e}"))
        })?;
        Ok(ToolCall { id, name: function.name, arguments })
    };
    let tool_calls = calls.into_iter().enumerate().map(call_of).collect::<Result<_, Refusal>>()?;
    Ok(Message { role, content, tool_calls, tool_call_id: message.tool_call_id })
}

fn tool_of(ChatTool::Function { function }: ChatTool) -> Tool {
    let Function { name, description, parameters, .. } = function;
    Tool { name, description, input_schema: parameters.unwrap_or_else(any_object) }
}

fn choice_of(choice: ChatToolChoice) -> ToolChoice {
    match choice {
        ChatToolChoice::Word(ToolChoiceWord::Auto) => ToolChoice::Auto,
        ChatToolChoice::Word(ToolChoiceWord::None) => ToolChoice::None,
        ChatToolChoice::Word(ToolChoiceWord::Required) => ToolChoice::Required,
        ChatToolChoice::Named(NamedChoice::Function { function }) => ToolChoice::Named(function),
    }
}

/// The refusal with the path of the field as `OpenAI`'s API has it.
pub(super) fn with_api_field(refusal: Refusal) -> Refusal {
    let path = |field: String| {
        field
            .replace("].input_schema", "].function.parameters")
            .replace("].name", "].function.name")
            .replace("tool_choice.name", "tool_choice.function.name")
    };
    Refusal { field: refusal.field.map(path), ..refusal }
}

/// A number, or a string: the official clients send metadata as strings.
fn milliseconds(value: &Value) -> Result<u64, Refusal> {
    let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number.ok_or_else(|| {
        let message = format!("{value} is not a whole number of milliseconds");
        Refusal::field(Code::Invalid, "metadata.deadline_ms", message)
    })
}
