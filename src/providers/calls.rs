//! Tool calls of an answer, put together from their parts.

use serde_json::Map;

use crate::limits::{ANSWER_BYTES_MAX, TOOL_CALLS_MAX};
use crate::model::generate::Fault;
use crate::request::tools::ToolCall;

/// Part of a tool call: id and name once, the arguments in parts. Absent is also what the provider
/// sends empty.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CallDelta {
    /// Index among the calls of the answer. Without one, a part continues the call before it.
    pub(super) index: Option<u32>,
    /// The provider's id of the call.
    pub(super) id: Option<String>,
    /// The tool's name.
    pub(super) name: Option<String>,
    /// More of the arguments, the text of a JSON object.
    pub(super) arguments: Option<String>,
}

/// A tool call as far as it was received.
#[derive(Default)]
struct PartialCall {
    index: Option<u32>,
    id: String,
    name: String,
    arguments: String,
}

impl PartialCall {
    /// Whether the part is of another call, which shares only the index with this one, or has none.
    fn ends_before(&self, part: &CallDelta, is_first: bool) -> bool {
        match (&part.id, &part.name) {
            (Some(id), _) if !self.id.is_empty() => self.id != *id,
            (_, Some(name)) if !self.name.is_empty() => {
                let begins = |text: &String| text.trim_start().starts_with('{');
                // no JSON has `}{`, so that the arguments of this call are complete
                let is_complete = self.arguments.trim_end().ends_with('}')
                    && part.arguments.as_ref().is_some_and(begins);
                self.name != *name || is_complete || !is_first && part.index.is_none()
            }
            (_, _) => false,
        }
    }
}

/// The calls of one answer.
#[derive(Default)]
pub(super) struct Calls {
    calls: Vec<PartialCall>,
    bytes: usize,
}

impl Calls {
    /// Adds the parts of one event. Some providers repeat id and name with each part, some send them
    /// empty, and some give all calls one index or none.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] for more than [`TOOL_CALLS_MAX`] calls or [`ANSWER_BYTES_MAX`].
    pub(super) fn take(&mut self, parts: Vec<CallDelta>) -> Result<(), Fault> {
        for (n, part) in parts.into_iter().enumerate() {
            let at = self.place_of(&part, n == 0).unwrap_or_else(|| {
                self.calls.push(PartialCall { index: part.index, ..PartialCall::default() });
                self.calls.len() - 1
            });
            let call = &mut self.calls[at];
            for (known, sent) in [(&mut call.id, part.id), (&mut call.name, part.name)] {
                if let (true, Some(sent)) = (known.is_empty(), sent) {
                    self.bytes += sent.len();
                    *known = sent;
                }
            }
            let more = part.arguments.unwrap_or_default();
            self.bytes += more.len();
            call.arguments.push_str(&more);
            if self.bytes > ANSWER_BYTES_MAX || self.calls.len() > TOOL_CALLS_MAX {
                return Err(Fault::ProtocolError("too many tool calls".to_owned()));
            }
        }
        Ok(())
    }

