//! A model that follows a script instead of weights: for tests, simulations and `serve --dry`.
//!
//! The scripted model repeats the last message of the prompt word by word. Options in the prompt control it:
//! `/tokens=N` makes N pieces, `/delay-us=N` waits before each, `/fail=KIND` breaks before the
//! first piece, `/fail=KIND@N` after piece N. Kinds are `away`, `crash` (ends the process, if
//! this is an engine's process), `hang` and `broken`. Of labels it chooses one that is a word of the
//! prompt, else the first, with the confidence of `/sure=0.7`. `/sure-NAME=0.7`
//! and `/fail-NAME=KIND` are for the scripted model of that name alone.

use std::time::Duration;

use crate::engines::text::TextOut;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::context::{Capabilities, Identification, ModelContext, Runtime, Tokenizer};
use crate::model::generate::{BoxFuture, Fault, Finish, Generate, Usage};
use crate::model::out::Out;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::labels::{Classification, Labels};
use crate::request::refusal::{Code, Refusal};
use crate::request::skill::{CLASSIFY, GENERATE};

/// The scripted model.
pub struct Scripted {
    context: ModelContext,
    crash: Crash,
}

/// The effect of `/fail=crash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Returns [`Fault::Crashed`].
    Report,
    /// Aborts the process.
    Abort,
}

impl Scripted {
    /// A scripted model of that name with `slots` answers at once.
    pub fn new(name: &str, slots: u32, crash: Crash) -> Scripted {
        let context = ModelContext {
            identification: Identification {
                name: name.to_owned(),
                family: "scripted".to_owned(),
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                ..Identification::default()
            },
            capabilities: Capabilities {
                context_tokens: 65_536,
                max_output_tokens: OUTPUT_TOKENS_MAX,
                modalities: vec!["text".to_owned()],
                streaming: true,
                skills: vec![GENERATE.to_owned(), CLASSIFY.to_owned()],
                ..Capabilities::default()
            },
            tokenizer: Tokenizer { kind: "words".to_owned(), ..Tokenizer::default() },
            runtime: Runtime {
                backend: "scripted".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                quantization: "none".to_owned(),
                location: "device".to_owned(),
                threads: 1,
                slots,
                ..Runtime::default()
            },
            ..ModelContext::default()
        };
        Scripted { context, crash }
    }

    async fn run(&self, job: &Job, mut out: Out) -> Result<Usage, Fault> {
        let bytes = job.prompt_bytes();
        if bytes > self.context.capabilities.context_tokens as usize {
            let message = format!("the prompt has {bytes} bytes, too long for a scripted model");
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)));
        }
        let prompt = job.messages.last().map_or("", |m| m.content.as_str());
        let script = Script::read(prompt, &self.context.identification.name);
        if let Format::Label(labels) = &job.format {
            return self.choose(&script, labels, &mut out).await;
        }
        if job.format != Format::Text {
            let message = "a scripted model cannot be held to JSON";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "schema", message)));
        }
        let most = job.sampling.max_tokens.unwrap_or(OUTPUT_TOKENS_MAX).min(OUTPUT_TOKENS_MAX);
        let mut finish = Finish::Stop;
        let mut text = TextOut::new(job.sampling.stop.clone());
        for n in 0..script.tokens {
            if text.is_stopped() {
                break;
            }
            if n >= most {
                finish = Finish::Length;
                break;
            }
            script.fail(n, &out, self.crash).await?;
            if !script.delay.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(script.delay) => {}
                    () = out.gone() => return Err(Fault::Cancelled),
                }
            }
            send(&mut out, text.push(script.piece(n).as_bytes())).await?;
        }
        send(&mut out, text.finish(false)).await?;
        script.fail(script.tokens, &out, self.crash).await?;
        Ok(Usage {
            finish,
            prompt_tokens: u32::try_from(prompt.split_whitespace().count()).unwrap_or(u32::MAX),
            completion_tokens: out.written(),
            chunks: out.written(),
            ..Usage::one_piece(&self.context.identification.name)
        })
    }

    async fn choose(
        &self,
        script: &Script<'_>,
        labels: &Labels,
        out: &mut Out,
    ) -> Result<Usage, Fault> {
        script.fail(0, out, self.crash).await?;
        let names: Vec<&str> = labels.names().collect();
        let chosen = names.iter().position(|name| script.words.contains(name)).unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let others = (1.0 - script.sure) / (names.len() - 1).max(1) as f32;
        let mut probabilities = vec![others; names.len()];
        probabilities[chosen] = script.sure;
        let scores = names.iter().map(|name| (*name).to_owned()).zip(probabilities).collect();
        let label = names[chosen].to_owned();
        send(out, label.clone()).await?;
        let classification = Some(Classification { label, confidence: script.sure, scores });
        Ok(Usage { classification, ..Usage::one_piece(&self.context.identification.name) })
    }
}

