//! The environment of chat templates: what `transformers` gives them.
//!
//! Source: `src/transformers/utils/chat_template_utils.py` of Hugging Face's transformers: blocks are trimmed, loops
//! may `break` and `continue`, `{% generation %}` marks what a model writes, `raise_exception` and `strftime_now` are
//! functions, and `tojson` has the arguments of Python's `json.dumps`. Templates also call the methods of Python's
//! strings, lists and maps.

use std::fmt::Write;
use std::io;

use chrono::DateTime;
use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use regex::Regex;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::{JSON_MARK, PLACEHOLDER};
use crate::clock::time_of_day;

/// Most instructions of a template, where 64 bytes of data count as one: an endless one must not block the
/// engine. A thousand for each of the messages that a request may have, of which templates of the tested
/// models take some tens; and some ten milliseconds.
const FUEL: u64 = 256_000;
/// Deepest nesting of macros and recursive loops. Templates of the tested models nest 5 levels.
const NESTING_MAX: usize = 64;
/// Most spaces of a level of JSON.
const INDENT_MAX: usize = 16;

/// An environment without templates; `bos` and `eos` are the texts of the beginning-of-text and end-of-text tokens.
///
/// # Errors
/// The library's own error.
pub(super) fn environment(bos: String, eos: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    minijinja_contrib::add_to_environment(&mut environment);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(NESTING_MAX);
    environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_global("bos_token", bos);
    environment.add_global("eos_token", eos);
    Ok(environment)
}

/// The source with a block that has no effect in place of `{% generation %}`, which marks the text of a model for
/// training.
pub(super) fn without_generation(source: &str) -> Result<String, regex::Error> {
    let begins = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")?;
    let ends = Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")?;
    let source = begins.replace_all(source, "{%$1 if true $2%}");
    Ok(ends.replace_all(&source, "{%$1 endif $2%}").into_owned())
}

/// The present day and time (UTC) in the form of C's `strftime`.
fn strftime_now(form: &str) -> Result<String, Error> {
    let items: Vec<_> = StrftimeItems::new(form).collect();
    if items.iter().any(|item| matches!(item, Item::Error)) {
        let message = format!("strftime_now: {form:?} is no form of a time");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let mut text = String::new();
    let now: DateTime<chrono::Utc> = time_of_day().into();
    let written = write!(text, "{}", now.format_with_items(items.iter()));
    written.map(|()| text).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {form:?} is not possible"))
    })
}

/// JSON as Python's `json.dumps` writes it, with its arguments `ensure_ascii` (false by default), `indent`,
/// `separators` and `sort_keys`. A message in it is escaped when it is inserted.
#[expect(clippy::needless_pass_by_value, reason = "the library passes arguments by value")]
fn to_json(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let is_ascii: Option<bool> = arguments.get("ensure_ascii")?;
    let indent: Option<Value> = arguments.get("indent")?;
    let separators: Option<Value> = arguments.get("separators")?;
    let is_sorted: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    let form = PythonJson::new(indent.filter(|one| !one.is_none()), separators)?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
    };
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if is_sorted == Some(true) {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut bytes, form)).map_err(failed)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::new(ErrorKind::BadSerialization, "tojson: not a text"))?;
    let text = mark_json(&text);
    let text = if is_ascii == Some(true) { ascii(&text) } else { text };
    Ok(Value::from_safe_string(text))
}

/// Marks the placeholders of messages in a JSON text.
fn mark_json(text: &str) -> String {
    let mut marked = String::with_capacity(text.len());
    for c in text.chars() {
        if c == PLACEHOLDER.1 {
            marked.push(JSON_MARK);
        }
        marked.push(c);
    }
    marked
}

/// The text with each character beyond ASCII as `\uXXXX`, in two parts beyond the basic plane; placeholders are kept.
fn ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() || c == PLACEHOLDER.0 || c == PLACEHOLDER.1 {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // to write to a text does not fail
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// The separators and the indentation of Python's `json.dumps`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PythonJson {
    indent: Option<String>,
    between: String,
    after_key: String,
    level: usize,
    has_members: bool,
}

