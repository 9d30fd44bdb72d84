//! Rules of a task: numeric and text comparisons that answer without a model, because a tiny model
//! can't compare numbers.
//!
//! The grammar is `NAME OPERATOR VALUE`, joined by `and`: `unit == "C" and reading >= 35.5`. The name
//! is that of an input value; the value is a number or a string in quotes.

use std::fmt;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::request::name::is_name;
use crate::request::refusal::{Code, Refusal};

/// One rule: a condition and the label that answers if it holds.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRule {
    /// The condition: comparisons of an input value with a number or a text in double quotes, joined by
    /// `and`, such as `reading > 90 and unit == "C"`.
    #[schemars(with = "String", regex(pattern = WHEN_PATTERN))]
    pub when: When,
    /// The label that answers if the condition holds; one of the task's labels.
    pub label: String,
}

/// The grammar of a condition.
const WHEN_PATTERN: &str = concat!(
    r#"^\s*[A-Za-z0-9_-]{1,64}\s*((<=|>=|==|!=|<|>)\s*-?[0-9][0-9.eE+-]*|(==|!=)\s*"([^"\\]|\\.)*")\s*"#,
    r#"( and \s*[A-Za-z0-9_-]{1,64}\s*((<=|>=|==|!=|<|>)\s*-?[0-9][0-9.eE+-]*|(==|!=)\s*"([^"\\]|\\.)*")\s*)*$"#
);

/// A condition: comparisons that must all hold.
#[derive(Debug, Clone, PartialEq)]
pub struct When(Vec<Comparison>);

#[derive(Debug, Clone, PartialEq)]
struct Comparison {
    name: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Number(Operator, f64),
    Text { equal: bool, text: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Equal,
    NotEqual,
    AtLeast,
    Greater,
}

/// Operators of two characters come first, because `<` is a prefix of `<=`.
const OPERATORS: [(&str, Operator); 6] = [
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl Operator {
    #[expect(clippy::float_cmp, reason = "the rule states exact equality")]
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Operator::Less => left < right,
            Operator::AtMost => left <= right,
            Operator::Equal => left == right,
            Operator::NotEqual => left != right,
            Operator::AtLeast => left >= right,
            Operator::Greater => left > right,
        }
    }
}

impl When {
    /// Parses a condition.
    ///
    /// # Errors
    /// A message with the part that can't be parsed and the grammar.
    pub fn parse(text: &str) -> Result<When, String> {
        parts(text).map(Comparison::parse).collect::<Result<_, _>>().map(When)
    }

    /// The names of the compared input values.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|comparison| comparison.name.as_str())
    }

    /// Whether the condition holds for this input. A comparison of a missing value does not hold.
    ///
    /// # Errors
    /// A refusal that names a value that is compared with a number and is none.
    pub fn holds(&self, input: &Map<String, Value>) -> Result<bool, Refusal> {
        for comparison in &self.0 {
            let Some(value) = input.get(&comparison.name) else {
                return Ok(false);
            };
            if !comparison.holds(value)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Splits the comparisons at ` and ` outside of quotes.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let whole = rest?;
        let joint = whole.match_indices(" and ").find(|(at, _)| {
            whole[..*at].bytes().filter(|byte| *byte == b'"').count().is_multiple_of(2)
        });
        let (part, after) = match joint {
            Some((at, joint)) => (&whole[..at], Some(&whole[at + joint.len()..])),
            None => (whole, None),
        };
        rest = after;
        Some(part)
    })
}

