//! Tools of a request, and tool calls in its conversation.

use std::sync::Arc;

use super::Ask;
use super::checks::{check_length, check_schema};
use crate::limits::{TOOL_CALL_ID_BYTES_MAX, TOOL_CALLS_MAX, TOOLS_BYTES_MAX};
use crate::request::format::Format;
use crate::request::job::{Message, Role};
use crate::request::name::is_name;
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::SchemaBounds;
use crate::request::tools::{ToolChoice, Tools};

impl Ask {
    /// The tools of a request with these messages; none if none can be called and none was called.
    pub(super) fn tools_of(
        &self,
        format: &Format,
        messages: &[Message],
        bounds: &mut SchemaBounds,
    ) -> Result<Option<Arc<Tools>>, Refusal> {
        check_turns(messages)?;
        let Some(offered) = &self.tools else {
            let alone = [
                ("tool_choice", self.tool_choice.is_some()),
                ("parallel_tool_calls", self.parallel_tool_calls.is_some()),
            ];
            return match alone.into_iter().find(|(_, is_there)| *is_there) {
                Some((field, _)) => Err(invalid(field, "requires tools")),
                None => Ok(None),
            };
        };
        if !matches!(format, Format::Text | Format::Json | Format::Schema(_)) {
            return Err(invalid("tools", "cannot be combined with labels or embeddings"));
        }
        for (n, tool) in offered.iter().enumerate() {
            check_schema(bounds, &format!("tools[{n}].input_schema"), &tool.input_schema)?;
        }
        let tools = Tools {
            offered: offered.clone(),
            choice: self.tool_choice.clone().unwrap_or_default(),
            parallel: self.parallel_tool_calls.unwrap_or(true),
        };
        let bytes = tools.bytes();
        if bytes > TOOLS_BYTES_MAX {
            let message = format!("{bytes} bytes, at most {TOOLS_BYTES_MAX}");
            return Err(Refusal::field(Code::TooLarge, "tools", message));
        }
        tools.check().map_err(|(field, message)| invalid(&field, &message))?;
        // a model that must not call and has not called needs no tools
        let is_idle = tools.choice == ToolChoice::None && !messages.iter().any(Message::has_tools);
        Ok(Some(Arc::new(tools)).filter(|_| !is_idle))
    }
}

/// Checks that each call has one result, directly after the message with the call, as all providers
/// require.
fn check_turns(messages: &[Message]) -> Result<(), Refusal> {
    let mut open: Vec<&str> = Vec::new();
    for (n, message) in messages.iter().enumerate() {
        let at = |field: &str| format!("messages[{n}].{field}");
        match (&message.tool_call_id, message.role) {
            (Some(id), Role::Tool) => {
                let Some(place) = open.iter().position(|call| call == id) else {
                    let message = "does not match an open tool call of the preceding message";
                    return Err(invalid(&at("tool_call_id"), message));
                };
                open.swap_remove(place);
            }
            (None, Role::Tool) => {
                let message = "is required for a message of the role tool";
                return Err(invalid(&at("tool_call_id"), message));
            }
            (Some(_), _) => {
                return Err(invalid(&at("tool_call_id"), "is allowed for the role tool only"));
            }
            (None, _) if !open.is_empty() => {
                let message = format!("must be tool: call {:?} has no result yet", open[0]);
                return Err(invalid(&at("role"), &message));
            }
            (None, _) => {}
        }
        if message.tool_calls.is_empty() {
            continue;
        }
        if message.role != Role::Assistant {
            return Err(invalid(&at("tool_calls"), "are allowed for the role assistant only"));
        }
        if message.tool_calls.len() > TOOL_CALLS_MAX {
            let message = format!("{} calls, at most {TOOL_CALLS_MAX}", message.tool_calls.len());
            return Err(Refusal::field(Code::TooLarge, at("tool_calls"), message));
        }
        for (c, call) in message.tool_calls.iter().enumerate() {
            check_length(&at(&format!("tool_calls[{c}].id")), &call.id, TOOL_CALL_ID_BYTES_MAX)?;
            if !is_name(&call.name) {
                let message = "must be 1 to 64 of A-Z, a-z, 0-9, _ and -";
                return Err(invalid(&at(&format!("tool_calls[{c}].name")), message));
            }
            if open.contains(&call.id.as_str()) {
                let message = format!("duplicate: {:?}", call.id);
                return Err(invalid(&at(&format!("tool_calls[{c}].id")), &message));
            }
            open.push(&call.id);
        }
    }
    match open.first() {
        Some(id) => Err(invalid("messages", &format!("end without the result of call {id:?}"))),
        None => Ok(()),
    }
}

