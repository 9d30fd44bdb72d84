//! Chat templates (Jinja) that are safe against injected control tokens.
//!
//! The template is rendered with a placeholder for each message. Control tokens are recognized only in
//! what the template itself wrote; messages are inserted as plain text, so that `<|im_start|>system` in
//! a prompt is text.
//!
//! A template comes with a model file, so its size, its instructions, its nesting, its memory and what
//! it writes are bounded.

mod adapt;
mod environment;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::{Environment, ErrorKind, Value, context};

use self::adapt::Adaptations;
use crate::limits::PROMPT_BYTES_MAX;
use crate::limits::engine::{
    TEMPLATE_BYTES_MAX, TEMPLATE_MEMORY_BYTES_MAX, TEMPLATE_OUTPUT_BYTES_MAX,
};
use crate::request::job::Message;
use crate::request::refusal::{Code, Refusal};
use crate::sandbox::memory;

/// Start and end of a placeholder, from Unicode's private use area.
const PLACEHOLDER: (char, char) = ('\u{F8F0}', '\u{F8F1}');

/// Stands before the end of a placeholder that is a part of a JSON text.
const JSON_MARK: char = 'j';
/// Most text of a rendered conversation, in bytes: what the template writes, and each message twice.
const RENDERED_BYTES_MAX: usize = TEMPLATE_OUTPUT_BYTES_MAX + 2 * PROMPT_BYTES_MAX;

/// A chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    adaptations: Adaptations,
}

/// A part of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TemplatePart {
    /// Written by the template: control tokens are recognized.
    Control(String),
    /// Written by a client: plain text.
    Plain(String),
}

impl TemplatePart {
    /// The text, and whether control tokens are recognized in it.
    pub(crate) fn text(&self) -> (&str, bool) {
        match self {
            TemplatePart::Control(text) => (text, true),
            TemplatePart::Plain(text) => (text, false),
        }
    }
}

/// The parts of a conversation; without a template its messages are plain text, one after the other.
pub(crate) fn parts(
    template: Option<&ChatTemplate>,
    messages: &[Message],
) -> Result<Vec<TemplatePart>, Refusal> {
    if let Some(template) = template {
        return template.parts(messages);
    }
    let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    Ok(vec![TemplatePart::Plain(texts.join("\n"))])
}

impl ChatTemplate {
    /// Parses a template; `bos` and `eos` are the texts of the beginning-of-text and end-of-text
    /// tokens.
    ///
    /// # Errors
    /// The parser's error.
    pub(crate) fn new(source: String, bos: String, eos: String) -> Result<ChatTemplate, String> {
        if source.len() > TEMPLATE_BYTES_MAX {
            let bytes = source.len();
            return Err(format!(
                "the chat template has {bytes} bytes, at most {TEMPLATE_BYTES_MAX}"
            ));
        }
        let parsed = guarded(|| {
            let mut environment = environment::environment(bos, eos)?;
            let adapted = environment::without_generation(&source);
            let adapted = adapted.unwrap_or_else(|_| source.clone());
            environment.add_template_owned("chat", adapted)?;
            Ok(environment)
        });
        let environment = parsed
            .map_err(|e| format!("the chat template of the model cannot be parsed: {e:#}"))?;
        Ok(ChatTemplate { environment, source, adaptations: Adaptations::default() })
    }

    /// The source of the template.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The template with the form of conversations that it renders whole. It is found when the model is loaded, as is
    /// a template without end.
    ///
    /// # Errors
    /// That it renders none, or that it exceeds a bound.
    pub(crate) fn adapted(self) -> Result<ChatTemplate, String> {
        let adaptations = adapt::find(&self)?;
        Ok(ChatTemplate { adaptations, ..self })
    }

    /// What is changed in a conversation before it is rendered, by name.
    pub(crate) fn adaptation_names(&self) -> Vec<String> {
        self.adaptations.names()
    }

    /// Renders a conversation, with the header of the answer at the end.
    ///
    /// # Errors
    /// The template's own error (such as for roles that do not alternate), that it is endless, or that it leaves out the
    /// text of a message.
    fn parts(&self, messages: &[Message]) -> Result<Vec<TemplatePart>, Refusal> {
        match self.parts_by(self.adaptations, messages) {
            Ok(Some(parts)) => return Ok(parts),
            Err(refusal) if self.adaptations.joins_all() => return Err(refusal),
            Ok(None) | Err(_) => {}
        }
        // as when a system message comes late
        let joined = self.parts_by(self.adaptations.joining(), messages)?;
        joined.ok_or_else(|| refuse(&"it leaves out the text of one"))
    }

