//! The engine's thread: reads the prompt, writes the answer, stops when nobody waits.

use std::ffi::c_void;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::{mpsc, oneshot};

use super::constraint::{Constraint, Factory};
use super::load::{self, BATCH_TOKENS, Loaded};
use super::template;
use super::{Options, Work};
use crate::backends::sampler::Sampler;
use crate::backends::template::Template;
use crate::backends::text::TextOut;
use crate::generate::{Fault, Finish, Out, Usage};
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::ModelContext;
use crate::prompt::{Code, Format, Job, Refusal};

/// How many tokens the measurement at start reads and writes.
struct Probe {
    warm_up: usize,
    prefill: usize,
    decode: usize,
}

const PROBE_TOKENS: Probe = Probe { warm_up: 8, prefill: 64, decode: 8 };
/// A warm-up that takes longer than this is all that is measured.
const PROBE_SLOW: Duration = Duration::from_secs(1);

/// Loads, reports, then answers until the inbox is closed.
pub(super) fn run(
    options: &Options,
    ready: oneshot::Sender<Result<ModelContext, Fault>>,
    mut inbox: mpsc::Receiver<Work>,
) {
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
    let mut options = options.clone();
    if options.threads == 0 {
        let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        options.threads = u32::try_from(all).unwrap_or(1);
    }
    let started = now();
    let loaded = backend().and_then(|backend| Ok((load::load(backend, &options)?, backend)));
    let (loaded, backend) = match loaded {
        Ok(loaded) => loaded,
        Err(fault) => return drop(ready.send(Err(fault))),
    };
    let stop = Box::new(StopSignal::default());
    let mut engine = match Engine::new(backend, &loaded, &options, &stop) {
        Ok(engine) => engine,
        Err(fault) => return drop(ready.send(Err(fault))),
    };
    engine.facts.runtime.load_ms = millis(started);
    if let Err(fault) = engine.measure() {
        return drop(ready.send(Err(fault)));
    }
    if ready.send(Ok(engine.facts.clone())).is_err() {
        return;
    }
    while let Some(work) = inbox.blocking_recv() {
        let Work { job, mut out, stop, done } = work;
        let result = engine.answer(&job, &mut out, &stop);
        // the reader waits for the end of the pieces before it asks how it ended
        drop(out);
        let _ = done.send(result);
    }
}

/// llama.cpp is started once in a process and never stopped.
fn backend() -> Result<&'static LlamaBackend, Fault> {
    static BACKEND: OnceLock<Option<LlamaBackend>> = OnceLock::new();
    let started = BACKEND.get_or_init(|| LlamaBackend::init().ok());
    started.as_ref().ok_or_else(|| Fault::Away("llama.cpp can't start".to_owned()))
}

/// Points to the flag of the present request while one runs.
#[derive(Default)]
struct StopSignal(AtomicPtr<AtomicBool>);

impl StopSignal {
    /// Holds the flag up for as long as the guard lives.
    fn raise(&self, flag: &Arc<AtomicBool>) -> Raised<'_> {
        self.0.store(Arc::as_ptr(flag).cast_mut(), Ordering::Release);
        Raised(self, Arc::clone(flag))
    }
}

struct Raised<'s>(
    &'s StopSignal,
    #[expect(dead_code, reason = "keeps the flag alive")] Arc<AtomicBool>,
);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.0.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// llama.cpp asks this between the steps of a batch.
#[expect(unsafe_code, reason = "called from C")]
extern "C" fn must_stop(data: *mut c_void) -> bool {
    // SAFETY: `data` is the `StopSignal` that `run` keeps in a box for longer than the context.
    let signal = unsafe { &*data.cast_const().cast::<StopSignal>() };
    let flag = signal.0.load(Ordering::Acquire);
    // SAFETY: the pointer is null or to a flag that the `Raised` guard keeps alive; the guard
    // outlives every call into llama.cpp that could ask.
    unsafe { flag.as_ref() }.is_some_and(|flag| flag.load(Ordering::Relaxed))
}

struct Engine<'m> {
    model: &'m LlamaModel,
    context: LlamaContext<'m>,
    template: Option<Template>,
    constraints: Option<Factory>,
    facts: ModelContext,
    batch: LlamaBatch<'static>,
    /// What the key-value cache holds.
    cached: Vec<LlamaToken>,
    logits: Vec<f32>,
    stop: &'m StopSignal,
}

