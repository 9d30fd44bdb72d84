//! What tells who or where somebody is, taken out of a prompt before it leaves the device and put
//! back into the answer.
//!
//! Each value gets a placeholder, the same wherever it stands, such as `[EMAIL_1]`. These are
//! patterns: they find what looks like an address, and rather hide too much than too little. They
//! know no names of people and no street.

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::limits::{REDACT_NAME_BYTES_MAX, REDACT_PATTERN_BYTES_MAX, REDACT_PROGRAM_BYTES_MAX};
use crate::request::format::Format;
use crate::request::job::{Job, Message};

/// No placeholder is longer: brackets, a rule's name, two numbers.
const MARK_BYTES_MAX: usize = REDACT_NAME_BYTES_MAX + 48;

/// What is known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownPattern {
    /// Addresses of electronic mail.
    Email,
    /// Telephone numbers: with `+`, or of 7 to 15 digits that begin with 0, or as in North America.
    Phone,
    /// Places: pairs of degrees, degrees with a compass point, numbers behind `lat`, `lon` and so on.
    Coordinates,
}

impl KnownPattern {
    /// All of them, by their names in `mcp.json`.
    pub const ALL: [(&'static str, KnownPattern); 3] = [
        ("email", KnownPattern::Email),
        ("phone", KnownPattern::Phone),
        ("coordinates", KnownPattern::Coordinates),
    ];

    /// What stands in the placeholder, and the pattern; its first group is what is hidden, if it
    /// has one.
    fn pattern(self) -> (&'static str, &'static str) {
        match self {
            KnownPattern::Email => (
                "EMAIL",
                r"[\p{L}\p{N}._%+'-]+@[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?(?:\.[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?)+",
            ),
            KnownPattern::Phone => (
                "PHONE",
                r"(?:\+|\b00)[1-9](?:[ ().\u{a0}/-]{0,3}[0-9]){6,14}\b|\(?\b0(?:[ ()./-]{0,2}[0-9]){6,14}\b|(?:\([2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4}\b",
            ),
            KnownPattern::Coordinates => (
                "PLACE",
                r#"(?x)
                # 52.5200, 13.4050 and 52.52° N, 13.40° E
                [-+]?\b[0-9]{1,2}\.[0-9]{2,}\s*°?\s*[NS]?\s*[,;/\s]\s*[-+]?[0-9]{1,3}\.[0-9]{2,}(?:\s*°?\s*[EWO]\b|\s*°)?
                # 52.52° N and 52° 31' 12.0" N
                | \b[0-9]{1,3}(?:\.[0-9]+)?\s*[°º]\s*(?:[0-9]{1,2}(?:\.[0-9]+)?\s*['′’]\s*(?:[0-9]{1,2}(?:\.[0-9]+)?\s*(?:["″”]|''))?\s*)?[NSEWO]\b
                # "lat": 52.52
                | (?i:\b(?:lat|latitude|lon|long|lng|longitude))["']?\s*[:=]?\s*["']?(?<value>[-+]?[0-9]{1,3}\.[0-9]+)
                "#,
            ),
        }
    }
}

/// A pattern and the name of what it finds.
#[derive(Clone)]
struct RedactionRule {
    name: String,
    pattern: Regex,
    known: Option<KnownPattern>,
}

/// What shall be hidden.
#[derive(Clone, Default)]
pub struct Redactor {
    rules: Vec<RedactionRule>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rules.iter().map(|rule| (&rule.name, &rule.pattern))).finish()
    }
}

impl PartialEq for Redactor {
    fn eq(&self, other: &Redactor) -> bool {
        let words = |rule: &RedactionRule| (rule.name.clone(), rule.pattern.as_str().to_owned());
        self.rules.iter().map(words).eq(other.rules.iter().map(words))
    }
}

impl Redactor {
    /// Adds what is known by name.
    ///
    /// # Errors
    /// Why it can't be; the patterns here can.
    pub fn add_known(&mut self, known: KnownPattern) -> Result<(), String> {
        let (name, pattern) = known.pattern();
        self.rules.push(RedactionRule {
            name: name.to_owned(),
            pattern: compiled(pattern)?,
            known: Some(known),
        });
        Ok(())
    }

    /// Adds what this pattern finds; it goes before what is known by name.
    ///
    /// # Errors
    /// What is wrong with the name or the pattern.
    pub fn add(&mut self, name: &str, pattern: &str) -> Result<(), String> {
        let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric());
        if !(1..=REDACT_NAME_BYTES_MAX).contains(&name.len()) || !is_word {
            return Err(format!("name must be 1 to {REDACT_NAME_BYTES_MAX} letters and digits"));
        }
        let name = name.to_ascii_uppercase();
        if self.rules.iter().any(|rule| rule.name == name) {
            return Err(format!("duplicate name {name}"));
        }
        if pattern.len() > REDACT_PATTERN_BYTES_MAX {
            return Err(format!("pattern is longer than {REDACT_PATTERN_BYTES_MAX} bytes"));
        }
        let pattern = compiled(pattern)?;
        if pattern.is_match("") {
            return Err("pattern matches the empty text".to_owned());
        }
        self.rules.insert(0, RedactionRule { name, pattern, known: None });
        Ok(())
    }

    /// Whether nothing is to be hidden.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The prompt without what is to be hidden; none if there is nothing of it in it.
    pub fn hide(&self, job: &Job) -> Option<Hidden> {
        if self.is_empty() {
            return None;
        }
        let mut marks = Marks::of(&job.messages);
        let messages: Vec<Message> = job
            .messages
            .iter()
            .map(|turn| Message {
                role: turn.role,
                content: self.hide_in(&turn.content, &mut marks),
                tool_calls: self.hide_in_calls(&turn.tool_calls, &mut marks),
                tool_call_id: turn.tool_call_id.clone(),
            })
            .collect();
        let is_json = matches!(job.format, Format::Json | Format::Schema(_));
        (!marks.values.is_empty()).then(|| {
            let plain = marks.back();
            let back = if is_json { Arc::new(quoted(&plain)) } else { Arc::clone(&plain) };
            Hidden { messages, back, plain }
        })
    }

    fn hide_in(&self, text: &str, marks: &mut Marks) -> String {
        // by where it begins: its end and the rule's name
        let mut found: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
        for rule in &self.rules {
            for Range { start, end } in rule.find(text) {
                // what an earlier rule has found is not looked at again
                let before = found.range(..end).next_back();
                if before.is_none_or(|(_, (other, _))| *other <= start) {
                    found.insert(start, (end, &rule.name));
                }
            }
        }
        let mut hidden = String::with_capacity(text.len());
        let mut at = 0;
        for (start, (end, name)) in found {
            hidden.push_str(&text[at..start]);
            hidden.push_str(&marks.of_value(name, &text[start..end]));
            at = end;
        }
        hidden.push_str(&text[at..]);
        hidden
    }
}

impl RedactionRule {
    fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        self.pattern.captures_iter(text).filter_map(|found| {
            let all = found.get(0)?;
            let part = self.known.and(found.name("value")).unwrap_or(all).range();
            let counts = match self.known {
                Some(KnownPattern::Phone) => is_phone(text, &part),
                Some(KnownPattern::Email | KnownPattern::Coordinates) | None => true,
            };
            (counts && !part.is_empty()).then_some(part)
        })
    }
}

