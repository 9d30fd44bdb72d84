//! Server-sent events of a provider, read leniently: a line of no use is skipped, not a fault.
//!
//! Source: the HTML standard, 9.2.6 "Interpreting an event stream".

use std::collections::VecDeque;

use reqwest::Response;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::{fault_of_connection, too_long};
use crate::limits::{PROVIDER_BYTES_MAX, PROVIDER_HELD_BYTES_MAX};
use crate::model::generate::Fault;

/// Data of the last event of a stream in `OpenAI`'s protocol.
pub(super) const DONE: &str = "[DONE]";

/// Names of events, and their data, that only keep the connection open.
const KEEP_ALIVE: [&str; 6] =
    ["ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"];

/// The events of a response.
pub(super) struct ServerSentEvents {
    response: Response,
    parser: Parser,
    read: usize,
    is_ended: bool,
}

impl ServerSentEvents {
    /// The events of this response: at most [`PROVIDER_BYTES_MAX`] together, and
    /// [`PROVIDER_HELD_BYTES_MAX`] for one event.
    pub(super) fn of(response: Response) -> ServerSentEvents {
        ServerSentEvents { response, parser: Parser::default(), read: 0, is_ended: false }
    }

    /// The data of the next event; empty for an event that only keeps the connection open.
    pub(super) async fn next(&mut self) -> Option<Result<String, Fault>> {
        // bounded by the bytes that are read
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                return Some(event);
            }
            if self.is_ended {
                return None;
            }
            match self.response.chunk().await {
                Ok(Some(part)) => {
                    self.read += part.len();
                    self.parser.push(&part);
                    if self.read > PROVIDER_BYTES_MAX
                        || self.parser.held() > PROVIDER_HELD_BYTES_MAX
                    {
                        return Some(Err(too_long()));
                    }
                }
                Ok(None) => {
                    self.is_ended = true;
                    self.parser.end();
                }
                Err(error) => return Some(Err(fault_of_connection(&error))),
            }
        }
    }
}

/// What was found in a stream.
#[derive(Default, PartialEq)]
enum StreamContent {
    #[default]
    Nothing,
    /// Lines that are no fields of events.
    Foreign,
    /// Fields of events, or comments.
    Events,
}

/// The parser of a stream; it depends on the bytes alone, not on the parts in which they come.
#[derive(Default)]
struct Parser {
    /// The line that has not ended.
    line: Vec<u8>,
    is_behind_cr: bool,
    is_begun: bool,
    /// The event that has not ended.
    data: Option<Vec<u8>>,
    is_keep_alive: bool,
    content: StreamContent,
    events: VecDeque<Result<String, Fault>>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        // bounded: each turn takes a line
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (part, ending) = (&rest[..at], rest[at]);
            rest = &rest[at + 1..];
            // the second half of CR LF ends no line
            let is_second = ending == b'\n' && self.is_behind_cr && at == 0;
            self.is_behind_cr = ending == b'\r';
            if !is_second {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(part);
                self.take(&line);
            }
        }
        self.is_behind_cr &= rest.is_empty();
        self.line.extend_from_slice(rest);
    }

    fn held(&self) -> usize {
        self.line.len() + self.data.as_ref().map_or(0, Vec::len)
    }

    /// Takes what the stream ended with, if it is complete without the empty line that was to follow.
    fn end(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.take(&line);
        }
        let is_complete = |data: &Vec<u8>| {
            data.trim_ascii() == DONE.as_bytes()
                || serde_json::from_slice::<IgnoredAny>(data).is_ok()
        };
        if self.data.as_ref().is_some_and(is_complete) {
            self.take(b"");
        }
        if self.content == StreamContent::Foreign {
            let why = "the response is no stream of events".to_owned();
            self.events.push_back(Err(Fault::ProtocolError(why)));
        }
    }

    fn take(&mut self, line: &[u8]) {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let line = if is_first { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
        if line.is_empty() {
            return self.dispatch();
        }
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(at + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let field = &line[..at];
        if matches!(field, b"data" | b"error" | b"event" | b"id" | b"retry" | b"") {
            self.content = StreamContent::Events;
        } else if self.content == StreamContent::Nothing {
            self.content = StreamContent::Foreign;
        }
        match field {
            b"data" => match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            },
            // no field of the standard: some servers report an error so
            b"error" => {
                let text = || json!(String::from_utf8_lossy(value));
                let error: Value = serde_json::from_slice(value).unwrap_or_else(|_| text());
                self.data = Some(json!({"error": error}).to_string().into_bytes());
            }
            b"event" => self.is_keep_alive = keeps_alive(value),
            b"" => self.keep_alive(),
            _ => {}
        }
    }

    /// Ends the event.
    fn dispatch(&mut self) {
        let is_keep_alive = std::mem::take(&mut self.is_keep_alive);
        match self.data.take() {
            Some(data)
                if !is_keep_alive && !data.trim_ascii().is_empty() && !keeps_alive(&data) =>
            {
                let text = String::from_utf8(data);
                self.events.push_back(text.map_err(|error| {
                    Fault::ProtocolError(format!("its events cannot be parsed: {error}"))
                }));
            }
            Some(_) => self.keep_alive(),
            None if is_keep_alive => self.keep_alive(),
            None => {}
        }
    }

    /// Adds an empty event, if the last one is not empty.
    fn keep_alive(&mut self) {
        if !matches!(self.events.back(), Some(Ok(last)) if last.is_empty()) {
            self.events.push_back(Ok(String::new()));
        }
    }
}