    /// None if the text of a message is left out.
    fn parts_by(
        &self,
        adaptations: Adaptations,
        messages: &[Message],
    ) -> Result<Option<Vec<TemplatePart>>, Refusal> {
        let messages = adaptations.apply(messages);
        let rendered = self.render(&messages, adaptations.has_parts);
        let rendered = rendered.map_err(|error| refuse(&error))?;
        let split = split(&rendered, &messages);
        let (parts, places) = split.ok_or_else(|| refuse(&"it repeats them too often"))?;
        let is_there = |(n, message): (usize, &Message)| {
            message.content.trim().is_empty() || places.contains(&n)
        };
        Ok(messages.iter().enumerate().all(is_there).then_some(parts))
    }

    /// Renders a conversation with a placeholder for each text, which is a list of one typed part with `has_parts`.
    fn render(&self, messages: &[Message], has_parts: bool) -> Result<String, minijinja::Error> {
        let placeholders: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(n, message)| {
                let text = format!("{}{n}{}", PLACEHOLDER.0, PLACEHOLDER.1);
                let content = if has_parts {
                    Value::from_iter([context! { type => "text", text => text }])
                } else {
                    Value::from(text)
                };
                context! { role => message.role.name(), content => content }
            })
            .collect();
        // without tools and documents these are defined, and none
        let values = context! {
            messages => placeholders,
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt => true,
        };
        let mut rendered = Bounded(Vec::new());
        let _bound = memory::bound_growth(TEMPLATE_MEMORY_BYTES_MAX);
        let template = self.environment.get_template("chat")?;
        if let Err(error) = guarded(|| template.render_captured_to(values, &mut rendered)) {
            let message = format!("it writes more than {TEMPLATE_OUTPUT_BYTES_MAX} bytes");
            let too_long = minijinja::Error::new(ErrorKind::WriteFailure, message);
            return Err(if error.kind() == ErrorKind::WriteFailure { too_long } else { error });
        }
        let invalid = |_| minijinja::Error::new(ErrorKind::WriteFailure, "it is not text");
        String::from_utf8(rendered.0).map_err(invalid)
    }
}

/// Runs the library of templates: a template that makes it panic is refused, and the engine goes on.
fn guarded<T>(run: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, minijinja::Error> {
    let failed = || minijinja::Error::new(ErrorKind::EvalBlock, "the library of templates failed");
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(failed()))
}

/// Whether a template exceeded a bound.
fn is_bound(error: &minijinja::Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfFuel | ErrorKind::WriteFailure)
}

/// Text of at most [`TEMPLATE_OUTPUT_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEMPLATE_OUTPUT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn refuse(why: &dyn std::fmt::Display) -> Refusal {
    let message = format!("the model's chat template refuses these messages: {why}");
    Refusal::field(Code::Invalid, "messages", message)
}

/// Splits a rendered template at its placeholders, with the numbers of the messages in it; `None` if these are more
/// than [`RENDERED_BYTES_MAX`].
fn split(rendered: &str, messages: &[Message]) -> Option<(Vec<TemplatePart>, BTreeSet<usize>)> {
    let mut parts = Vec::new();
    let mut places = BTreeSet::new();
    let mut rest = rendered;
    let mut bytes = rendered.len();
    // bounded: each round removes one placeholder
    while let Some((before, after)) = rest.split_once(PLACEHOLDER.0) {
        let Some((n, after)) = after.split_once(PLACEHOLDER.1) else {
            break;
        };
        if !before.is_empty() {
            parts.push(TemplatePart::Control(before.to_owned()));
        }
        let number = n.trim_end_matches(JSON_MARK);
        let place = number.parse::<usize>().ok().filter(|n| *n < messages.len());
        if let Some(place) = place {
            let text = (number.len()..n.len())
                .try_fold(Cow::Borrowed(messages[place].content.as_str()), |text, _| {
                    json_escaped(&text)
                });
            let text = text.filter(|text| bytes + text.len() <= RENDERED_BYTES_MAX)?;
            bytes += text.len();
            places.insert(place);
            parts.push(TemplatePart::Plain(text.into_owned()));
        }
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(TemplatePart::Control(rest.to_owned()));
    }
    Some((parts, places))
}

/// The text as a part of a JSON string; none if it is too long.
fn json_escaped(text: &str) -> Option<Cow<'static, str>> {
    let quoted = serde_json::to_string(text).ok()?;
    let escaped = quoted.get(1..quoted.len() - 1)?;
    (escaped.len() <= RENDERED_BYTES_MAX).then(|| Cow::Owned(escaped.to_owned()))
}
