//! Redaction: personal data in a request is replaced by placeholders before the request leaves the
//! device, and restored in the answer.
//!
//! Each value has one placeholder, such as `[EMAIL_1]`, in the whole request. The known patterns
//! prefer false positives to false negatives. They find addresses, numbers and coordinates by their
//! form; names of persons and streets are not found.
//!
//! `pieces` goes through all texts of a job, `find` matches them in the spellings that `fold` makes of
//! them, `placeholders` replaces what was found, and `restore` puts it back.

mod find;
mod fold;
mod pieces;
mod placeholders;
mod restore;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use self::find::Collected;
use self::pieces::{Kind, rebuilt};
use self::placeholders::{Placeholders, Replacer};
pub use self::restore::Restorer;
use crate::limits::{REDACT_NAME_BYTES_MAX, REDACT_PATTERN_BYTES_MAX, REDACT_PROGRAM_BYTES_MAX};
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};

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

    /// The names of the rules that the other one lacks. A rule with another pattern is another rule.
    pub fn lacking_in<'r>(&'r self, other: &'r Redactor) -> impl Iterator<Item = &'r str> {
        let same = |one: &RedactionRule, rule: &RedactionRule| {
            one.name == rule.name && one.pattern.as_str() == rule.pattern.as_str()
        };
        let lacks = move |rule: &&RedactionRule| !other.rules.iter().any(|one| same(one, rule));
        self.rules.iter().filter(lacks).map(|rule| rule.name.as_str())
    }

    /// What of the job leaves this device.
    pub fn hide(&self, job: &Job) -> Redaction {
        if self.is_empty() {
            return Redaction::Unneeded;
        }
        let mut collected = Collected::default();
        rebuilt(job, &mut collected);
        let values = self.find(&collected);
        if values.is_empty() {
            return Redaction::Unneeded;
        }
        for piece in values.keys() {
            if let Kind::Fixed(part) = collected.pieces[*piece].kind {
                return Redaction::Impossible(Unfit::new(
                    &collected.field(*piece).to_string(),
                    part,
                ));
            }
        }
        if job.format == Format::Embedding {
            return Redaction::Impossible(Unfit::new("messages", "a text to embed"));
        }
        let placeholders = Placeholders::of(&collected);
        let mut replacer = Replacer { rules: &self.rules, values: &values, next: 0, placeholders };
        let sent = rebuilt(job, &mut replacer);
        let is_json = matches!(job.format, Format::Json | Format::Schema(_));
        let plain = Arc::new(replacer.placeholders.back());
        let back = if is_json { Arc::new(quoted(&plain)) } else { Arc::clone(&plain) };
        let input_tokens_max = sent.input_tokens_max();
        Redaction::Done(Arc::new(Hidden { job: sent, input_tokens_max, back, plain }))
    }
}

impl RedactionRule {
    /// The values in the text, each with the whole match.
    fn find<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + 'a {
        self.pattern.captures_iter(text).filter_map(|found| {
            let all = found.get(0)?;
            let part = self.known.and(found.name("value")).unwrap_or(all).range();
            let counts = match self.known {
                Some(KnownPattern::Phone) => is_phone(text, &part),
                Some(KnownPattern::Email | KnownPattern::Coordinates) | None => true,
            };
            (counts && !part.is_empty()).then(|| (part, all.range()))
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

/// The values escaped as within a JSON string.
fn quoted(plain: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let text = |value: &String| {
        let quoted = serde_json::Value::from(value.as_str()).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    plain.iter().map(|(placeholder, value)| (placeholder.clone(), text(value))).collect()
}

/// The redaction of a job: what of it may be sent beyond this device.
#[derive(Clone)]
pub enum Redaction {
    /// No rule matches: the job as it is.
    Unneeded,
    /// The job with placeholders.
    Done(Arc<Hidden>),
    /// A value can't be replaced: nothing.
    Impossible(Unfit),
}

/// The place of a value that can't be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    field: String,
    part: &'static str,
}

impl Unfit {
    fn new(field: &str, part: &'static str) -> Unfit {
        Unfit { field: field.to_owned(), part }
    }

    /// The refusal of a job that no model on this device can answer.
    pub fn refusal(&self) -> Refusal {
        let Unfit { field, part } = self;
        let message = format!(
            "policy.redact matches a value in {part}, where no placeholder can stand, so that the              request must not leave this device, and no model here can answer it; remove the value"
        );
        Refusal::field(Code::Incapable, field.clone(), message)
    }
}

/// A redacted job.
pub struct Hidden {
    job: Job,
    input_tokens_max: u32,
    /// The values by placeholder, as they are inserted into the answer.
    back: Arc<BTreeMap<String, String>>,
    /// The values by placeholder, as they were in the request.
    plain: Arc<BTreeMap<String, String>>,
}

impl Hidden {
    /// The job with placeholders, and without what no backend is told.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The number of different hidden values.
    pub fn count(&self) -> usize {
        self.plain.len()
    }

    /// The upper bound on the tokens of the redacted prompt for any model.
    pub fn input_tokens_max(&self) -> u32 {
        self.input_tokens_max
    }
}

#[cfg(test)]
mod tests;