/// Whether these digits are no part of a longer number or time, and no date.
fn is_phone(text: &str, at: &Range<usize>) -> bool {
    let mut before = text[..at.start].chars().rev();
    let is_apart = match (before.next(), before.next()) {
        (Some('.' | ':' | '-' | '_'), Some(c)) => !c.is_ascii_digit(),
        (Some(c), _) => !c.is_alphanumeric(),
        (None, _) => true,
    };
    let found = &text[at.clone()];
    let mut parts = found.split(['.', '/', '-']);
    let lengths = [parts.next(), parts.next(), parts.next()].map(|part| part.map_or(0, str::len));
    let is_date = parts.next().is_none()
        && matches!(lengths, [1..=2, 1..=2, 2 | 4])
        && found.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'/' | b'-'));
    is_apart && !is_date
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(REDACT_PROGRAM_BYTES_MAX).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(most) => {
            format!("pattern is too complex: it needs more than {most} bytes")
        }
        error @ (regex::Error::Syntax(_) | _) => format!("pattern cannot be parsed: {error}"),
    })
}

/// The placeholders of one prompt.
struct Marks {
    /// Stands in each, so that no word of the prompt is taken for one.
    salt: String,
    /// By rule and value.
    values: BTreeMap<(String, String), String>,
    /// How many of each rule.
    counts: BTreeMap<String, usize>,
}