impl PythonJson {
    fn new(indent: Option<Value>, separators: Option<Value>) -> Result<PythonJson, Error> {
        let wrong = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
        let indent = match indent {
            None => None,
            Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
            Some(number) => {
                let spaces = usize::try_from(number).ok().filter(|n| *n <= INDENT_MAX);
                let spaces = spaces.ok_or_else(|| wrong("indent is a text or at most 16"))?;
                Some(" ".repeat(spaces))
            }
        };
        let (between, after_key) = match separators.filter(|one| !one.is_none()) {
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
            Some(pair) => {
                let texts: Vec<String> = pair.try_iter()?.map(|one| one.to_string()).collect();
                match <[String; 2]>::try_from(texts) {
                    Ok([between, after_key]) => (between, after_key),
                    Err(_) => return Err(wrong("separators are two texts")),
                }
            }
        };
        Ok(PythonJson { indent, between, after_key, level: 0, has_members: false })
    }

    fn begin<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.has_members = false;
        out.write_all(bracket)
    }

    fn end<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.has_members {
            self.line(out)?;
        }
        out.write_all(bracket)
    }

    fn member<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.between.as_bytes())?;
        }
        self.line(out)
    }

    /// Begins a line, if there are lines.
    fn line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        (0..self.level).try_for_each(|_| out.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonJson {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.member(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _out: &mut W) -> io::Result<()> {
        self.has_members = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.member(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.after_key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _out: &mut W) -> io::Result<()> {
        self.has_members = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let environment = environment("<s>".to_owned(), "</s>".to_owned())?;
        let value =
            serde_json::json!({"b": [1, 2.5, "é\"<&>"], "a": {}, "c": null, "d": {"x": true}});
        environment.render_str(
            &without_generation(source).unwrap(),
            context! { v => minijinja::value::Serde(&value) },
        )
    }

    #[test]
    fn json_is_that_of_python() {
        // the expected texts are those of json.dumps
        let cases = [
            (
                "{{ v | tojson }}",
                r#"{"b": [1, 2.5, "é\"<&>"], "a": {}, "c": null, "d": {"x": true}}"#,
            ),
            (
                "{{ v | tojson(sort_keys=true, separators=(',', ':')) }}",
                r#"{"a":{},"b":[1,2.5,"é\"<&>"],"c":null,"d":{"x":true}}"#,
            ),
            ("{{ v.b | tojson(ensure_ascii=True) }}", r#"[1, 2.5, "\u00e9\"<&>"]"#),
            ("{{ '😀' | tojson(ensure_ascii=true) }}", r#""\ud83d\ude00""#),
            (
                "{{ v | tojson(indent=2) }}",
                "{\n  \"b\": [\n    1,\n    2.5,\n    \"é\\\"<&>\"\n  ],\n  \"a\": {},\n  \"c\": null,\n  \
                 \"d\": {\n    \"x\": true\n  }\n}",
            ),
            ("{{ [] | tojson(indent=2) }}{{ 'x' | tojson(indent=none) }}", "[]\"x\""),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        assert!(render("{{ v | tojson(indent=99) }}").is_err());
        assert!(render("{{ v | tojson(separators=[',']) }}").is_err());
        assert!(render("{{ v | tojson(other=1) }}").is_err());
    }

    #[test]
    fn the_time_has_the_form_of_strftime() {
        let found = render("{{ strftime_now('%d %b %Y') }}").unwrap();
        let now: DateTime<chrono::Utc> = time_of_day().into();
        let year = now.format("%Y").to_string();
        assert!(found.ends_with(&year) && found.len() == 11, "{found}");
        assert!(render("{{ strftime_now('%Q!') }}").unwrap_err().to_string().contains("no form"));
    }

    #[test]
    fn loops_may_be_left() {
        let source = "{% for n in [1, 2, 3, 4] %}{% if n == 2 %}{% continue %}{% endif %}\
                      {% if n == 4 %}{% break %}{% endif %}{{ n }}{% endfor %}";
        assert_eq!(render(source).unwrap(), "13");
    }

    #[test]
    fn the_marks_of_training_are_ignored() {
        let source = "a\n  {%- generation -%}\n b {% endgeneration %}\nc";
        assert_eq!(render(source).unwrap(), "ab c");
    }

    #[test]
    fn methods_are_those_of_python() {
        let cases = [
            ("{{ ' a,b '.strip().split(',') | join('+') }}", "a+b"),
            ("{{ 'x</think>y'.split('</think>')[-1].lstrip('\n') }}", "y"),
            ("{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('c') }}", "TrueTrue"),
            ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
            ("{{ {'a': 1}.get('b', 'none') }}{{ 'a' in {'a': 1} }}", "noneTrue"),
            ("{{ 'a-b c'.replace('-', '_').title() }}", "A_b C"),
            ("{{ [3, 1, 2][1:] }}{{ [1, 2, 3][::-1] }}", "[1, 2][3, 2, 1]"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }
}