impl Generate for Scripted {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(self.run(job, out))
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }
}

async fn send(out: &mut Out, text: String) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    out.write(text).await.map_err(|_| Fault::Cancelled)
}

struct Script<'p> {
    words: Vec<&'p str>,
    tokens: u32,
    delay: Duration,
    fail: Option<(&'p str, u32)>,
    sure: f32,
}

impl<'p> Script<'p> {
    fn read(prompt: &'p str, name: &str) -> Script<'p> {
        let mut script =
            Script { words: Vec::new(), tokens: 0, delay: Duration::ZERO, fail: None, sure: 1.0 };
        let mut tokens = None;
        for word in prompt.split_whitespace() {
            if let Some(n) = word.strip_prefix("/tokens=") {
                tokens = n.parse().ok();
            } else if let Some(us) = word.strip_prefix("/delay-us=") {
                script.delay = Duration::from_micros(us.parse().unwrap_or(0));
            } else if let Some(how) = mine(word, "/fail", name) {
                let (kind, at) = how.split_once('@').unwrap_or((how, "0"));
                script.fail = Some((kind, at.parse().unwrap_or(0)));
            } else if let Some(sure) = mine(word, "/sure", name) {
                script.sure = sure.parse().unwrap_or(1.0);
            } else if word.starts_with("/fail-") || word.starts_with("/sure-") {
                // for another model
            } else {
                script.words.push(word);
            }
        }
        let words = u32::try_from(script.words.len()).unwrap_or(u32::MAX);
        script.tokens = tokens.unwrap_or(words);
        script
    }

    fn piece(&self, n: u32) -> String {
        match self.words.get(n as usize % self.words.len().max(1)) {
            Some(word) if n == 0 => (*word).to_owned(),
            Some(word) => format!(" {word}"),
            None => format!("{n} "),
        }
    }

    async fn fail(&self, n: u32, out: &Out, crash: Crash) -> Result<(), Fault> {
        let Some((kind, at)) = self.fail else {
            return Ok(());
        };
        if at != n {
            return Ok(());
        }
        match (kind, crash) {
            ("away", _) => Err(Fault::unavailable("as scripted".to_owned())),
            ("crash", Crash::Report) => Err(Fault::Crashed("as scripted".to_owned())),
            ("crash", Crash::Abort) => std::process::abort(),
            ("hang", _) => {
                out.gone().await;
                Err(Fault::Cancelled)
            }
            (_, _) => Err(Fault::ProtocolError("as scripted".to_owned())),
        }
    }
}

/// The value of an option `/KEY=VALUE` for all models, or `/KEY-NAME=VALUE` for this one.
fn mine<'p>(word: &'p str, key: &str, name: &str) -> Option<&'p str> {
    let (target, value) = word.strip_prefix(key)?.split_once('=')?;
    (target.is_empty() || target.strip_prefix('-') == Some(name)).then_some(value)
}
