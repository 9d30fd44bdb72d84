//! The messages of a chat request, with what clients send back of earlier answers.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::request::job::{Message, Role};
use crate::request::refusal::{Code, Refusal};
use crate::request::tools::ToolCall;

/// Fields of an answer that its client sends back. They are no part of a prompt.
const OUTPUT_ONLY: [&str; 11] = [
    "annotations",
    "audio",
    "id",
    "parsed",
    "pilotlight",
    "provider_specific_fields",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "refusal",
    "thinking_blocks",
];

/// One message as the client wrote it.
#[derive(Debug, Deserialize)]
pub(super) struct ChatMessage {
    role: ChatRole,
    /// Optional in an answer of the model.
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<ChatCall>>,
    tool_call_id: Option<String>,
    // accepted and ignored: no part of a prompt
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChatRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A call of an earlier answer.
#[derive(Debug, Deserialize)]
struct ChatCall {
    id: String,
    function: Called,
}

#[derive(Debug, Deserialize)]
struct Called {
    name: String,
    /// A JSON object, as text.
    arguments: String,
}

/// Text, or typed parts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
    Other(Value),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// The message with its place in the list.
///
/// # Errors
/// [`Refusal`] with the field that can't be read.
pub(super) fn message_of((n, message): (usize, ChatMessage)) -> Result<Message, Refusal> {
    let at = |field: &str| format!("messages[{n}].{field}");
    let role = match message.role {
        ChatRole::System | ChatRole::Developer => Role::System,
        ChatRole::User => Role::User,
        ChatRole::Assistant => Role::Assistant,
        ChatRole::Tool => Role::Tool,
    };
    let is_answer = message.role == ChatRole::Assistant;
    let is_known = |name: &str| is_answer && OUTPUT_ONLY.contains(&name);
    if let Some(name) = message
        .others
        .iter()
        .find_map(|(name, value)| (!value.is_null() && !is_known(name)).then_some(name))
    {
        let known = "known are role, content, name, tool_calls and tool_call_id";
        return Err(Refusal::field(Code::Invalid, at(name), format!("unknown field; {known}")));
    }
    let calls = message.tool_calls.unwrap_or_default();
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => text_of(parts, is_answer, &at("content"))?,
        Some(Content::Other(other)) => {
            let found = kind_of(&other);
            let message = format!("is {found}; it must be a text or a list of parts with a type");
            return Err(Refusal::field(Code::Invalid, at("content"), message));
        }
        None if is_answer => String::new(),
        None => return Err(Refusal::field(Code::Invalid, at("content"), "is missing")),
    };
    let call_of = |(c, ChatCall { id, function }): (usize, ChatCall)| {
        // a call without arguments
        let arguments = Some(function.arguments.as_str()).filter(|text| !text.trim().is_empty());
        let arguments = serde_json::from_str(arguments.unwrap_or("{}")).map_err(|e| {
            let place = at(&format!("tool_calls[{c}].function.arguments"));
            Refusal::field(Code::Invalid, place, format!("is not a JSON object: {e}"))
        })?;
        Ok(ToolCall { id, name: function.name, arguments })
    };
    let tool_calls = calls.into_iter().enumerate().map(call_of).collect::<Result<_, Refusal>>()?;
    Ok(Message { role, content, tool_calls, tool_call_id: message.tool_call_id })
}

/// The text of typed parts, each on a line of its own.
fn text_of(parts: Vec<Part>, is_answer: bool, place: &str) -> Result<String, Refusal> {
    let mut texts = Vec::with_capacity(parts.len());
    for (n, part) in parts.into_iter().enumerate() {
        let refuse =
            |message: String| Refusal::field(Code::Invalid, format!("{place}[{n}]"), message);
        match (part.kind.as_str(), part.text) {
            ("text" | "input_text" | "output_text", Some(text)) => texts.push(text),
            // sent back of an earlier answer
            ("refusal" | "reasoning" | "thinking", _) if is_answer => {}
            ("text" | "input_text" | "output_text", None) => {
                return Err(refuse("a part of the type text requires a text".to_owned()));
            }
            (kind, _) => {
                let what = media(kind);
                let message =
                    format!("no model here reads {what}; send parts of the type text only");
                return Err(refuse(message));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// What a part of this type is, in words.
fn media(kind: &str) -> String {
    for (word, what) in
        [("image", "images"), ("audio", "audio"), ("video", "videos"), ("file", "files")]
    {
        if kind.contains(word) {
            return format!("{what} ({kind})");
        }
    }
    format!("parts of the type {kind:?}")
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list with an item that is no part",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Message, Refusal> {
        message_of((0, serde_json::from_value(value).unwrap()))
    }

    fn refused(value: Value) -> (String, String) {
        let refusal = read(value).unwrap_err();
        (refusal.field.unwrap(), refusal.message)
    }

    #[test]
    fn an_answer_may_be_sent_back_as_it_came() {
        let dumped = json!({
            "role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
            "function_call": null, "parsed": null, "reasoning_content": "I should call it.",
            "tool_calls": [{
                "id": "1", "type": "function", "index": 0,
                "function": {"name": "f", "arguments": "", "parsed_arguments": {}},
            }],
        });
        let message = read(dumped).unwrap();
        assert_eq!((message.content.as_str(), message.tool_calls.len()), ("", 1));
        let said = json!({"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]});
        assert_eq!(read(said).unwrap().content, "a");
        assert_eq!(read(json!({"role": "assistant", "content": null})).unwrap().content, "");
    }

    #[test]
    fn what_cannot_be_read_is_named_in_words() {
        let image = json!({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "y"}}]});
        let (field, message) = refused(image);
        assert_eq!(field, "messages[0].content[1]");
        assert_eq!(
            message,
            "no model here reads images (image_url); send parts of the type text only"
        );
        let audio = json!({"role": "user", "content": [{"type": "input_audio"}]});
        assert!(refused(audio).1.contains("reads audio"));
        assert_eq!(
            refused(json!({"role": "user"})),
            ("messages[0].content".to_owned(), "is missing".to_owned())
        );
        assert!(refused(json!({"role": "user", "content": 5})).1.starts_with("is a number"));
        assert!(refused(json!({"role": "user", "content": [{"text": "x"}]})).1.contains("no part"));
        assert!(
            refused(json!({"role": "user", "content": [{"type": "text"}]}))
                .1
                .contains("requires a text")
        );
        let (field, message) = refused(json!({"role": "user", "content": "x", "weight": 3}));
        assert_eq!(field, "messages[0].weight");
        assert!(message.contains("unknown field"), "{message}");
        let thinking = json!({"role": "user", "content": [{"type": "thinking", "text": "x"}]});
        assert!(refused(thinking).1.contains("thinking"));
        let call = json!({"role": "assistant", "content": null, "function_call": {"name": "f"}});
        assert_eq!(refused(call).0, "messages[0].function_call");
        // what only answers have
        assert_eq!(
            refused(json!({"role": "user", "content": "x", "audio": {"id": "1"}})).0,
            "messages[0].audio"
        );
    }
}
