//! Fields of a chat request that are taken without effect, and those that are refused because they would have one.

use serde_json::{Map, Value};

use crate::request::refusal::{Code, Refusal};
use crate::request::wording::nearest;

/// Fields that do not change an answer here, whatever they state.
const WITHOUT_EFFECT: [&str; 12] = [
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "thinking",
    "user",
    "verbosity",
];

/// Fields that would change the answer and are not implemented: the values that ask for nothing, and what to do.
const NEUTRAL: [(&str, &[&str], &str); 13] = [
    ("audio", &[], "no model here speaks; omit it"),
    ("best_of", &["1"], "omit it"),
    ("echo", &["false"], "omit it"),
    ("frequency_penalty", &["0", "0.0"], "omit it, or use repeat_penalty"),
    ("function_call", &["\"none\"", "\"auto\""], "use tools and tool_choice"),
    ("functions", &["[]"], "use tools"),
    ("ignore_eos", &["false"], "omit it"),
    ("logit_bias", &["{}"], "omit it"),
    ("modalities", &["[]", "[\"text\"]"], "answers are text; omit it"),
    ("moderation", &[], "omit it"),
    ("presence_penalty", &["0", "0.0"], "omit it, or use repeat_penalty"),
    ("suffix", &["\"\""], "omit it"),
    ("web_search_options", &[], "no model here searches the web; omit it"),
];

/// Checks the fields that are none of `known`. A null asks for nothing.
///
/// # Errors
/// [`Refusal`] with the first field that would have an effect, or that nobody knows.
pub(super) fn check(others: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    for (name, value) in others.iter().filter(|(_, value)| !value.is_null()) {
        if WITHOUT_EFFECT.contains(&name.as_str()) {
            continue;
        }
        let Some((_, neutral, advice)) = NEUTRAL.iter().find(|(field, _, _)| field == name) else {
            let near = nearest(name, known.iter().copied());
            let near = near.map_or_else(String::new, |near| format!("; the nearest is {near}"));
            let message = format!("unknown field{near}");
            return Err(Refusal::field(Code::Invalid, name.clone(), message));
        };
        if !neutral.contains(&value.to_string().as_str()) {
            let message = format!("is not supported: {advice}");
            return Err(Refusal::field(Code::Invalid, name.clone(), message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(others: Value) -> Result<(), (String, String)> {
        let Value::Object(others) = others else { panic!("an object") };
        let known = ["model", "max_tokens", "tools"];
        check(&others, &known).map_err(|refusal| (refusal.field.unwrap(), refusal.message))
    }

    #[test]
    fn what_asks_for_nothing_is_taken() {
        let neutral = json!({
            "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "reasoning_effort": "low",
            "functions": [], "function_call": "none", "modalities": ["text"], "audio": null,
            "service_tier": "auto", "prediction": {"type": "content", "content": "x"}, "unheard_of": null,
        });
        assert_eq!(checked(neutral), Ok(()));
    }

    #[test]
    fn what_would_have_an_effect_is_refused_with_advice() {
        for (field, value, advice) in [
            ("frequency_penalty", json!(0.5), "repeat_penalty"),
            ("logit_bias", json!({"50256": -100}), "omit it"),
            ("functions", json!([{"name": "f"}]), "use tools"),
            ("modalities", json!(["text", "audio"]), "answers are text"),
            ("web_search_options", json!({}), "searches the web"),
        ] {
            let refused = checked(json!({ field: value })).unwrap_err();
            assert_eq!(refused.0, field);
            assert!(
                refused.1.contains("not supported") && refused.1.contains(advice),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn an_unknown_field_has_its_nearest_name() {
        let refused = checked(json!({"max_token": 5})).unwrap_err();
        assert_eq!(
            refused,
            ("max_token".to_owned(), "unknown field; the nearest is max_tokens".to_owned())
        );
        assert_eq!(checked(json!({"colour": 5})).unwrap_err().1, "unknown field");
    }
}
