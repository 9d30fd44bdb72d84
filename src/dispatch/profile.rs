//! The backend profile that the scheduler gets of a model.

use crate::limits::ENGINE_SILENCE_MAX;
use crate::model::context::ModelContext;
use crate::model::link::BackendHandle;
use crate::request::skill::{CLASSIFY, DETERMINISTIC, EMBED, GENERATE, LOGPROBS};
use crate::scheduler::BackendProfile;

/// The profile of a backend that has not stated its context yet, from the configuration.
pub(super) fn unknown(backend: &BackendHandle) -> BackendProfile {
    BackendProfile {
        price: backend.price,
        fallbacks: backend.fallbacks.clone(),
        ..BackendProfile::unknown(&backend.server, backend.locality)
    }
}

/// The profile of a backend that is up: what it states, with its configuration.
pub(super) fn of(backend: &BackendHandle, context: &ModelContext) -> BackendProfile {
    BackendProfile {
        model: Some(context.identification.name.clone()),
        slots: context.runtime.slots,
        preemptive: context.runtime.preemptive,
        batch: context.runtime.batch.clone(),
        read_ms: context.runtime.prefill_tokens_per_s.and_then(ms_a_token),
        write_ms: context.runtime.decode_tokens_per_s.and_then(ms_a_token),
        max_tokens: context.inference_settings.max_tokens,
        output_tokens_max: context.output_tokens_max(None),
        context_tokens: context.capabilities.context_tokens,
        json_schema: context.capabilities.json_schema,
        tools: context.capabilities.tools,
        skills: Some(skills(context, &backend.skills)),
        ..unknown(backend)
    }
}

/// Milliseconds a token at this rate; none for a rate that no model has: an engine that takes longer than
/// [`ENGINE_SILENCE_MAX`] for a token counts as hung.
fn ms_a_token(tokens_per_s: f64) -> Option<f64> {
    let longest = ENGINE_SILENCE_MAX.as_secs_f64();
    (tokens_per_s.is_finite() && tokens_per_s * longest >= 1.0).then(|| 1e3 / tokens_per_s)
}

/// The skills of a model: those that it states, those that follow from its capabilities, and those
/// of the configuration.
fn skills(context: &ModelContext, configured: &[String]) -> Vec<String> {
    let can = &context.capabilities;
    let known = [GENERATE, CLASSIFY, EMBED, LOGPROBS, DETERMINISTIC];
    let known = known.into_iter().filter(|skill| can.has(skill)).map(str::to_owned);
    known.chain(can.skills.iter().cloned()).chain(configured.iter().cloned()).collect()
}