fn invalid(field: &str, message: &str) -> Refusal {
    Refusal::field(Code::Invalid, field, message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::catalog::catalog::Catalog;
    use crate::request::client::Client;
    use crate::wire::read_value;

    fn checked(request: Value) -> Result<crate::request::job::Job, Refusal> {
        read_value::<Ask>(request)?.check(&Client::known("app"), &Catalog::default())
    }

    fn call(id: &str) -> Value {
        json!({"id": id, "name": "valve", "arguments": {"open": true}})
    }

    fn calling(calls: &[Value]) -> Value {
        json!({"role": "assistant", "content": "", "tool_calls": calls})
    }

    fn returned(id: &str) -> Value {
        json!({"role": "tool", "tool_call_id": id, "content": "done"})
    }

    #[test]
    fn tools_survive_the_conversion_to_a_job_and_back() {
        let user = json!({"role": "user", "content": "shut it"});
        let request = json!({
            "messages": [user, calling(&[call("a"), call("b")]), returned("b"), returned("a")],
            "tools": [{"name": "valve", "input_schema": {"type": "object"}}],
            "tool_choice": {"name": "valve"}, "parallel_tool_calls": false,
        });
        let job = checked(request.clone()).unwrap();
        assert!(job.wants_tools());
        let again = serde_json::to_value(Ask::of(&job)).unwrap();
        for field in ["messages", "tools", "tool_choice", "parallel_tool_calls"] {
            assert_eq!(again[field], request[field], "{field}");
        }
        // the bound of the input tokens includes the tools
        let described = |bytes: usize| {
            let tool = json!({"name": "valve", "description": "x".repeat(bytes)});
            checked(json!({"prompt": "shut it", "tools": [tool]})).unwrap().input_tokens_max()
        };
        let plain = checked(json!({"prompt": "shut it"})).unwrap();
        assert!(!plain.wants_tools() && described(0) > plain.input_tokens_max() + 530);
        assert_eq!(described(5000), described(0) + 5000);
    }

    #[test]
    fn tools_that_must_not_be_called_are_omitted() {
        let tools = json!([{"name": "valve"}]);
        let idle = json!({"prompt": "hi", "tools": tools, "tool_choice": "none"});
        assert!(!checked(idle).unwrap().wants_tools());
        let user = json!({"role": "user", "content": "hi"});
        let messages = json!([user, calling(&[call("a")]), returned("a")]);
        let later = json!({"messages": messages, "tools": tools, "tool_choice": "none"});
        assert_eq!(checked(later).unwrap().tools.unwrap().choice, ToolChoice::None);
        assert!(checked(json!({"messages": messages})).unwrap().wants_tools());
    }

    #[test]
    fn errors_name_the_field() {
        let user = json!({"role": "user", "content": "hi"});
        let talk = |turns: &[Value]| {
            let messages = [vec![user.clone()], turns.to_vec()].concat();
            json!({"messages": messages})
        };
        let many: Vec<Value> = (0..=TOOL_CALLS_MAX).map(|n| call(&n.to_string())).collect();
        let wide = json!([{"name": "a", "description": "x".repeat(TOOLS_BYTES_MAX)}]);
        let loud = json!({"role": "user", "content": "", "tool_calls": [call("a")]});
        let stray = json!({"role": "user", "content": "x", "tool_call_id": "a"});
        let bare = json!({"role": "tool", "content": "x"});
        for (request, field) in [
            (json!({"prompt": "hi", "tool_choice": "auto"}), "tool_choice"),
            (json!({"prompt": "hi", "parallel_tool_calls": true}), "parallel_tool_calls"),
            (json!({"prompt": "hi", "tools": []}), "tools"),
            (json!({"prompt": "hi", "tools": wide}), "tools"),
            (json!({"prompt": "hi", "tools": [{"name": "a", "x": 1}]}), "tools[0].x"),
            (
                json!({"prompt": "hi", "tools": [{"name": "a", "input_schema": 3}]}),
                "tools[0].input_schema",
            ),
            (json!({"prompt": "hi", "tools": [{"name": "a"}], "format": "embedding"}), "tools"),
            (talk(&[calling(&[call("a")])]), "messages"),
            (talk(&[calling(&[call("a")]), user.clone()]), "messages[2].role"),
            (talk(&[calling(&[call("a"), call("a")])]), "messages[1].tool_calls[1].id"),
            (talk(&[calling(&[call("")])]), "messages[1].tool_calls[0].id"),
            (talk(&[calling(&many)]), "messages[1].tool_calls"),
            (talk(&[returned("a")]), "messages[1].tool_call_id"),
            (
                talk(&[calling(&[call("a")]), returned("a"), returned("a")]),
                "messages[3].tool_call_id",
            ),
            (talk(&[bare]), "messages[1].tool_call_id"),
            (talk(&[stray]), "messages[1].tool_call_id"),
            (talk(&[loud]), "messages[1].tool_calls"),
        ] {
            let refusal = checked(request.clone()).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some(field), "{refusal} for {request}");
        }
    }
}
