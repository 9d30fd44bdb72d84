//! The forms of a conversation that a chat template renders: found when its model is loaded.
//!
//! Templates differ in what they take. Some walk over the typed parts of a message and print nothing of a plain text;
//! some have no place for a system message, or want the roles to alternate. Each form is tried with a mark in the
//! place of each text, which must come out.

use std::borrow::Cow;

use super::{ChatTemplate, PLACEHOLDER, is_bound};
use crate::request::job::{Message, Role};

/// Between two messages that are joined.
const BETWEEN: &str = "\n\n";

/// What is changed in a conversation, so that a chat template renders all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Adaptations {
    /// The text of a message is a list with one typed part.
    pub(super) has_parts: bool,
    /// A system message is the beginning of the user's next one.
    joins_system: bool,
    /// Neighbouring messages of one role are one message.
    joins_turns: bool,
}

impl Adaptations {
    /// Their names in a ModelContext.
    pub(super) fn names(self) -> Vec<String> {
        let all = [
            (self.has_parts, "content_parts"),
            (self.joins_system, "system_in_user"),
            (self.joins_turns, "joined_turns"),
        ];
        all.into_iter().filter(|(is_used, _)| *is_used).map(|(_, name)| name.to_owned()).collect()
    }

    /// Whether all that can be joined is joined.
    pub(super) fn joins_all(self) -> bool {
        self.joins_system && self.joins_turns
    }

    /// The same with all joined that can be.
    pub(super) fn joining(self) -> Adaptations {
        Adaptations { joins_system: true, joins_turns: true, ..self }
    }

    /// The messages as the template takes them.
    pub(super) fn apply(self, messages: &[Message]) -> Cow<'_, [Message]> {
        let has_system = || messages.iter().any(|message| message.role == Role::System);
        let has_pairs = || messages.windows(2).any(|pair| pair[0].role == pair[1].role);
        if !((self.joins_system && has_system()) || (self.joins_turns && has_pairs())) {
            return Cow::Borrowed(messages);
        }
        let mut adapted: Vec<Message> = Vec::with_capacity(messages.len());
        let mut was_system = false;
        for message in messages {
            let is_system = self.joins_system && message.role == Role::System;
            let role = if is_system { Role::User } else { message.role };
            let joins = self.joins_turns || is_system || was_system;
            match adapted.last_mut().filter(|last| joins && can_join(last, message, role)) {
                Some(last) => {
                    last.content.push_str(BETWEEN);
                    last.content.push_str(&message.content);
                }
                None => adapted.push(Message { role, ..message.clone() }),
            }
            was_system = is_system;
        }
        Cow::Owned(adapted)
    }
}

/// Whether a message, which counts as one of `role`, can be joined to the one before it.
fn can_join(last: &Message, message: &Message, role: Role) -> bool {
    last.role == role && !last.has_tools() && !message.has_tools()
}

/// Finds the form in which the template renders a conversation.
///
/// # Errors
/// That it renders none, with the template's own error; or that it exceeds a bound.
pub(super) fn find(template: &ChatTemplate) -> Result<Adaptations, String> {
    use Role::{Assistant, System, User};
    let (mut first_error, mut for_one) = (None, None);
    for has_parts in [false, true] {
        let plain = Adaptations { has_parts, ..Adaptations::default() };
        let single = rendered(template, plain, &[User])?;
        let dialogue = rendered(template, plain, &[User, Assistant, User])?;
        let with_system = rendered(template, plain, &[System, User])?;
        // a template may refuse a second question, or a conversation without instructions
        let is_taken = match (&single, &dialogue, &with_system) {
            (Rendered::Whole, Rendered::Whole | Rendered::Refused(_), _)
            | (Rendered::Refused(_), _, Rendered::Whole) => true,
            (Rendered::Whole | Rendered::Refused(_) | Rendered::Lossy, _, _) => false,
        };
        if is_taken {
            return with_turns(template, plain, &with_system);
        }
        // one that renders the last message only is of use for single questions
        if single == Rendered::Whole && for_one.is_none() {
            for_one = Some(with_turns(template, plain, &with_system)?);
        }
        let error = match (single, dialogue) {
            (Rendered::Refused(why), _) => why,
            (Rendered::Whole | Rendered::Lossy, _) => {
                "it leaves out the text of messages".to_owned()
            }
        };
        first_error.get_or_insert(error);
    }
    for_one.ok_or_else(|| format!(
        "the chat template of the model can't be used: {}; take a model file with another template",
        first_error.unwrap_or_default()
    ))
}

