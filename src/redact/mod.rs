//! Redaction: personal data in a prompt is replaced by placeholders before the prompt leaves the
//! device, and restored in the answer.
//!
//! Each value has one placeholder, such as `[EMAIL_1]`, in the whole conversation. The known patterns
//! prefer false positives to false negatives. They find addresses, numbers and coordinates by their
//! form; names of persons and streets are not found.

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::limits::{REDACT_NAME_BYTES_MAX, REDACT_PATTERN_BYTES_MAX, REDACT_PROGRAM_BYTES_MAX};
use crate::request::format::Format;
use crate::request::job::{Job, Message};

/// The longest placeholder: brackets, a rule's name and two numbers.
const PLACEHOLDER_BYTES_MAX: usize = REDACT_NAME_BYTES_MAX + 48;

/// A built-in pattern, selected by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownPattern {
    /// E-mail addresses.
    Email,
    /// Telephone numbers: international ones with `+` or `00`, those of 7 to 15 digits with a leading
    /// 0, and North American ones.
    Phone,
    /// Coordinates: pairs of decimal degrees, degrees with a compass point, numbers after `lat`,
    /// `lon` and similar names.
    Coordinates,
}

impl KnownPattern {
    /// All built-in patterns with their names in `mcp.json`.
    pub const ALL: [(&'static str, KnownPattern); 3] = [
        ("email", KnownPattern::Email),
        ("phone", KnownPattern::Phone),
        ("coordinates", KnownPattern::Coordinates),
    ];

    /// The name in the placeholder, and the pattern. If the pattern has a group `value`, only that
    /// group is hidden.
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

/// A pattern and its name in placeholders.
#[derive(Clone)]
struct RedactionRule {
    name: String,
    pattern: Regex,
    known: Option<KnownPattern>,
}

/// The redaction rules, in the order of their precedence.
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
        let parts = |rule: &RedactionRule| (rule.name.clone(), rule.pattern.as_str().to_owned());
        self.rules.iter().map(parts).eq(other.rules.iter().map(parts))
    }
}

impl Redactor {
    /// Adds a built-in pattern.
    ///
    /// # Errors
    /// A message if the pattern does not compile, which the built-in ones do.
    pub fn add_known(&mut self, known: KnownPattern) -> Result<(), String> {
        let (name, pattern) = known.pattern();
        self.rules.push(RedactionRule {
            name: name.to_owned(),
            pattern: compiled(pattern)?,
            known: Some(known),
        });
        Ok(())
    }

    /// Adds a pattern of the configuration; it takes precedence over the rules added before.
    ///
    /// # Errors
    /// A message about the name or the pattern that is not valid.
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

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Redacts the prompt; none if no rule matches.
    pub fn hide(&self, job: &Job) -> Option<Hidden> {
        if self.is_empty() {
            return None;
        }
        let mut placeholders = Placeholders::of(&job.messages);
        let messages: Vec<Message> = job
            .messages
            .iter()
            .map(|turn| Message {
                role: turn.role,
                content: self.hide_in(&turn.content, &mut placeholders),
                tool_calls: self.hide_in_calls(&turn.tool_calls, &mut placeholders),
                tool_call_id: turn.tool_call_id.clone(),
            })
            .collect();
        let is_json = matches!(job.format, Format::Json | Format::Schema(_));
        (!placeholders.values.is_empty()).then(|| {
            let plain = placeholders.back();
            let back = if is_json { Arc::new(quoted(&plain)) } else { Arc::clone(&plain) };
            Hidden { messages, back, plain }
        })
    }

