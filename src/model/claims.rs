//! Bounds of what a model server states of itself: [`ModelContext`] is shown to people, passed on to
//! clients, and used to schedule.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::context::{Capabilities, ModelContext, Setting};
use crate::limits::{
    CLAIM_BYTES_MAX, CLAIMS_MAX, KEY_BYTES_MAX, OUTPUT_TOKENS_MAX, SLOTS_STATED_MAX,
    STOP_BYTES_MAX, STOPS_MAX,
};
use crate::request::name::is_name;
use crate::request::refusal::one_line;

/// Token rates that a device can have, in tokens a second: from a swapping board to a data centre.
const RATES: RangeInclusive<f64> = 1e-3..=1e7;

/// The context within its bounds: numbers are clamped, texts shortened to one line, lists cut off, and
/// skills without a valid name dropped.
pub fn bounded(context: ModelContext) -> ModelContext {
    let ModelContext {
        mut identification,
        capabilities,
        mut inference_settings,
        mut tokenizer,
        mut runtime,
    } = context;
    identification.name = one_line(&identification.name, KEY_BYTES_MAX);
    shorten(&mut identification.family);
    let of_identity = [
        &mut identification.version,
        &mut identification.provider,
        &mut identification.digest,
        &mut identification.licence,
    ];
    let of_runtime = [&mut runtime.accelerator, &mut runtime.fallback, &mut runtime.cpu_variant];
    let digest = std::iter::once(&mut tokenizer.chat_template_digest);
    of_identity.into_iter().chain(of_runtime).chain(digest).flatten().for_each(shorten);
    let of_runtime = [
        &mut runtime.backend,
        &mut runtime.version,
        &mut runtime.quantization,
        &mut runtime.location,
    ];
    of_runtime.into_iter().chain([&mut tokenizer.kind]).for_each(shorten);
    let special = std::mem::take(&mut tokenizer.special_tokens).into_iter().take(CLAIMS_MAX);
    let short = |text: String| one_line(&text, CLAIM_BYTES_MAX);
    tokenizer.special_tokens =
        special.map(|(name, text)| (short(name), short(text))).collect::<BTreeMap<_, _>>();
    tokenizer.template_adaptations.truncate(CLAIMS_MAX);
    tokenizer.template_adaptations.iter_mut().for_each(shorten);
    runtime.slots = runtime.slots.clamp(1, SLOTS_STATED_MAX);
    runtime.batch = std::mem::take(&mut runtime.batch).checked().up_to(runtime.slots);
    runtime.prefill_tokens_per_s.take_if(|rate| !RATES.contains(rate));
    runtime.decode_tokens_per_s.take_if(|rate| !RATES.contains(rate));
    let settings = &mut inference_settings;
    settings.max_tokens = settings.max_tokens.clamp(1, OUTPUT_TOKENS_MAX);
    settings.stop.truncate(STOPS_MAX);
    settings.stop.retain(|stop| stop.len() <= STOP_BYTES_MAX);
    let numbers = [
        &mut settings.temperature,
        &mut settings.top_p,
        &mut settings.top_k,
        &mut settings.min_p,
        &mut settings.repeat_penalty,
    ];
    for Setting { default, min, max } in numbers {
        for number in [default, min, max] {
            // an infinite number has no JSON
            *number = number.clamp(f32::MIN, f32::MAX);
        }
    }
    let capabilities = bounded_capabilities(capabilities);
    ModelContext { identification, capabilities, inference_settings, tokenizer, runtime }
}

fn bounded_capabilities(mut can: Capabilities) -> Capabilities {
    can.max_output_tokens = can.max_output_tokens.min(OUTPUT_TOKENS_MAX);
    for list in [&mut can.modalities, &mut can.languages, &mut can.skills] {
        list.truncate(CLAIMS_MAX);
        list.iter_mut().for_each(shorten);
    }
    can.skills.retain(|skill| is_name(skill));
    can
}

fn shorten(text: &mut String) {
    *text = one_line(text, CLAIM_BYTES_MAX);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::context::{Identification, Runtime};

    #[test]
    fn a_context_within_its_bounds_stays() {
        let context = ModelContext {
            identification: Identification {
                name: "Qwen3 0.6B".to_owned(),
                ..Identification::default()
            },
            capabilities: Capabilities {
                context_tokens: u32::MAX,
                max_output_tokens: OUTPUT_TOKENS_MAX,
                skills: vec!["generate".to_owned()],
                ..Capabilities::default()
            },
            runtime: Runtime { slots: 4, decode_tokens_per_s: Some(7.5), ..Runtime::default() },
            ..ModelContext::default()
        };
        assert_eq!(bounded(context.clone()), context);
    }

    #[test]
    fn absurd_claims_are_bounded() {
        let mut claimed = json!(ModelContext::default());
        claimed["identification"]["name"] = json!(format!("x\u{1b}]0;{}", "n".repeat(1 << 20)));
        claimed["identification"]["digest"] = json!("d".repeat(1 << 20));
        claimed["capabilities"]["max_output_tokens"] = json!(u32::MAX);
        let skills: Vec<String> = (0..100_000).map(|n| format!("skill-{n}")).collect();
        claimed["capabilities"]["talents"] = json!(skills);
        claimed["capabilities"]["languages"] = json!(["\u{1b}[2J"]);
        claimed["inference_settings"]["max_tokens"] = json!(u32::MAX);
        claimed["inference_settings"]["temperature"]["max"] = json!(1e308);
        claimed["inference_settings"]["stop"] = json!(vec!["s"; 10_000]);
        let special: BTreeMap<String, &str> = (0..10_000).map(|n| (n.to_string(), "t")).collect();
        claimed["tokenizer"]["special_tokens"] = json!(special);
        claimed["runtime"]["slots"] = json!(u32::MAX);
        claimed["runtime"]["prefill_tokens_per_s"] = json!(1e-308);
        claimed["runtime"]["decode_tokens_per_s"] = json!(-1);
        let context = bounded(serde_json::from_value(claimed).unwrap());
        assert!(context.identification.name.starts_with("x]0;n"));
        assert_eq!(context.capabilities.max_output_tokens, OUTPUT_TOKENS_MAX);
        assert_eq!(context.inference_settings.max_tokens, OUTPUT_TOKENS_MAX);
        assert_eq!(context.runtime.slots, SLOTS_STATED_MAX);
        assert_eq!(context.runtime.prefill_tokens_per_s, None);
        assert_eq!(context.runtime.decode_tokens_per_s, None);
        let text = json!(context).to_string();
        assert!(text.len() < 64 * 1024, "{} bytes", text.len());
        assert!(!text.contains("\\u001b") && !text.contains("null"), "{text}");
        // and another service can read what this one passes on
        assert_eq!(serde_json::from_str::<ModelContext>(&text).unwrap(), context);
    }

    #[test]
    fn there_is_always_a_slot() {
        assert_eq!(bounded(ModelContext::default()).runtime.slots, 1);
    }
}