impl<'m> Engine<'m> {
    fn new(
        backend: &LlamaBackend,
        loaded: &'m Loaded,
        options: &Options,
        stop: &'m StopSignal,
    ) -> Result<Engine<'m>, Fault> {
        let model = &loaded.model;
        let template = template::of(model).map_err(Fault::Away)?;
        let length = options.context_tokens.min(model.n_ctx_train());
        let path = options.path.clone();
        let digest = std::thread::spawn(move || load::digest(&path));
        let threads = |n: u32| i32::try_from(n.max(1)).unwrap_or(1);
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(length))
            .with_n_batch(BATCH_TOKENS)
            .with_n_ubatch(BATCH_TOKENS)
            .with_n_seq_max(1)
            .with_n_threads(threads(options.decode_threads))
            .with_n_threads_batch(threads(options.threads));
        let params = with_stop_signal(params, stop);
        let context = model.new_context(backend, params).map_err(|e| {
            Fault::Away(format!("llama.cpp has no room for a context of {length} tokens: {e}"))
        })?;
        let digest = digest.join().unwrap_or_default();
        // llama.cpp rounds up; what it has is what counts
        let length = context.n_ctx().min(length);
        let facts = load::describe(loaded, template.as_ref(), options, digest, length);
        Ok(Engine {
            model,
            context,
            template,
            constraints: None,
            facts,
            batch: LlamaBatch::new(BATCH_TOKENS as usize, 1),
            cached: Vec::new(),
            logits: Vec::new(),
            stop,
        })
    }

    /// Reads and writes a few tokens to learn how fast this model is here; the slower it is, the
    /// fewer.
    fn measure(&mut self) -> Result<(), Fault> {
        let token = LlamaToken(self.model.n_vocab() / 2);
        // the first batch also makes work space
        let warm_up = self.time(&[token; PROBE_TOKENS.warm_up])?;
        let (prefill, prefill_s, decode) = if warm_up > PROBE_SLOW {
            (PROBE_TOKENS.warm_up, warm_up.as_secs_f64(), 1)
        } else {
            let read = PROBE_TOKENS.prefill.min(self.length() / 2);
            (read, self.time(&vec![token; read])?.as_secs_f64(), PROBE_TOKENS.decode)
        };
        let before = now();
        for _ in 0..decode {
            self.read_prompt_at(&[token])?;
        }
        let decode_s = before.elapsed().as_secs_f64();
        self.forget_from(0)?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let rate =
            |tokens: usize, seconds: f64| Some((tokens as f64 / seconds * 10.0).round() / 10.0);
        self.facts.runtime.prefill_tokens_per_s = rate(prefill, prefill_s);
        self.facts.runtime.decode_tokens_per_s = rate(decode, decode_s);
        Ok(())
    }

    /// How long it takes to read these tokens with nothing before them.
    fn time(&mut self, tokens: &[LlamaToken]) -> Result<Duration, Fault> {
        self.forget_from(0)?;
        let before = now();
        self.read_prompt(tokens, None)?;
        Ok(before.elapsed())
    }

    fn length(&self) -> usize {
        self.facts.capabilities.context_tokens as usize
    }

    fn answer(&mut self, job: &Job, out: &mut Out, stop: &Arc<AtomicBool>) -> Result<Usage, Fault> {
        let raised = self.stop.raise(stop);
        let result = self.answer_until_stopped(job, out, stop);
        drop(raised);
        if stop.load(Ordering::Relaxed) || out.is_gone() { Err(Fault::Cancelled) } else { result }
    }

    fn answer_until_stopped(
        &mut self,
        job: &Job,
        out: &mut Out,
        stop: &AtomicBool,
    ) -> Result<Usage, Fault> {
        let constraint = self.constrain(&job.format)?;
        let prompt = template::tokens(self.model, self.template.as_ref(), &job.messages)
            .map_err(Fault::Unfit)?;
        if prompt.is_empty() || prompt.len() >= self.length() {
            let (n, most) = (prompt.len(), self.length());
            let message = format!(
                "the prompt has {n} tokens and this model reads at most {most}, the answer included"
            );
            return Err(Fault::Unfit(Refusal::field(Code::Incapable, "prompt", message)));
        }
        let started = now();
        let cached = self.reuse(&prompt)?;
        self.read_prompt(&prompt[cached..], Some(out))?;
        let prefill_ms = started.elapsed().as_secs_f64() * 1e3;
        let room = u32::try_from(self.length() - prompt.len()).unwrap_or(OUTPUT_TOKENS_MAX);
        let asked = job.sampling.max_tokens.unwrap_or(self.facts.inference_settings.max_tokens);
        let started = now();
        let (finish, tokens) = self.write(job, constraint, asked.min(room), out, stop)?;
        Ok(Usage {
            finish,
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            cached_tokens: u32::try_from(cached).unwrap_or(u32::MAX),
            completion_tokens: tokens,
            chunks: out.written(),
            prefill_ms,
            decode_ms: started.elapsed().as_secs_f64() * 1e3,
            cost_usd: 0.0,
            model: self.facts.identification.name.clone(),
            decision: None,
        })
    }

    fn constrain(&mut self, format: &Format) -> Result<Option<Constraint>, Fault> {
        if *format == Format::Text {
            return Ok(None);
        }
        if self.constraints.is_none() {
            self.constraints = Some(Factory::new(self.model)?);
        }
        let Some(factory) = &self.constraints else {
            return Ok(None);
        };
        factory.constrain(format)
    }

    /// Keeps what the cache and the prompt have in common; the last token is always read again,
    /// because its logits are needed.
    fn reuse(&mut self, prompt: &[LlamaToken]) -> Result<usize, Fault> {
        let common = prompt.iter().zip(&self.cached).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len() - 1);
        self.forget_from(kept)?;
        Ok(kept)
    }

    fn forget_from(&mut self, kept: usize) -> Result<(), Fault> {
        let from = u32::try_from(kept).unwrap_or(u32::MAX);
        if self.context.clear_kv_cache_seq(Some(0), Some(from), None).is_ok_and(|cleared| cleared) {
            self.cached.truncate(kept);
            return Ok(());
        }
        // some models can't forget a part
        self.context.clear_kv_cache();
        self.cached.clear();
        if kept == 0 { Ok(()) } else { Err(Fault::Broken("the cache can't be cut".to_owned())) }
    }

    fn read_prompt(&mut self, tokens: &[LlamaToken], out: Option<&Out>) -> Result<(), Fault> {
        for step in tokens.chunks(BATCH_TOKENS as usize) {
            self.read_prompt_at(step)?;
            if let Some(out) = out {
                out.alive();
            }
        }
        Ok(())
    }

    /// Reads some tokens behind what is cached; the logits of the last one are kept.
    fn read_prompt_at(&mut self, tokens: &[LlamaToken]) -> Result<(), Fault> {
        self.batch.clear();
        let first = self.cached.len();
        for (n, token) in tokens.iter().enumerate() {
            let at = i32::try_from(first + n).unwrap_or(i32::MAX);
            let last = n + 1 == tokens.len();
            self.batch
                .add(*token, at, &[0], last)
                .map_err(|e| Fault::Broken(format!("too much in one step: {e}")))?;
        }
        if let Err(error) = self.context.decode(&mut self.batch) {
            // an aborted step may have left a part of itself
            self.forget_from(first)?;
            return Err(Fault::Broken(format!("llama.cpp could not go on: {error}")));
        }
        self.cached.extend_from_slice(tokens);
        let row = self.batch.n_tokens() - 1;
        self.logits.clear();
        self.logits.extend_from_slice(self.context.get_logits_ith(row));
        Ok(())
    }

    fn write(
        &mut self,
        job: &Job,
        mut constraint: Option<Constraint>,
        most: u32,
        out: &mut Out,
        stop: &AtomicBool,
    ) -> Result<(Finish, u32), Fault> {
        let mut sampler = Sampler::new(&job.sampling, &self.facts.inference_settings);
        let mut text = TextOut::new(job.sampling.stop.clone());
        let vocab = self.model.vocab();
        let mut finish = Finish::Length;
        let mut written = 0;
        while written < most {
            if stop.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let token = self.next(&mut sampler, constraint.as_mut())?;
            if vocab.is_eog(token) {
                finish = Finish::Stop;
                break;
            }
            written += 1;
            send(out, text.push(&vocab.token_to_piece(token, false, None)))?;
            if let Some(constraint) = &mut constraint {
                constraint.accept(token)?;
            }
            if text.is_stopped() || constraint.as_ref().is_some_and(Constraint::is_done) {
                finish = Finish::Stop;
                break;
            }
            if written < most {
                self.read_prompt_at(&[token])?;
            }
        }
        send(out, text.finish())?;
        Ok((finish, written))
    }

    fn next(
        &mut self,
        sampler: &mut Sampler,
        constraint: Option<&mut Constraint>,
    ) -> Result<LlamaToken, Fault> {
        let token = match constraint {
            None => sampler.choose(&mut self.logits, |_| true),
            Some(constraint) => {
                let allowed = constraint.allowed()?;
                sampler.choose(&mut self.logits, |token| allowed.is_allowed(token))
            }
        };
        let token = token.and_then(|token| i32::try_from(token).ok());
        token.map(LlamaToken).ok_or_else(|| Fault::Broken("no token can come next".to_owned()))
    }
}

fn send(out: &mut Out, text: String) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    out.write_blocking(text).map_err(|_| Fault::Cancelled)
}

/// Sets llama.cpp's abort callback, for which the safe API has no setter.
#[expect(unsafe_code, reason = "the safe API lacks the abort callback")]
fn with_stop_signal(mut params: LlamaContextParams, stop: &StopSignal) -> LlamaContextParams {
    type Raw = llama_cpp_sys_2::llama_context_params;
    const _: () = assert!(size_of::<LlamaContextParams>() == size_of::<Raw>());
    const _: () = assert!(align_of::<LlamaContextParams>() == align_of::<Raw>());
    // SAFETY: at this pinned version `LlamaContextParams` has exactly one field, of type `Raw`;
    // a struct with one field of its own size and alignment holds it at offset 0.
    let raw = unsafe { &mut *(&raw mut params).cast::<Raw>() };
    raw.abort_callback = Some(must_stop);
    raw.abort_callback_data = std::ptr::from_ref(stop).cast_mut().cast();
    params
}

#[expect(clippy::disallowed_methods, reason = "measures itself; decides nothing by it")]
fn now() -> Instant {
    Instant::now()
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