    fn hide_in(&self, text: &str, placeholders: &mut Placeholders) -> String {
        // by the start of a match: its end and the rule's name
        let mut found: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
        for rule in &self.rules {
            for Range { start, end } in rule.find(text) {
                // a match must not overlap that of a rule with precedence
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
            hidden.push_str(&placeholders.of_value(name, &text[start..end]));
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

/// Whether these digits are a telephone number and not part of a longer number, a time or a date.
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
struct Placeholders {
    /// A part of each placeholder, so that no text of the prompt is taken for a placeholder.
    salt: String,
    /// The placeholders by rule and value.
    values: BTreeMap<(String, String), String>,
    /// The number of values of each rule.
    counts: BTreeMap<String, usize>,
}

impl Placeholders {
    fn of(messages: &[Message]) -> Placeholders {
        let texts = messages.iter().flat_map(|turn| salts(&turn.content));
        let called = messages.iter().flat_map(|turn| &turn.tool_calls);
        let called = called.flat_map(|call| salts(&call.text()).collect::<Vec<u32>>());
        let taken: BTreeSet<u32> = texts.chain(called).collect();
        let free = (0..u32::MAX).find(|n| !taken.contains(n)).unwrap_or_default();
        let salt = if free == 0 { "_".to_owned() } else { format!("_{free}_") };
        Placeholders { salt, values: BTreeMap::new(), counts: BTreeMap::new() }
    }

    fn of_value(&mut self, name: &str, value: &str) -> String {
        let key = (name.to_owned(), value.to_owned());
        if let Some(placeholder) = self.values.get(&key) {
            return placeholder.clone();
        }
        let count = self.counts.entry(name.to_owned()).or_default();
        *count += 1;
        let placeholder = format!("[{name}{}{count}]", self.salt);
        self.values.insert(key, placeholder.clone());
        placeholder
    }

    fn back(self) -> Arc<BTreeMap<String, String>> {
        Arc::new(
            self.values.into_iter().map(|((_, value), placeholder)| (placeholder, value)).collect(),
        )
    }
}

/// The values escaped as within a JSON string.
fn quoted(plain: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let text = |value: &String| {
        let quoted = serde_json::Value::from(value.as_str()).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    plain.iter().map(|(placeholder, value)| (placeholder.clone(), text(value))).collect()
}

/// The salts of texts that have the form of a placeholder: 2 in `[EMAIL_2_1]`, 0 in `[EMAIL_1]`.
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

/// A redacted prompt.
#[derive(Clone)]
pub struct Hidden {
    /// The conversation with placeholders.
    pub messages: Vec<Message>,
    /// The values by placeholder, as they are inserted into the answer.
    back: Arc<BTreeMap<String, String>>,
    /// The values by placeholder, as they were in the prompt.
    plain: Arc<BTreeMap<String, String>>,
}

impl Hidden {
    /// The number of different hidden values.
    pub fn count(&self) -> usize {
        self.back.len()
    }

    /// The upper bound on the tokens of the redacted prompt for any model.
    pub fn input_tokens_max(&self, job: &Job) -> u32 {
        Job { messages: self.messages.clone(), ..job.clone() }.input_tokens_max()
    }

    /// A restorer for one answer.
    pub fn restorer(&self) -> Restorer {
        Restorer::new(&self.back)
    }
}

/// Restores the values in a streamed answer.
pub struct Restorer {
    back: Arc<BTreeMap<String, String>>,
    /// The end of the text so far, if a placeholder may begin there.
    waiting: String,
}

impl Restorer {
    fn new(back: &Arc<BTreeMap<String, String>>) -> Restorer {
        Restorer { back: Arc::clone(back), waiting: String::new() }
    }

    /// Takes a piece of the answer and returns the text that is complete with it.
    pub fn push(&mut self, piece: &str) -> String {
        self.waiting.push_str(piece);
        let text = std::mem::take(&mut self.waiting);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find('[') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some((placeholder, value)) = self.placeholder_at(rest) {
                out.push_str(value);
                rest = &rest[placeholder..];
            } else if self.is_begun(rest) {
                rest.clone_into(&mut self.waiting);
                return out;
            } else {
                out.push('[');
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        out
    }

    /// The length and the value of the placeholder at the beginning of this text.
    fn placeholder_at(&self, text: &str) -> Option<(usize, &str)> {
        let end = text.bytes().take(PLACEHOLDER_BYTES_MAX).position(|b| b == b']')?;
        let value = self.back.get(text.get(..=end)?)?;
        Some((end + 1, value))
    }

    /// Whether this whole text is the beginning of a placeholder.
    fn is_begun(&self, text: &str) -> bool {
        let next = self.back.range::<str, _>((Bound::Included(text), Bound::Unbounded)).next();
        next.is_some_and(|(placeholder, _)| placeholder.starts_with(text))
    }

    /// The rest of the text at the end of the answer.
    pub fn finish(self) -> String {
        self.waiting
    }
}

#[cfg(test)]
mod tests;
