//! What every engine must do with a real model, beyond the contract of all that answers.

use pilotlight::model::generate::{Fault, Finish, Generate, TokenLogprob, Usage};
use pilotlight::model::out::channel;
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Priority, Role};
use pilotlight::request::refusal::Code;
use serde_json::{Value, json};

use super::contract::{Prompts, job, run};

/// For a real model.
pub const REAL: Prompts = Prompts {
    short: "Count from one to twenty in words, separated by commas.",
    endless: "Write a very long story about a lighthouse.",
    stop: " ",
};

/// The whole suite; the model has a context of 1,024 tokens.
pub async fn works(model: &dyn Generate) {
    a_shared_prefix_is_read_once(model).await;
    other_groups_learn_nothing_from_the_cache(model).await;
    sampling_follows_its_seed_and_temperature(model).await;
    nobody_can_write_a_role_into_a_prompt(model).await;
    answers_fit_their_schema(model).await;
    long_conversations_and_strange_text(model).await;
    says_how_likely_its_tokens_were(model).await;
    the_more_urgent_goes_first(model).await;
}

/// A long answer is put aside for a short one that is more urgent, twice, and goes on as if nothing
/// had been.
pub async fn the_more_urgent_goes_first(model: &dyn Generate) {
    let runtime = &model.context().runtime;
    assert_eq!(runtime.preemptive, runtime.slots > 1);
    if runtime.slots == 1 {
        return;
    }
    let mut long = job("Tell me a story about a lighthouse and the sea.", 60);
    long.sampling.logprobs = Some(0);
    let urgent = |prompt: &str| Job { priority: Priority::Interactive, ..job(prompt, 4) };
    let likely = |usage: &Usage| {
        let sum: f32 = usage.logprobs.iter().map(|token| token.token.logprob).sum();
        sum / usage.logprobs.len() as f32
    };
    let (_, alone) = run(model, &long).await.unwrap();

    let (out, mut chunks) = channel();
    let (begun, mut has_begun) = tokio::sync::mpsc::channel(1);
    let ended = std::sync::Mutex::new(Vec::new());
    let note = |name: &'static str| ended.lock().unwrap().push(name);
    let write = async {
        let usage = model.generate(&long, out).await.unwrap();
        note("long");
        usage
    };
    let read = async {
        while let Some(chunk) = chunks.recv().await {
            if !chunk.text.is_empty() {
                let _ = begun.try_send(());
            }
        }
    };
    let interrupt = async {
        has_begun.recv().await.unwrap();
        run(model, &urgent("Name a river.")).await.unwrap();
        note("first");
        run(model, &urgent("Name a mountain.")).await.unwrap();
        note("second");
        // an equally urgent prompt waits, or is answered in the same batch
        run(model, &job("Name a lake.", 4)).await.unwrap();
        note("later");
    };
    let (usage, (), ()) = tokio::join!(write, read, interrupt);
    let ended = ended.into_inner().unwrap();
    assert_eq!(ended[..2], ["first", "second"]);
    if runtime.batch.width() == 1 {
        assert_eq!(ended[2..], ["long", "later"]);
    }
    assert_eq!(usage.completion_tokens, alone.completion_tokens);
    let tokens = |usage: &Usage| -> Vec<Vec<u8>> {
        usage.logprobs.iter().take(6).map(|token| token.token.bytes.clone()).collect()
    };
    assert_eq!(tokens(&usage), tokens(&alone));
    // batches of another shape change the last bits: other words, as likely
    let (with, without) = (likely(&usage), likely(&alone));
    assert!((with - without).abs() < 0.35, "{with} instead of {without} a token");
    // the time of the others is not its own; alone it is measured before and after, for the machine may
    // have become slower
    let (_, after) = run(model, &long).await.unwrap();
    let alone_ms = alone.decode_ms.max(after.decode_ms);
    assert!(usage.decode_ms < 3.0 * alone_ms, "{} and {alone_ms}", usage.decode_ms);
}

pub async fn a_shared_prefix_is_read_once(model: &dyn Generate) {
    let long = "The river runs from the hills to the sea. ".repeat(12);
    let first = run(model, &job(&format!("{long} Where does it start?"), 4)).await.unwrap().1;
    assert_eq!(first.cached_tokens, 0);
    let second = run(model, &job(&format!("{long} Where does it end?"), 4)).await.unwrap().1;
    assert!(second.cached_tokens > 100, "{second:?}");
    assert!(second.cached_tokens < second.prompt_tokens);
}

/// The number of cached tokens, and so the time to the first token, says nothing of another group's
/// prompt; what the operator wrote is shared by all.
pub async fn other_groups_learn_nothing_from_the_cache(model: &dyn Generate) {
    let rules = "You open doors for those who know the code of the harbour office. ".repeat(4);
    let with = |group: &str, open_bytes: usize, pin: u32| {
        let job = job(&format!("{rules}The code is {pin}. Which code is it?"), 1);
        Job { cache_group: group.to_owned(), open_bytes, ..job }
    };
    let cached = async |job: Job| run(model, &job).await.unwrap().1.cached_tokens;
    cached(with("alpha", 0, 4711)).await;
    let own = cached(with("alpha", 0, 4711)).await;
    assert!(own > 60, "{own}");
    // guesses of another group, digit by digit
    for pin in [4711, 4710, 4799, 4000, 9000] {
        let guess = cached(with(&format!("guess {pin}"), 0, pin)).await;
        assert!(guess < own / 2, "{guess} of {own} for {pin}");
        // what was displaced is cached again
        cached(with("alpha", 0, 4711)).await;
    }
    let open = cached(with("beta", rules.len(), 9000)).await;
    assert!(open > 40 && open < own, "{open} of {own}");
}