impl Comparison {
    fn parse(text: &str) -> Result<Comparison, String> {
        let wrong = || {
            format!(
                "{text:?} is not a valid condition; write NAME, one of < <= == != >= >, and a number or \
                 a \"text\", as in: reading > 90 and unit == \"C\""
            )
        };
        let end = text.find(|c| "<>=!".contains(c)).ok_or_else(wrong)?;
        let (name, rest) = (text[..end].trim(), &text[end..]);
        let found = OPERATORS.iter().find_map(|(sign, op)| Some((op, rest.strip_prefix(sign)?)));
        let (operator, value) = found.ok_or_else(wrong)?;
        let value: Value = serde_json::from_str(value.trim()).map_err(|_| wrong())?;
        let compared = match (value, operator) {
            (Value::Number(number), operator) => {
                Test::Number(*operator, number.as_f64().ok_or_else(wrong)?)
            }
            (Value::String(text), Operator::Equal) => Test::Text { equal: true, text },
            (Value::String(text), Operator::NotEqual) => Test::Text { equal: false, text },
            (_, _) => return Err(wrong()),
        };
        if !is_name(name) {
            return Err(wrong());
        }
        Ok(Comparison { name: name.to_owned(), test: compared })
    }

    fn holds(&self, value: &Value) -> Result<bool, Refusal> {
        let number = |value: &Value| match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        match &self.test {
            Test::Text { equal, text } => Ok((value.as_str() == Some(text)) == *equal),
            Test::Number(operator, bound) => match number(value) {
                Some(number) => Ok(operator.holds(number, *bound)),
                None => {
                    let message =
                        format!("must be a number: a rule of the task compares it with {bound}");
                    Err(Refusal::field(Code::Invalid, format!("input.{}", self.name), message))
                }
            },
        }
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<When, D::Error> {
        When::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, comparison) in self.0.iter().enumerate() {
            let joint = if at > 0 { " and " } else { "" };
            match &comparison.test {
                Test::Number(operator, bound) => {
                    let sign = OPERATORS.iter().find(|(_, op)| op == operator).map_or("", |o| o.0);
                    write!(f, "{joint}{} {sign} {bound}", comparison.name)?;
                }
                Test::Text { equal, text } => {
                    let sign = if *equal { "==" } else { "!=" };
                    write!(f, "{joint}{} {sign} {text:?}", comparison.name)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(when: &str, input: &Value) -> Result<bool, Refusal> {
        When::parse(when).unwrap().holds(input.as_object().unwrap())
    }

    #[test]
    fn operators_are_exact_at_the_bound() {
        for (sign, below, at, above) in [
            ("<", true, false, false),
            ("<=", true, true, false),
            ("==", false, true, false),
            ("!=", true, false, true),
            (">=", false, true, true),
            (">", false, false, true),
        ] {
            let when = format!("reading {sign} 90.5");
            for (reading, expected) in [(90.4, below), (90.5, at), (90.6, above)] {
                assert_eq!(holds(&when, &json!({"reading": reading})), Ok(expected), "{when}");
            }
        }
        assert_eq!(holds("reading > 90", &json!({"reading": "91"})), Ok(true), "a number as text");
        assert_eq!(holds("reading > -1e3", &json!({"reading": 0})), Ok(true));
    }

    #[test]
    fn all_comparisons_must_hold_and_missing_values_fail() {
        let when = "unit == \"C and F\" and reading >= 35";
        assert_eq!(holds(when, &json!({"unit": "C and F", "reading": 35})), Ok(true));
        assert_eq!(holds(when, &json!({"unit": "C", "reading": 35})), Ok(false));
        assert_eq!(holds(when, &json!({"reading": 35})), Ok(false));
        assert_eq!(holds("unit != \"C\"", &json!({"unit": "F"})), Ok(true));
        assert_eq!(When::parse(when).unwrap().to_string(), when);
        let refusal = holds("reading > 90", &json!({"reading": "warm"})).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("input.reading"));
        assert!(holds("reading > 90", &json!({"reading": "NaN"})).is_err());
    }

    #[test]
    fn parse_errors_show_the_text_and_the_grammar() {
        for wrong in [
            "",
            "reading",
            "reading >",
            "> 90",
            "reading => 90",
            "reading > ninety",
            "reading > \"90\"",
            "a b > 1",
            "reading > 90 and",
            "reading > 90 and ",
            "reading == true",
            "reading > 1 2",
        ] {
            let error = When::parse(wrong).unwrap_err();
            assert!(error.contains("as in: reading > 90"), "{wrong}: {error}");
        }
    }
}