    /// The call that the part continues; none if it begins one.
    fn place_of(&self, part: &CallDelta, is_first: bool) -> Option<usize> {
        let is_there = |call: &PartialCall| part.index.is_none() || call.index == part.index;
        let has_id = |call: &PartialCall| part.id.as_ref() == Some(&call.id) && is_there(call);
        if let Some(at) = self.calls.iter().rposition(has_id) {
            return Some(at);
        }
        let at = self.calls.iter().rposition(is_there)?;
        (!self.calls[at].ends_before(part, is_first)).then_some(at)
    }

    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no part of a call came.
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The complete calls.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the arguments of a call are no JSON object.
    pub(super) fn end(self) -> Result<Vec<ToolCall>, Fault> {
        let calls = self.calls.into_iter().enumerate().map(|(n, call)| {
            let arguments = match call.arguments.trim() {
                "" => Ok(Map::new()),
                text => serde_json::from_str(text),
            };
            let id = if call.id.is_empty() { format!("call_{n}") } else { call.id };
            let arguments = arguments.map_err(|e| {
                Fault::ProtocolError(format!("the arguments of a call are not valid JSON: {e}"))
            })?;
            Ok(ToolCall { id, name: call.name, arguments })
        });
        calls.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Part = (Option<u32>, &'static str, &'static str, &'static str);

    /// The calls of these events, each of parts with index, id, name and arguments.
    fn check(events: &[&[Part]], expected: &[(&str, &str, &str)]) {
        let mut calls = Calls::default();
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        for event in events {
            let parts = event.iter().map(|(index, id, name, arguments)| CallDelta {
                index: *index,
                id: text(id),
                name: text(name),
                arguments: text(arguments),
            });
            calls.take(parts.collect()).unwrap();
        }
        let calls = calls.end().unwrap();
        let found: Vec<(&str, &str, String)> =
            calls.iter().map(|call| (&*call.id, &*call.name, call.text())).collect();
        let found: Vec<(&str, &str, &str)> =
            found.iter().map(|(id, name, text)| (*id, *name, text.as_str())).collect();
        assert_eq!(found, expected, "{events:?}");
    }

    #[test]
    fn parts_without_id_and_name_continue_their_call() {
        let one = [("a", "valve", r#"{"open":1}"#)];
        let (zero, none) = (Some(0), None);
        check(&[&[(zero, "a", "valve", "{\"op")], &[(zero, "", "", "en\":1}")]], &one);
        check(&[&[(zero, "a", "valve", "{\"op")], &[(zero, "a", "valve", "en\":1}")]], &one);
        check(
            &[
                &[(none, "a", "valve", "")],
                &[(none, "", "", "{\"op")],
                &[(none, "", "", "en\":1}")],
            ],
            &one,
        );
        check(&[&[(none, "a", "valve", "{\"op")], &[(none, "", "valve", "en\":1}")]], &one);
        check(&[&[(none, "", "valve", "{\"open\":")], &[(none, "a", "", "1}")]], &one);
    }

    #[test]
    fn each_call_is_one_of_its_own() {
        let two = [("a", "valve", "{}"), ("b", "valve", r#"{"open":1}"#)];
        let (zero, none) = (Some(0), None);
        check(
            &[
                &[(zero, "a", "valve", ""), (Some(1), "b", "valve", "{\"open\":")],
                &[(Some(1), "", "", "1}")],
            ],
            &two,
        );
        check(&[&[(zero, "a", "valve", "{}")], &[(zero, "b", "valve", "{\"open\":1}")]], &two);
        check(&[&[(none, "a", "valve", "{}")], &[(none, "b", "valve", "{\"open\":1}")]], &two);
        let two = [("call_0", "valve", "{}"), ("call_1", "valve", r#"{"open":1}"#)];
        check(&[&[(none, "", "valve", "{}")], &[(none, "", "valve", "{\"open\":1}")]], &two);
        check(&[&[(zero, "", "valve", "{}")], &[(zero, "", "valve", "{\"open\":1}")]], &two);
        check(&[&[(none, "", "valve", ""), (none, "", "valve", "{\"open\":1}")]], &two);
        let two = [("call_0", "valve", "{}"), ("call_1", "lamp", "{}")];
        check(&[&[(none, "", "valve", "")], &[(none, "", "lamp", "")]], &two);
        // one id for different indices
        let two = [("call", "valve", "{}"), ("call", "lamp", "{}")];
        check(&[&[(zero, "call", "valve", ""), (Some(1), "call", "lamp", "")]], &two);
    }

    #[test]
    fn too_many_calls_are_a_fault() {
        let part = |n| CallDelta { index: Some(n), ..CallDelta::default() };
        let parts = (0..=u32::try_from(TOOL_CALLS_MAX).unwrap()).map(part);
        assert!(Calls::default().take(parts.collect()).is_err());
    }
}