impl Marks {
    fn of(messages: &[Message]) -> Marks {
        let said = messages.iter().flat_map(|turn| salts(&turn.content));
        let called = messages.iter().flat_map(|turn| &turn.tool_calls);
        let called = called.flat_map(|call| salts(&call.text()).collect::<Vec<u32>>());
        let taken: BTreeSet<u32> = said.chain(called).collect();
        let free = (0..u32::MAX).find(|n| !taken.contains(n)).unwrap_or_default();
        let salt = if free == 0 { "_".to_owned() } else { format!("_{free}_") };
        Marks { salt, values: BTreeMap::new(), counts: BTreeMap::new() }
    }

    fn of_value(&mut self, name: &str, value: &str) -> String {
        let key = (name.to_owned(), value.to_owned());
        if let Some(mark) = self.values.get(&key) {
            return mark.clone();
        }
        let count = self.counts.entry(name.to_owned()).or_default();
        *count += 1;
        let mark = format!("[{name}{}{count}]", self.salt);
        self.values.insert(key, mark.clone());
        mark
    }

    fn back(self) -> Arc<BTreeMap<String, String>> {
        Arc::new(self.values.into_iter().map(|((_, value), mark)| (mark, value)).collect())
    }
}

/// The same values as they come to stand inside a string of JSON.
fn quoted(plain: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let text = |value: &String| {
        let quoted = serde_json::Value::from(value.as_str()).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    plain.iter().map(|(mark, value)| (mark.clone(), text(value))).collect()
}

/// The numbers in what looks like a placeholder: 2 in `[EMAIL_2_1]`, 0 in `[EMAIL_1]`.
fn salts(text: &str) -> impl Iterator<Item = u32> {
    text.split('[').skip(1).filter_map(|rest| {
        let (_, rest) = rest
            .split_once('_')
            .filter(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric()))?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let is_salt = rest[digits..].starts_with('_');
        Some(if is_salt { rest[..digits].parse().unwrap_or(0) } else { 0 })
    })
}

/// A prompt of which something is hidden.
#[derive(Clone)]
pub struct Hidden {
    /// The conversation with placeholders.
    pub messages: Vec<Message>,
    /// Each placeholder and what it stands for, as it is put into the answer.
    back: Arc<BTreeMap<String, String>>,
    /// The same as it was in the prompt.
    plain: Arc<BTreeMap<String, String>>,
}

impl Hidden {
    /// How many different values are hidden.
    pub fn count(&self) -> usize {
        self.back.len()
    }

    /// The most tokens that the prompt can be for any model, as it is sent.
    pub fn input_tokens_max(&self, job: &Job) -> u32 {
        Job { messages: self.messages.clone(), ..job.clone() }.input_tokens_max()
    }

    /// What puts them back.
    pub fn restorer(&self) -> Restorer {
        Restorer::new(&self.back)
    }
}

/// Puts values back into an answer that comes in pieces.
pub struct Restorer {
    back: Arc<BTreeMap<String, String>>,
    /// The end of what came so far, if a placeholder may begin there.
    waiting: String,
}

impl Restorer {
    fn new(back: &Arc<BTreeMap<String, String>>) -> Restorer {
        Restorer { back: Arc::clone(back), waiting: String::new() }
    }

    /// What is known of the answer after this piece.
    pub fn push(&mut self, piece: &str) -> String {
        self.waiting.push_str(piece);
        let text = std::mem::take(&mut self.waiting);
        let mut told = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find('[') {
            told.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some((mark, value)) = self.mark_at(rest) {
                told.push_str(value);
                rest = &rest[mark..];
            } else if self.is_begun(rest) {
                rest.clone_into(&mut self.waiting);
                return told;
            } else {
                told.push('[');
                rest = &rest[1..];
            }
        }
        told.push_str(rest);
        told
    }

    /// The length of the placeholder with which this text begins, and what it stands for.
    fn mark_at(&self, text: &str) -> Option<(usize, &str)> {
        let end = text.bytes().take(MARK_BYTES_MAX).position(|b| b == b']')?;
        let value = self.back.get(text.get(..=end)?)?;
        Some((end + 1, value))
    }

    /// Whether a placeholder begins with all of this text.
    fn is_begun(&self, text: &str) -> bool {
        let next = self.back.range::<str, _>((Bound::Included(text), Bound::Unbounded)).next();
        next.is_some_and(|(mark, _)| mark.starts_with(text))
    }

    /// What is left once the answer is over.
    pub fn finish(self) -> String {
        self.waiting
    }
}

#[cfg(test)]
mod tests;
