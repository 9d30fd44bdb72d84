//! Strategies that ask several models about one prompt, within its one deadline. Each question is a job
//! of its own for the scheduler, and [`crate::scheduler::strategy`] chooses the answer that counts.

pub(crate) mod judge;

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::clock;
use crate::dispatch::{Answer, Dispatch, JobEnd};
use crate::limits::COMPARED_MAX;
use crate::model::context::{Capabilities, Locality};
use crate::model::generate::Usage;
use crate::model::out::Out;
use crate::request::job::{Job, Message, Mode, Role, Strategy};
use crate::request::refusal::Refusal;
use crate::request::skill::{GENERATE, LOGPROBS};
use crate::request::tools::ToolCall;
use crate::scheduler::decision::{Reason, StrategyStep};
use crate::scheduler::strategy::{conclude, contested, lacks, record};
use crate::scheduler::{Verdict, mode_allows};
use crate::status::BackendStatus;

/// The texts before and behind the draft in the second model's prompt. The request follows as the last
/// part, so that a model that only continues texts answers it too.
const DRAFT: [&str; 2] = [
    "This is a draft of the answer to the request below, which may be wrong:\n",
    "\nKeep what is right in it, correct what is wrong, add what is missing. The request:\n",
];

/// Submits a job; its schemas are compiled first. If its strategy wants several models, they are asked
/// while the answer is read.
///
/// # Errors
/// As [`Dispatch::submit`], and [`Code::Invalid`](crate::request::refusal::Code) for a schema that is not
/// supported.
pub async fn submit(dispatch: &Dispatch, job: Job) -> Result<Answer, Refusal> {
    let job = dispatch.compile_schemas(job).await?;
    if job.strategy == Strategy::Single {
        return dispatch.submit(job);
    }
    Ok(dispatch.answer_of(Box::pin(run(dispatch.clone(), job))))
}

/// [`submit`], with the pieces of a streamed answer going straight to `out`; see
/// [`Dispatch::submit_to`].
///
/// # Errors
/// As [`submit`].
pub async fn submit_to(dispatch: &Dispatch, job: Job, out: Out) -> Result<Answer, Refusal> {
    if job.strategy == Strategy::Single {
        let job = dispatch.compile_schemas(job).await?;
        return dispatch.submit_to(job, out);
    }
    submit(dispatch, job).await
}

/// Runs the job's strategy and returns how it ended.
async fn run(dispatch: Dispatch, job: Job) -> JobEnd {
    let work = StrategyRun { dispatch, arrived: clock::now(), job };
    match work.job.strategy {
        Strategy::Compare => work.compare().await,
        Strategy::Single | Strategy::Cascade | Strategy::Refine => work.in_turn().await,
    }
}

struct StrategyRun {
    dispatch: Dispatch,
    arrived: std::time::Instant,
    job: Job,
}

/// The answer or failure of one model.
pub(crate) struct Part {
    pub(crate) text: String,
    end: JobEnd,
}

impl StrategyRun {
    /// Asks a model on this device, then a remote one, if that is needed and allowed.
    async fn in_turn(&self) -> JobEnd {
        let wants_draft = self.job.strategy == Strategy::Refine && may_leave(self.job.mode);
        let first = if wants_draft { Mode::LocalOnly } else { self.job.mode };
        let mut parts = vec![self.ask(self.step(first), true).await];
        if self.wants_second(&parts[0]) {
            let mut second = self.step(Mode::CloudOnly);
            if self.job.strategy == Strategy::Refine && parts[0].is_answer() {
                show_draft(&mut second.messages, &parts[0].text);
            }
            parts.push(self.ask(second, false).await);
        }
        self.end(parts)
    }

    fn wants_second(&self, first: &Part) -> bool {
        // a remote model has answered already
        let is_local = first.end.locality.is_none_or(|locality| locality == Locality::Device);
        let wants = match self.job.strategy {
            Strategy::Cascade => first.is_answer() && self.lack(first).is_some(),
            Strategy::Refine => true,
            Strategy::Single | Strategy::Compare => false,
        };
        let is_remote = |locality| locality != Locality::Device && self.allows(locality);
        let others = self.dispatch.backends();
        let has_others = others.iter().any(|status| is_remote(status.locality));
        wants && is_local && has_others && may_leave(self.job.mode) && !self.left().is_zero()
    }

