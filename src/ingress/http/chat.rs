//! The request of `OpenAI`'s chat completions, and its translation into a request of this service.
//!
//! The format is that of the API reference's "Create chat completion".

use serde::Deserialize;
use serde_json::{Map, Value};

use super::messages::{ChatMessage, message_of};
use super::neutral;
use crate::request::job::{Message, Mode, Priority, Role, Strategy};
use crate::request::numbers::{whole, whole_of};
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::Schema;
use crate::request::tools::{Name, Tool, ToolChoice, any_object};
use crate::wire::{Ask, AskFormat, read_value};

/// Model names that leave the choice of the model to the scheduler.
pub(super) const ANY_MODEL: [&str; 2] = ["auto", "pilotlight"];

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<ChatMessage>,
    tools: Option<Vec<ChatTool>>,
    tool_choice: Option<ChatToolChoice>,
    parallel_tool_calls: Option<bool>,
    #[serde(default, deserialize_with = "whole")]
    max_tokens: Option<u32>,
    #[serde(default, deserialize_with = "whole")]
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    // of local servers
    #[serde(default, deserialize_with = "whole")]
    top_k: Option<u32>,
    min_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    #[serde(default, deserialize_with = "whole")]
    seed: Option<u32>,
    stop: Option<OneOrMany>,
    logprobs: Option<bool>,
    #[serde(default, deserialize_with = "whole")]
    top_logprobs: Option<u8>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    metadata: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "whole")]
    n: Option<u32>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The fields of [`ChatRequest`].
const FIELDS: [&str; 22] = [
    "model",
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "response_format",
    "metadata",
    "n",
];

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

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[serde(deny_unknown_fields)]
enum ResponseFormat {
    Text {},
    /// Any object; with a schema, as other servers have it, one that fits.
    JsonObject {
        schema: Option<Schema>,
    },
    JsonSchema {
        json_schema: Option<JsonSchema>,
        /// As other servers have it.
        schema: Option<Schema>,
    },
}

#[derive(Debug, Deserialize)]
struct JsonSchema {
    schema: Option<Schema>,
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
    /// Values of the task's template: an object, or one as text.
    input: Option<Value>,
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
            input: self.input.map(values).transpose()?,
            ..Ask::default()
        })
    }
}

impl ChatRequest {
    /// Whether a stream ends with the usage.
    pub(super) fn includes_usage(&self) -> bool {
        let options = self.stream_options.as_ref();
        options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Whether the answer is sent in pieces.
    pub(super) fn is_streamed(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Translates the request.
    pub(super) fn ask(self) -> Result<Ask, Refusal> {
        neutral::check(&self.others, &FIELDS)?;
        let stream = self.is_streamed();
        if self.n.is_some_and(|n| n != 1) {
            let message = "must be 1";
            return Err(Refusal::field(Code::Invalid, "n", message));
        }
        if stream && self.logprobs == Some(true) {
            let message = "not supported with stream; set stream to false";
            return Err(Refusal::field(Code::Invalid, "logprobs", message));
        }
        let options = MetadataOptions::read(self.metadata)?;
        let messages = self.messages.into_iter().enumerate().map(message_of);
        let messages = messages.collect::<Result<Vec<Message>, Refusal>>()?;
        let (prompt, messages) = match &options.task {
            // values of the template were given
            Some(_) if options.input.is_some() => (None, None),
            // the input of a task's template is the last message of the user
            Some(_) => (Some(last_of_the_user(messages)?), None),
            None => (None, Some(messages)),
        };
        let (format, schema) = match self.response_format {
            None | Some(ResponseFormat::Text {}) => (None, None),
            Some(ResponseFormat::JsonObject { schema: None }) => (Some(AskFormat::Json), None),
            Some(ResponseFormat::JsonObject { schema }) => (None, schema),
            Some(ResponseFormat::JsonSchema { json_schema, schema }) => {
                (None, Some(stated(json_schema, schema)?))
            }
        };
        let tools = self.tools.filter(|tools| !tools.is_empty());
        // without tools there is nothing to choose
        let has_tools = tools.is_some();
        let chooses = |choice: &ChatToolChoice| has_tools || !choice.asks_for_nothing();
        Ok(Ask {
            prompt,
            messages,
            tools: tools.map(|tools| tools.into_iter().map(tool_of).collect()),
            tool_choice: self.tool_choice.filter(chooses).map(choice_of),
            parallel_tool_calls: self.parallel_tool_calls.filter(|_| has_tools),
            format,
            schema,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
            stop: self.stop.map(|stop| match stop {
                OneOrMany::One(one) => vec![one],
                OneOrMany::Many(many) => many,
            }),
            stream: Some(stream),
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

/// The schema of a response format, in one of its two places.
fn stated(json_schema: Option<JsonSchema>, schema: Option<Schema>) -> Result<Schema, Refusal> {
    json_schema.and_then(|stated| stated.schema).or(schema).ok_or_else(|| {
        let place = "response_format.json_schema.schema";
        Refusal::field(Code::Invalid, place, "is missing")
    })
}

impl ChatToolChoice {
    /// Whether it is the same without tools.
    fn asks_for_nothing(&self) -> bool {
        match self {
            ChatToolChoice::Word(ToolChoiceWord::Auto | ToolChoiceWord::None) => true,
            ChatToolChoice::Word(ToolChoiceWord::Required) | ChatToolChoice::Named(_) => false,
        }
    }
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

/// The values of a template: an object, or one as text, because the official clients send metadata as strings.
fn values(input: Value) -> Result<Map<String, Value>, Refusal> {
    let refuse = |why: String| Refusal::field(Code::Invalid, "metadata.input", why);
    let parsed = match input {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|e| refuse(format!("is not the JSON of an object: {e}")))?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            input
        }
    };
    match parsed {
        Value::Object(values) => Ok(values),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::String(_) => {
            Err(refuse("is no object with the values of the task".to_owned()))
        }
    }
}

/// A number, or a string: the official clients send metadata as strings.
fn milliseconds(value: &Value) -> Result<u64, Refusal> {
    let number = value.as_u64().or_else(|| value.as_f64().and_then(whole_of));
    let number = number.or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    number.ok_or_else(|| {
        let message = format!("{value} is not a whole number of milliseconds");
        Refusal::field(Code::Invalid, "metadata.deadline_ms", message)
    })
}
