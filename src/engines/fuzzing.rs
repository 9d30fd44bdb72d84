//! Entry point of the fuzz target `template`: the chat template of a model file.

use super::template::{ChatTemplate, TemplatePart};
use crate::request::job::Message;
use crate::request::refusal::Refusal;

/// Parses a template and renders it: what it writes and the messages in it, each with whether a client
/// wrote it.
///
/// # Errors
/// As when its model is loaded; then as for a request.
pub fn template(
    source: &str,
    messages: &[Message],
) -> Result<Result<Vec<(String, bool)>, Refusal>, String> {
    let template =
        ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?.adapted()?;
    let parts = super::template::parts(Some(&template), messages);
    let part = |part: TemplatePart| match part {
        TemplatePart::Control(text) => (text, false),
        TemplatePart::Plain(text) => (text, true),
    };
    Ok(parts.map(|parts| parts.into_iter().map(part).collect()))
}