    /// The servers to compare. The judge is none of them, unless there would be fewer than two.
    fn contestants(&self) -> Vec<String> {
        let backends = self.dispatch.backends();
        let can = |status: &&BackendStatus| {
            let can = status.context.as_ref().map(|context| &context.capabilities);
            let calls_tools = |can: &Capabilities| can.tools || !self.job.wants_tools();
            self.allows(status.locality)
                && can.is_some_and(|can| can.has(GENERATE) && calls_tools(can))
        };
        let is_judge = |status: &&BackendStatus| {
            let model = status.context.as_ref().map(|context| context.identification.name.as_str());
            let judge = self.job.judge.as_deref();
            judge.is_some() && (judge == Some(&status.server) || judge == model)
        };
        let (judges, others): (Vec<_>, Vec<_>) = backends.iter().filter(can).partition(is_judge);
        let most = if others.len() < 2 { COMPARED_MAX } else { COMPARED_MAX.min(others.len()) };
        let all = others.into_iter().chain(judges);
        all.take(most).map(|status| status.server.clone()).collect()
    }

    /// Asks all contestants at once; two answers that agree stop the others.
    async fn compare(&self) -> JobEnd {
        let names = self.contestants();
        if names.is_empty() || self.job.model.is_some() {
            let part = self.ask(self.step(self.job.mode), false).await;
            return self.end(vec![part]);
        }
        let asked = names.into_iter().map(|name| {
            let step = Job { model: Some(name), ..self.step(self.job.mode) };
            self.dispatch.submit(step)
        });
        let mut parts: Vec<Option<Part>> = Vec::new();
        let mut stops = Vec::new();
        let mut running = FuturesUnordered::new();
        for (at, answer) in asked.enumerate() {
            match answer {
                Ok(answer) => {
                    stops.push(answer.stopper());
                    running.push(async move { (at, read(answer).await) });
                    parts.push(None);
                }
                Err(refusal) => parts.push(Some(Part::refused(refusal))),
            }
        }
        while let Some((at, part)) = running.next().await {
            let same = |other: &Part| {
                part.is_answer() && self.lack(&part).is_none() && other.agrees_with(&part)
            };
            if parts.iter().flatten().any(same) {
                stops.iter().for_each(tokio_util::sync::CancellationToken::cancel);
            }
            parts[at] = Some(part);
        }
        drop(running);
        let parts = parts.into_iter().flatten().collect();
        self.judged(parts).await
    }

    /// Asks the judge, if one is named and the answers differ.
    async fn judged(&self, parts: Vec<Part>) -> JobEnd {
        let steps = self.steps(&parts);
        let contested = contested(&steps);
        let Some(judge) = self.job.judge.as_deref().filter(|_| !contested.is_empty()) else {
            return self.conclude(parts, steps);
        };
        let asked = judge::orders(&contested).map(|order| {
            let job = judge::job(&self.step(self.job.mode), judge, &parts, &order);
            async move {
                let answer = self.ask(job, false).await;
                (judge::preference(&answer, &order), answer)
            }
        });
        let preferences = futures::future::join_all(asked).await;
        let step = |(prefers, answer): (Option<usize>, Part)| StrategyStep {
            answered: answer.is_answer(),
            lacks: None,
            agree: 0,
            judges: true,
            prefers,
            decision: answer.end.decision,
        };
        let steps = steps.into_iter().chain(preferences.into_iter().map(step)).collect();
        self.conclude(parts, steps)
    }

    /// The job of one step: the same prompt for one model, in the time that is left.
    fn step(&self, mode: Mode) -> Job {
        Job {
            mode,
            strategy: Strategy::Single,
            streamed: false,
            time_left: self.left(),
            ..self.job.clone()
        }
    }

    async fn ask(&self, mut step: Job, is_judged: bool) -> Part {
        let has_logprobs = |status: &BackendStatus| {
            let context = status.context.as_ref();
            status.locality == Locality::Device
                && context.is_some_and(|c| c.capabilities.has(LOGPROBS))
        };
        // log-probabilities are requested only if a model on this device has them
        if is_judged
            && self.job.threshold.is_some()
            && self.dispatch.backends().iter().any(has_logprobs)
        {
            step.sampling.logprobs = step.sampling.logprobs.or(Some(0));
        }
        match self.dispatch.submit(step) {
            Ok(answer) => read(answer).await,
            Err(refusal) => Part::refused(refusal),
        }
    }

