//! What shall be hidden from models in a cloud, as `mcp.json` has it.

use serde::Deserialize;

use super::catalog::Mistake;
use crate::limits::REDACT_RULES_MAX;
use crate::redact::{KnownPattern, Redactor};

/// A kind that is known by name, or a pattern of the configuration's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "must be a name, or an object with name and pattern")]
pub(super) enum RawRule {
    Known(String),
    Own(RawOwn),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOwn {
    name: String,
    pattern: String,
}

/// What does the hiding.
pub(super) fn check(rules: &[RawRule], mistakes: &mut Vec<Mistake>) -> Redactor {
    let path = "pilotlight.policy.redact";
    let mut mistake = |path: String, message: String| mistakes.push(Mistake { path, message });
    if rules.len() > REDACT_RULES_MAX {
        mistake(path.to_owned(), format!("must be at most {REDACT_RULES_MAX} rules"));
        return Redactor::default();
    }
    let mut redactor = Redactor::default();
    for (n, rule) in rules.iter().enumerate() {
        let added = match rule {
            RawRule::Own(RawOwn { name, pattern }) => redactor.add(name, pattern),
            RawRule::Known(name) => match KnownPattern::ALL.iter().find(|(known, _)| known == name)
            {
                Some((_, known)) => redactor.add_known(*known),
                None => {
                    let known = KnownPattern::ALL.map(|(name, _)| name).join(", ");
                    Err(format!(
                        "{name:?} is not one of {known}; an own pattern needs the keys name and \
                         pattern"
                    ))
                }
            },
        };
        if let Err(message) = added {
            mistake(format!("{path}.{n}"), message);
        }
    }
    redactor
}
