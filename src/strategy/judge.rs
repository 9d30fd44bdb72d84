//! The judge: a model that is asked which of several answers is best.

use serde_json::{Value, json};

use super::Part;
use crate::limits::JUDGE_TOKENS_MAX;
use crate::request::format::Format;
use crate::request::job::{Job, Message, Role, Sampling, Strategy};

/// The texts before and behind the request and the answers in the judge's prompt.
const HEAD: &str = "Below are a request and several answers to it. Decide which answer is best: \
                    the most correct first, then the most complete, then the clearest. Length and \
                    order are no merit.";
const FOOT: &str = "Which answer is best? Reply with JSON such as";

/// The two orders in which the answers are shown, one the reverse of the other, because many models
/// prefer the first (Zheng et al. 2023, arXiv:2306.05685, section 3.3).
pub(crate) fn orders(good: &[usize]) -> [Vec<usize>; 2] {
    [good.to_vec(), good.iter().rev().copied().collect()]
}

/// The judge's job for these answers in this order.
pub(crate) fn job(step: &Job, judge: &str, parts: &[Part], order: &[usize]) -> Job {
    let names: Vec<String> = (0..order.len()).map(name).collect();
    let schema = json!({
        "type": "object",
        "properties": {"best": {"enum": names}},
        "required": ["best"],
        "additionalProperties": false,
    });
    let mut text = format!("{HEAD}\n\nThe request:\n{}", step.text());
    for (name, at) in names.iter().zip(order) {
        text.extend(["\n\nAnswer ", name, ":\n", &parts[*at].whole()]);
    }
    text.extend(["\n\n", FOOT, " ", &json!({"best": names[0]}).to_string(), "."]);
    Job {
        messages: vec![Message::new(Role::User, text)],
        format: Format::Schema(schema.into()),
        tools: None,
        skill: None,
        key: None,
        // a name that no task can have: the length of these answers must not count for the task's
        task: Some("(judge)".to_owned()),
        model: Some(judge.to_owned()),
        strategy: Strategy::Single,
        sampling: Sampling {
            max_tokens: Some(JUDGE_TOKENS_MAX),
            temperature: Some(0.0),
            ..Sampling::default()
        },
        ..step.clone()
    }
}

/// The place of the preferred answer, if the judge named one.
pub(crate) fn preference(answer: &Part, order: &[usize]) -> Option<usize> {
    let value: Value = serde_json::from_str(&answer.text).ok().filter(|_| answer.is_answer())?;
    let best = value["best"].as_str()?;
    order.iter().enumerate().find(|(n, _)| name(*n) == best).map(|(_, at)| *at)
}

/// The name of an answer in the judge's prompt: A, B, C.
fn name(n: usize) -> String {
    char::from_u32(u32::from(b'A') + u32::try_from(n).unwrap_or(0)).unwrap_or('?').to_string()
}