/// The form with what the template lacks for system messages and for messages of one role after each other.
fn with_turns(
    template: &ChatTemplate,
    plain: Adaptations,
    with_system: &Rendered,
) -> Result<Adaptations, String> {
    let joins_system = *with_system != Rendered::Whole;
    let pair = rendered(template, plain, &[Role::User, Role::User])?;
    let alternates = pair != Rendered::Whole;
    Ok(Adaptations { joins_system, joins_turns: alternates, ..plain })
}

/// What a template makes of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rendered {
    /// The marks of all messages come out, in their order.
    Whole,
    /// Some do not.
    Lossy,
    /// Its own error.
    Refused(String),
}

fn rendered(
    template: &ChatTemplate,
    adaptations: Adaptations,
    roles: &[Role],
) -> Result<Rendered, String> {
    let messages: Vec<_> = roles.iter().map(|role| Message::new(*role, "x")).collect();
    let text = match template.render(&messages, adaptations.has_parts) {
        Ok(text) => text,
        Err(error) if is_bound(&error) => {
            return Err(format!("the chat template is refused: {error}"));
        }
        Err(error) => return Ok(Rendered::Refused(error.to_string())),
    };
    let mut rest = text.as_str();
    for n in 0..messages.len() {
        let mark = format!("{}{n}", PLACEHOLDER.0);
        match rest.split_once(&mark) {
            Some((_, after)) => rest = after,
            None => return Ok(Rendered::Lossy),
        }
    }
    Ok(Rendered::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(adaptations: Adaptations, messages: &[(Role, &str)]) -> Vec<(Role, String)> {
        let messages: Vec<_> =
            messages.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        let adapted = adaptations.apply(&messages);
        adapted.iter().map(|message| (message.role, message.content.clone())).collect()
    }

    fn of(all: &[(Role, &str)]) -> Vec<(Role, String)> {
        all.iter().map(|(role, text)| (*role, (*text).to_owned())).collect()
    }

    const SYSTEM: Adaptations =
        Adaptations { has_parts: false, joins_system: true, joins_turns: false };
    const TURNS: Adaptations =
        Adaptations { has_parts: false, joins_system: false, joins_turns: true };

    #[test]
    fn a_system_message_is_the_beginning_of_the_next_message() {
        use Role::{Assistant, System, User};
        let messages = [(System, "be kind"), (User, "hello"), (Assistant, "hi"), (User, "who?")];
        let expected = [(User, "be kind\n\nhello"), (Assistant, "hi"), (User, "who?")];
        assert_eq!(texts(SYSTEM, &messages), of(&expected));
        // its beginning is that of the whole
        assert_eq!(texts(SYSTEM, &[(System, "be kind")]), of(&[(User, "be kind")]));
        let late = [(User, "hello"), (System, "now in French"), (Assistant, "salut")];
        let expected = [(User, "hello\n\nnow in French"), (Assistant, "salut")];
        assert_eq!(texts(SYSTEM, &late), of(&expected));
        // others stay as they are
        let twice = [(User, "one"), (User, "two")];
        assert_eq!(texts(SYSTEM, &twice), of(&twice));
    }

    #[test]
    fn messages_of_one_role_are_joined() {
        use Role::{Assistant, System, User};
        let messages = [(System, "a"), (System, "b"), (User, "c"), (User, "d"), (Assistant, "e")];
        let expected = [(System, "a\n\nb"), (User, "c\n\nd"), (Assistant, "e")];
        assert_eq!(texts(TURNS, &messages), of(&expected));
        let both = Adaptations { joins_turns: true, ..SYSTEM };
        let expected = [(User, "a\n\nb\n\nc\n\nd"), (Assistant, "e")];
        assert_eq!(texts(both, &messages), of(&expected));
    }

    #[test]
    fn results_of_tools_are_not_joined() {
        let result = |text: &str| Message {
            tool_call_id: Some("1".to_owned()),
            ..Message::new(Role::Tool, text)
        };
        let messages = [result("a"), result("b")];
        assert_eq!(TURNS.apply(&messages).len(), 2);
    }
}