fn keeps_alive(text: &[u8]) -> bool {
    KEEP_ALIVE.iter().any(|name| text.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of these bytes, whatever the parts in which they come. `~` is an event that keeps
    /// alive.
    fn check(stream: &str, expected: &[&str]) {
        for size in 1..=stream.len() {
            let mut parser = Parser::default();
            stream.as_bytes().chunks(size).for_each(|part| parser.push(part));
            parser.end();
            let events = parser.events.into_iter().map(Result::unwrap);
            let mut events: Vec<String> =
                events.map(|data| if data.is_empty() { "~".to_owned() } else { data }).collect();
            // how many of them come together depends on the parts
            events.dedup_by(|a, b| a == "~" && b == "~");
            assert_eq!(events, expected, "{stream:?} in parts of {size}");
        }
    }

    #[test]
    fn events_are_read_in_every_form() {
        check("data: a\n\ndata:b\r\n\r\ndata: c\r\rdata: d\n\n", &["a", "b", "c", "d"]);
        check("\u{feff}event: x\nid: 1\nid: 2\nretry: soon\ndata: a\ndata: b\n\n", &["a\nb"]);
        check("colour: red\nnonsense\ndata: a\n\n", &["a"]);
    }

    #[test]
    fn events_of_no_content_keep_alive() {
        check("data:\n\ndata\n\ndata: a\n\n", &["~", "a"]);
        check(": waiting\n\n:\ndata: a\n\n", &["~", "a"]);
        check("event: ping\ndata: {\"n\": 1}\n\ndata: a\n\n", &["~", "a"]);
        check("event: Keep-Alive\n\ndata: a\n\ndata: heartbeat \n\n", &["~", "a", "~"]);
    }

    #[test]
    fn the_last_event_needs_no_empty_line() {
        check("data: {\"a\": 1}\n", &["{\"a\": 1}"]);
        check("data: {\"a\": 1}", &["{\"a\": 1}"]);
        check("data: [DONE]", &["[DONE]"]);
        check("data: {\"a\": ", &[]);
    }

    #[test]
    fn an_error_line_is_an_error_event() {
        check("error: {\"code\": 500}\n\n", &["{\"error\":{\"code\":500}}"]);
        check("error: no memory\n\n", &["{\"error\":\"no memory\"}"]);
    }

    #[test]
    fn what_has_no_event_is_a_fault() {
        for (stream, expected) in [("<html>\nno\n", 1), ("", 0), ("data: a\n\nno\n", 1)] {
            let mut parser = Parser::default();
            parser.push(stream.as_bytes());
            parser.end();
            assert_eq!(parser.events.len(), expected, "{stream:?}");
            assert_eq!(matches!(parser.events.front(), Some(Err(_))), stream.starts_with('<'));
        }
    }

    #[test]
    fn what_is_not_utf_8_is_a_fault_behind_the_events_before() {
        let mut parser = Parser::default();
        parser.push(b"data: a\n\ndata: \xff\n\n");
        assert_eq!(parser.events[0], Ok("a".to_owned()));
        assert!(parser.events[1].is_err());
    }
}