async fn sampling_follows_its_seed_and_temperature(model: &dyn Generate) {
    let with = |seed, temperature| {
        let mut job = job("Tell me something about the moon.", 24);
        job.sampling.seed = Some(seed);
        job.sampling.temperature = Some(temperature);
        job
    };
    // the first run may find another cache
    run(model, &with(1, 1.0)).await.unwrap();
    let one = run(model, &with(1, 1.0)).await.unwrap().0;
    assert_eq!(one, run(model, &with(1, 1.0)).await.unwrap().0);
    assert_ne!(one, run(model, &with(2, 1.0)).await.unwrap().0);
    let greedy = run(model, &with(1, 0.0)).await.unwrap().0;
    assert_eq!(greedy, run(model, &with(2, 0.0)).await.unwrap().0);
}

/// What a user writes is never read as a control token.
async fn nobody_can_write_a_role_into_a_prompt(model: &dyn Generate) {
    let count = async |text: &str| run(model, &job(text, 1)).await.unwrap().1.prompt_tokens;
    let plain = count("x").await;
    let control = count("x<|im_end|>").await;
    // as a control token it would be one more; as text it is several
    assert!(control >= plain + 4, "{plain} {control}");
}

async fn answers_fit_their_schema(model: &dyn Generate) {
    let schemas = [
        json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3}}, "required": ["tags"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"on": {"type": "boolean"}, "at": {"type": ["number", "null"], "minimum": 0, "maximum": 9}}, "required": ["on", "at"], "additionalProperties": false}),
        json!({"enum": ["red", "green"]}),
        json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"], "additionalProperties": false}),
    ];
    for temperature in [0.0, 1.5] {
        for schema in &schemas {
            let mut job = job("Describe the state of the pump.", 80);
            job.sampling.temperature = Some(temperature);
            job.format = Format::Schema(schema.clone().into());
            let (text, usage) = run(model, &job).await.unwrap();
            assert_eq!(usage.finish, Finish::Stop, "{schema}: {text}");
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let valid = jsonschema::is_valid(schema, &value);
            assert!(valid, "{schema}: {text}");
        }
    }
    let mut any = job("Describe the pump.", 200);
    any.format = Format::Json;
    let (text, usage) = run(model, &any).await.unwrap();
    if usage.finish == Finish::Stop {
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
    }
    for impossible in [
        json!({"type": "nonsense"}),
        json!({"type": "integer", "minimum": 5, "maximum": 4}),
        json!({"$ref": "http://example.com/x"}),
    ] {
        let mut job = job("x", 8);
        job.format = Format::Schema(impossible.clone().into());
        let result = run(model, &job).await;
        let Err(Fault::Rejected(refusal)) = result else { panic!("{impossible}: {result:?}") };
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (Code::Invalid, Some("schema")),
            "{impossible}"
        );
    }
    run(model, &job("and the next is unharmed", 4)).await.unwrap();
}

async fn long_conversations_and_strange_text(model: &dyn Generate) {
    for text in
        ["\u{0}", "🔥🔥🔥", "\u{202E}abc", "a\u{0301}\u{0301}", "\r\n\t", "ﷺ", "\u{F8F0}0\u{F8F1}"]
    {
        run(model, &job(text, 3)).await.unwrap();
    }
    let mut long = job("", 8);
    let turn = |n| {
        let role = if n % 2 == 0 { Role::User } else { Role::Assistant };
        Message::new(role, format!("turn {n}"))
    };
    long.messages = (0..41).map(turn).collect();
    run(model, &long).await.unwrap();
    // exactly full: the answer is cut at the end of the context
    let mut full = job(&"a ".repeat(900), 2000);
    full.sampling.temperature = Some(0.0);
    let usage = run(model, &full).await.unwrap().1;
    assert!(usage.prompt_tokens + usage.completion_tokens <= 1024, "{usage:?}");
}

pub async fn says_how_likely_its_tokens_were(model: &dyn Generate) {
    let mut asked = job("Name a river.", 8);
    asked.sampling.temperature = Some(0.0);
    let (silent, usage) = run(model, &asked).await.unwrap();
    assert!(usage.logprobs.is_empty());
    asked.sampling.logprobs = Some(3);
    let (text, usage) = run(model, &asked).await.unwrap();
    assert_eq!(text, silent);
    assert_eq!(usage.logprobs.len(), usage.completion_tokens as usize);
    let bytes: Vec<u8> = usage.logprobs.iter().flat_map(|at| at.token.bytes.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
    for at in &usage.logprobs {
        assert_eq!(at.top_logprobs.len(), 3);
        assert!(at.token.logprob <= 0.0 && at.token.logprob.is_finite());
        assert_eq!(at.allowed_logprob, None);
        // greedy: what was taken was the likeliest
        assert_eq!(at.token, at.top_logprobs[0]);
        assert!(at.top_logprobs.is_sorted_by(|a, b| a.logprob >= b.logprob), "{at:?}");
    }
    // what a schema forbids stays as likely as the model thought it
    asked.format = Format::Schema(json!({"enum": ["q"]}).into());
    let (_, usage) = run(model, &asked).await.unwrap();
    assert!(usage.logprobs.iter().any(|at| at.token != at.top_logprobs[0]), "{usage:?}");
    // among what was allowed it is likelier, most of all where all that the model would say was not
    let allowed = |at: &TokenLogprob| at.allowed_logprob.unwrap();
    for at in &usage.logprobs {
        assert!(allowed(at) <= 0.0 && allowed(at) >= at.token.logprob - 1e-3, "{at:?}");
    }
    assert!(usage.logprobs.iter().any(|at| allowed(at) > at.token.logprob + 0.5), "{usage:?}");
}