    /// Whether a model of this locality may be asked.
    fn allows(&self, locality: Locality) -> bool {
        mode_allows(self.job.mode, locality) && locality <= self.job.furthest
    }

    fn left(&self) -> Duration {
        self.job.time_left.saturating_sub(self.arrived.elapsed())
    }

    fn lack(&self, part: &Part) -> Option<Reason> {
        let usage = part.end.usage.as_ref()?;
        let is_local = part.end.locality == Some(Locality::Device);
        let threshold = self.job.threshold.filter(|_| is_local);
        lacks(&self.job.format, &part.text, usage, threshold)
    }

    fn end(&self, parts: Vec<Part>) -> JobEnd {
        let steps = self.steps(&parts);
        self.conclude(parts, steps)
    }

    fn steps(&self, parts: &[Part]) -> Vec<StrategyStep> {
        let agree = |part: &Part| parts.iter().filter(|other| other.agrees_with(part)).count();
        let step = |part: &Part| StrategyStep {
            answered: part.is_answer(),
            lacks: self.lack(part),
            agree: u32::try_from(agree(part)).unwrap_or(u32::MAX),
            judges: false,
            prefers: None,
            decision: part.end.decision.clone(),
        };
        parts.iter().map(step).collect()
    }

    /// The end of the answer that counts, with the decision records of all steps.
    fn conclude(&self, mut parts: Vec<Part>, steps: Vec<StrategyStep>) -> JobEnd {
        let Some(counts) = conclude(self.job.strategy, &steps) else {
            return parts.swap_remove(0).end;
        };
        let first = parts[0].end.queued;
        let Part { text, end } = parts.swap_remove(counts.0);
        let usage = end.usage.map(|usage| match self.job.sampling.logprobs {
            Some(_) => usage,
            None => Usage { logprobs: Vec::new(), ..usage },
        });
        JobEnd {
            buffered: Some(text).filter(|text| !text.is_empty()),
            decision: record(self.job.strategy, steps, counts),
            usage,
            queued: first,
            total: self.arrived.elapsed(),
            ..end
        }
    }
}

impl Part {
    /// A model that was not asked because the queue was full.
    fn refused(refusal: Refusal) -> Part {
        Part { text: String::new(), end: JobEnd::refused(refusal, Reason::Queue) }
    }

    pub(crate) fn is_answer(&self) -> bool {
        self.end.verdict == Verdict::Done
    }

    fn calls(&self) -> &[ToolCall] {
        self.end.usage.as_ref().map_or(&[], |usage| &usage.tool_calls)
    }

    /// The answer as one text: what it says, and the tools that it calls.
    pub(crate) fn whole(&self) -> String {
        let calls = self.calls().iter().map(|call| format!("{} {}", call.name, call.text()));
        std::iter::once(self.text.clone()).chain(calls).collect::<Vec<_>>().join("\n")
    }

    /// Whether both answers agree, ignoring white space, case and the order of JSON keys, and call the same
    /// tools.
    fn agrees_with(&self, other: &Part) -> bool {
        let (one, two) = (self.text.to_lowercase(), other.text.to_lowercase());
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        let is_same = match (value(&one), value(&two)) {
            (Some(one), Some(two)) => one == two,
            (_, _) => one.split_whitespace().eq(two.split_whitespace()),
        };
        let calls = self.calls().iter().zip(other.calls());
        let calls_same = self.calls().len() == other.calls().len()
            && calls.into_iter().all(|(a, b)| a.name == b.name && a.arguments == b.arguments);
        self.is_answer() && other.is_answer() && is_same && calls_same
    }
}

/// Inserts a draft before the text of the last user message.
fn show_draft(messages: &mut [Message], draft: &str) {
    if let Some(last) = messages.iter_mut().rfind(|message| message.role == Role::User) {
        let [before, behind] = DRAFT;
        last.content = format!("{before}{draft}{behind}{}", last.content);
    }
}

fn may_leave(mode: Mode) -> bool {
    mode != Mode::LocalOnly
}

async fn read(answer: Answer) -> Part {
    let (text, end) = answer.collect().await;
    Part { text, end }
}
