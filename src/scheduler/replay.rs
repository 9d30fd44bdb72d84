//! Deterministic replay: decides again from the figures of a decision record.

use std::time::Duration;

use super::event::{Answered, Sent, Verdict};
use super::feasibility::{LINE_MAX, OrderedJob, ServiceOrder, find_offloads};
use super::predict::{Load, Rates};
use super::queued::{Classified, QueuedJob, RunningJob, SLOTS_MAX, Tried};
use super::route::mode_allows;
use super::{BackendProfile, Effect, Event, JobSpec, Scheduler, strategy};
use crate::decision::{Decision, Figures, Outcome, Reason, Route, ServerState};
use crate::limits::{HOPS_MAX, WAITING_JOBS_MAX};
use crate::model::context::Locality;
use crate::model::generate::Fault;
use crate::money::{Caps, Limits, Price, Usd};
use crate::pressure::level::DevicePressure;
use crate::request::client::Client;
use crate::request::job::{JobId, Mode, Priority};
use crate::request::refusal::{Code, Refusal};
use crate::request::skill::GENERATE;
use crate::time::Time;

/// Identifiers from here on are those of other jobs.
const FIRST_OTHER: u64 = 1 << 20;
/// Stands for the model name that the job asked for.
const NAMED: &str = "named";
/// Stands for the skills that the job needed.
const SKILL: &str = "skill";

/// Where the job goes and why, decided again.
///
/// # Errors
/// If the record does not say enough.
pub fn explain(decision: &Decision) -> Result<(Route, Reason), String> {
    if !decision.steps.is_empty() {
        return explain_steps(decision);
    }
    explain_one(decision)
}

/// Decides again: each step by its own figures, and then which of them counts.
///
/// # Errors
/// If the record does not say enough, or a step was not decided as it says.
fn explain_steps(decision: &Decision) -> Result<(Route, Reason), String> {
    for (n, step) in decision.steps.iter().enumerate() {
        if !step.decision.steps.is_empty() {
            return Err("invalid record: nested steps".to_owned());
        }
        let again = explain_one(&step.decision)?;
        if again != (step.decision.route, step.decision.reason) {
            let word = again.1.name();
            return Err(format!("step {}: the scheduler says {} ({word})", n + 1, again.0.name()));
        }
    }
    let pattern = decision.strategy.ok_or("the record names no strategy")?;
    let counts = strategy::conclude(pattern, &decision.steps).ok_or("the record has no steps")?;
    Ok((decision.steps[counts.0].decision.route, counts.1))
}

/// Replays the record of a single model.
fn explain_one(decision: &Decision) -> Result<(Route, Reason), String> {
    let is_nowhere = decision.route == Route::None;
    let effects = match (&decision.figures, decision.reason) {
        (_, Reason::Rule) => arrive(JobSpec { ruled: true, ..plain(0) }, &[]),
        (_, Reason::Hops) => arrive(JobSpec { hops: HOPS_MAX + 1, ..plain(0) }, &[]),
        (_, Reason::Draining) => arrive(plain(0), &[Event::Drain]),
        (_, Reason::Cancelled) if is_nowhere => end_by(Event::Gone(JobId(0)), Time(0)),
        (_, Reason::Deadline) if is_nowhere => end_by(Event::Tick, plain(0).due),
        (_, Reason::Budget) if is_nowhere => over_budget(),
        (_, Reason::Queue) if is_nowhere => arrive(plain(0), &full_queue()),
        (Some(figures), _) => replay(decision, figures)?,
        (None, _) => return Err("the record has no figures".to_owned()),
    };
    let settled = effects.into_iter().find_map(|effect| match effect {
        Effect::Settle { job, decision, .. } if job.0 < FIRST_OTHER => {
            Some((decision.route, decision.reason))
        }
        Effect::Settle { .. }
        | Effect::Start { .. }
        | Effect::Stop { .. }
        | Effect::Recall { .. }
        | Effect::Book(_)
        | Effect::Load(_)
        | Effect::Unload(_)
        | Effect::Width { .. }
        | Effect::Drained => None,
    });
    settled.ok_or_else(|| "the replay leaves the job in the queue".to_owned())
}

fn plain(job: u64) -> JobSpec {
    JobSpec {
        job: JobId(job),
        client: Client::known("explain"),
        template: "explain".to_owned(),
        due: Time::default() + Duration::from_secs(3600),
        priority: Priority::Normal,
        mode: Mode::PreferLocal,
        model: None,
        wants_json: false,
        wants_tools: false,
        is_word: false,
        is_buffered: true,
        max_tokens: None,
        skills: Vec::new(),
        margin: 0.0,
        ruled: false,
        bytes: 0,
        input_max: 1,
        hops: 0,
        furthest: Locality::Cloud,
        unfit: None,
    }
}

fn profile(server: &str, locality: Locality) -> BackendProfile {
    BackendProfile {
        model: Some(NAMED.to_owned()),
        preemptive: true,
        max_tokens: 1,
        ..BackendProfile::unknown(server, locality)
    }
}

/// A scheduler with one engine that is down, so that every job waits.
fn all_down() -> Scheduler {
    Scheduler::new(vec![profile("local", Locality::Device)])
}

fn arrive(spec: JobSpec, before: &[Event]) -> Vec<Effect> {
    let mut scheduler = all_down();
    for event in before {
        scheduler.handle_event(event.clone(), Time(0));
    }
    scheduler.handle_event(Event::Arrived(spec), Time(0))
}

/// A job whose only model is over budget.
fn over_budget() -> Vec<Effect> {
    let dear = BackendProfile { price: price(), ..profile("cloud", Locality::Cloud) };
    let mut scheduler = Scheduler { caps: nothing(), ..Scheduler::new(vec![dear]) };
    scheduler.handle_event(Event::Arrived(plain(0)), Time(0))
}

/// A price that exceeds the caps of [`nothing`].
fn price() -> Price {
    Price::of_million(1.0, 1.0).unwrap_or_default()
}

fn nothing() -> Caps {
    let device = Limits { hour: Some(Usd::NONE), ..Limits::default() };
    Caps { device, ..Caps::default() }
}

fn full_queue() -> Vec<Event> {
    let others = FIRST_OTHER..FIRST_OTHER + WAITING_JOBS_MAX as u64;
    others.map(|job| Event::Arrived(plain(job))).collect()
}

fn end_by(event: Event, now: Time) -> Vec<Effect> {
    let mut scheduler = all_down();
    scheduler.handle_event(Event::Arrived(plain(0)), Time(0));
    scheduler.handle_event(event, now)
}

/// Gives a scheduler the same jobs, models and pressure, and then the events of the record.
fn replay(decision: &Decision, figures: &Figures) -> Result<Vec<Effect>, String> {
    if figures.servers.len() > SLOTS_MAX || figures.line.len() > LINE_MAX {
        return Err("the record's figures are inconsistent".to_owned());
    }
    let mut scheduler = restored(decision, figures);
    let mut own = subject(&mut scheduler, decision, figures);
    let last = decision.attempts.last().map(|last| last.outcome);
    let Some(case) = figures.line.get(figures.own) else {
        let refused = scheduler.impossible(&mut own);
        let (refusal, reason) =
            refused.ok_or("the record is inconsistent: a model was available")?;
        scheduler.settle(own, Verdict::Refused(refusal), None, reason);
        return Ok(scheduler.effects);
    };
    let due = own.due();
    if decision.reason == Reason::Confidence
        && !matches!(last, Some(Outcome::Ok | Outcome::Cancelled))
    {
        // no backend was left: the surest classification counts
        scheduler.settle(own, Verdict::Expired, None, Reason::Deadline);
        return Ok(scheduler.effects);
    }
    own.load = Load::fixed(case.work);
    let (job, has_fallback) = (own.job(), own.best.is_some());
    if let Some(reason) = offload(&scheduler, figures) {
        own.offload = Some(reason);
    }
    let _ = scheduler.queue.offer(own);
    scheduler.start(Time(0));
    scheduler.effects.clear();
    let Some(reason) = scheduler.running.get(job).map(|run| run.reason) else {
        return Err("the replay leaves the job in the queue".to_owned());
    };
    let by_the_last = reason == Reason::Confidence && went_to_the_last(decision, figures);
    let unfit = |code| Fault::Rejected(Refusal::new(code, ""));
    if last == Some(Outcome::Forbidden) {
        // it named fallbacks; they could not answer either
        let no_fallback =
            |backend: &mut super::BackendSlot| backend.profile.fallbacks = vec![String::new()];
        scheduler.backends.iter_mut().for_each(no_fallback);
    }
    let end = |outcome| Event::Ended { job, outcome };
    let event = match (last, decision.reason) {
        // after it, every other backend was over budget
        (Some(last), Reason::Budget) if reason != Reason::Budget => {
            scheduler.backends.iter_mut().for_each(|backend| backend.profile.price = price());
            let unavailable = Fault::unavailable(String::new());
            let fault = refusal(last).map_or(unavailable, unfit);
            end(Err((fault, Sent::Nothing)))
        }
        (_, Reason::Cancelled) => Event::Gone(job),
        // its deadline passed; an unsure classification would have been the answer
        (Some(Outcome::Cancelled), Reason::Deadline) if !has_fallback => {
            return Ok(scheduler.handle_event(Event::Tick, due));
        }
        (Some(Outcome::Cancelled), Reason::Confidence) if !by_the_last => {
            return Ok(scheduler.handle_event(Event::Tick, due));
        }
        (Some(Outcome::Cancelled), _) => end(Err((Fault::Cancelled, Sent::Some))),
        // a backend that can't do it gives the reason why none could; an invalid request keeps its route
        (
            Some(last @ (Outcome::Rejected | Outcome::Forbidden)),
            Reason::Context | Reason::Policy,
        ) if reason != decision.reason => {
            let code = refusal(last).unwrap_or(Code::Incapable);
            end(Err((unfit(code), Sent::Nothing)))
        }
        (Some(Outcome::Forbidden), _) => {
            scheduler.backends.iter_mut().for_each(|backend| backend.profile.fallbacks.clear());
            end(Err((unfit(Code::Forbidden), Sent::Nothing)))
        }
        (Some(Outcome::Rejected), _) => end(Err((unfit(Code::Invalid), Sent::Nothing))),
        (Some(Outcome::Ok | Outcome::Unsure) | None, _) => end(Ok(Answered::default())),
        (Some(_), _) => end(Err((Fault::unavailable(String::new()), Sent::Some))),
    };
    Ok(scheduler.handle_event(event, Time(0)))
}

/// The code of the refusal by which a model was found unfit.
fn refusal(outcome: Outcome) -> Option<Code> {
    match outcome {
        Outcome::Rejected => Some(Code::Incapable),
        Outcome::Forbidden => Some(Code::Forbidden),
        Outcome::Ok
        | Outcome::Unsure
        | Outcome::Recalled
        | Outcome::Cancelled
        | Outcome::Unavailable
        | Outcome::Crashed
        | Outcome::TimedOut
        | Outcome::ProtocolError => None,
    }
}

/// Whether the record's route is that of the last attempt.
fn went_to_the_last(decision: &Decision, figures: &Figures) -> bool {
    let last = decision.attempts.last();
    let state = last.and_then(|last| figures.servers.iter().find(|s| s.server == last.server));
    state.is_some_and(|state| Route::from(state.locality) == decision.route)
}

/// A scheduler with the same models under the same device pressure.
fn restored(decision: &Decision, figures: &Figures) -> Scheduler {
    let chosen = decision.attempts.last().map(|last| last.server.as_str());
    let is_refused = figures.line.get(figures.own).is_none();
    let is_tried = |state: &&ServerState| {
        is_refused && decision.attempts.iter().any(|attempt| attempt.server == state.server)
    };
    let profiles = figures.servers.iter().map(|state| {
        // what an attempt showed is no lack of the profile
        let known = ServerState { lacks: None, ..state.clone() };
        profile_of(if is_tried(&state) { &known } else { state }, figures)
    });
    let profiles = profiles.collect();
    let mut scheduler = Scheduler { caps: nothing(), ..Scheduler::new(profiles) };
    scheduler.device_pressure = DevicePressure {
        #[expect(clippy::cast_possible_truncation, reason = "it was one when it was written")]
        duty: figures.duty as f32,
        stage: figures.stage,
        cause: figures.cause,
        ..DevicePressure::default()
    };
    for (backend, state) in scheduler.backends.iter_mut().zip(&figures.servers) {
        let is_chosen = Some(state.server.as_str()) == chosen;
        let is_away = state.locality != Locality::Device;
        let rests = matches!(state.lacks, Some(Reason::Unhealthy | Reason::Memory));
        let useless = is_away && figures.away.is_none();
        backend.retired = state.removed;
        backend.up = is_chosen || !(rests || useless);
        backend.unloaded = !is_chosen && state.lacks == Some(Reason::Memory);
        if let (Some(time), true) = (figures.away, is_away) {
            backend.rates = Rates::answering_in(&backend.profile, time);
        }
    }
    for at in (0..figures.servers.len()).filter(|at| figures.servers[*at].full) {
        let entry = scheduler.entry(plain(FIRST_OTHER + at as u64));
        scheduler.running.add(RunningJob::started(entry, at, Reason::Feasible, Time(0)));
    }
    scheduler.refresh_health(Time(0));
    scheduler
}

/// The profile of a model that lacks what the record states.
fn profile_of(state: &ServerState, figures: &Figures) -> BackendProfile {
    let base = profile(&state.server, state.locality);
    let is_engine = state.locality == Locality::Device;
    BackendProfile {
        model: (state.lacks != Some(Reason::Model)).then_some(base.model).flatten(),
        slots: match (is_engine, state.full) {
            (true, _) => figures.parallel.max(1),
            (false, true) => 1,
            (false, false) => u32::MAX,
        },
        preemptive: is_engine && figures.parallel <= 1,
        context_tokens: if state.lacks == Some(Reason::Context) { 0 } else { u32::MAX },
        json_schema: state.lacks != Some(Reason::Schema),
        tools: state.lacks != Some(Reason::Tools),
        price: if state.lacks == Some(Reason::Budget) { price() } else { Price::default() },
        skills: Some(match state.lacks {
            Some(Reason::Skill) => vec![GENERATE.to_owned()],
            Some(_) | None => vec![GENERATE.to_owned(), SKILL.to_owned()],
        }),
        ..base
    }
}

/// The job of the record, as it was before its last attempt.
fn subject(scheduler: &mut Scheduler, decision: &Decision, figures: &Figures) -> QueuedJob {
    let listed = || figures.servers.iter().filter(|state| !state.removed);
    let lacked = |reason| listed().any(|state| state.lacks == Some(reason));
    let is_refused = figures.line.get(figures.own).is_none();
    let no_name = listed().next().is_none() && decision.reason == Reason::Model;
    let left = figures.line.get(figures.own).map_or(3.6e6, |case| case.left);
    let unfit = lacked(Reason::Redaction).then(|| Refusal::new(Code::Incapable, String::new()));
    let spec = JobSpec {
        due: after(left),
        mode: figures.mode,
        priority: figures.priority,
        is_buffered: !figures.streamed,
        model: (lacked(Reason::Model) || no_name).then(|| NAMED.to_owned()),
        wants_json: lacked(Reason::Schema),
        wants_tools: lacked(Reason::Tools),
        skills: if lacked(Reason::Skill) { vec![SKILL.to_owned()] } else { Vec::new() },
        bytes: if lacked(Reason::Context) { 64 } else { 0 },
        hops: u8::from(lacked(Reason::Hops)),
        furthest: furthest_of(figures),
        unfit,
        ..plain(figures.own as u64)
    };
    let mut own = scheduler.entry(spec);
    own.able = super::route::able(&own.spec, &scheduler.backends).unwrap_or_default();
    if decision.reason == Reason::Queue {
        own.offload = Some(Reason::Queue);
    }
    let policy = |(_, state): &(usize, &ServerState)| state.lacks == Some(Reason::Policy);
    own.closed = figures.servers.iter().enumerate().filter(policy).map(|(at, _)| at).collect();
    // a refused job waited after its last attempt
    let last = decision.attempts.last().filter(|_| !is_refused);
    let before = decision.attempts.len() - usize::from(last.is_some());
    let chosen = last.map_or("", |last| last.server.as_str());
    for (n, attempt) in decision.attempts.iter().enumerate() {
        let at = figures.servers.iter().position(|state| state.server == attempt.server);
        let Some(at) = at else { continue };
        let is_last = n >= before;
        let lacks = match attempt.outcome {
            Outcome::Unsure => {
                let Some(confidence) = attempt.confidence else { continue };
                let (backend, locality) = scheduler.named(at);
                if own.best.as_ref().is_none_or(|best| best.confidence < confidence) {
                    own.best = Some(Classified { backend, locality, confidence });
                }
                Some(Reason::Confidence)
            }
            Outcome::Rejected if !is_last => Some(Reason::Context),
            Outcome::Forbidden if !is_last => Some(Reason::Policy),
            // one that was asked again in the end was no worse than the others
            Outcome::Unavailable
            | Outcome::Crashed
            | Outcome::TimedOut
            | Outcome::ProtocolError
                if attempt.server != chosen =>
            {
                None
            }
            Outcome::Ok
            | Outcome::Rejected
            | Outcome::Forbidden
            | Outcome::Recalled
            | Outcome::Cancelled
            | Outcome::Unavailable
            | Outcome::Crashed
            | Outcome::TimedOut
            | Outcome::ProtocolError => continue,
        };
        let ((server, locality), slot) = (scheduler.named(at), Some(at));
        let tried = Tried { server, locality, slot, lacks, fallbacks: Vec::new() };
        let _ = own.tried.push(tried);
    }
    own.attempts = decision.attempts[..before].to_vec();
    // if no backend is left, the record states the reason
    let _ = scheduler.afford(&mut own);
    scheduler.pick_engine(&mut own);
    own
}

/// The furthest locality to which the job was allowed to go: nearer than each model that its mode alone
/// would not forbid.
fn furthest_of(figures: &Figures) -> Locality {
    let beyond = |state: &&ServerState| {
        let is_forbidden = state.lacks == Some(Reason::Mode) && !state.removed;
        is_forbidden && mode_allows(figures.mode, state.locality)
    };
    let is_within = |locality: &Locality| {
        figures.servers.iter().filter(beyond).all(|state| *locality < state.locality)
    };
    Locality::ALL.into_iter().filter(is_within).max().unwrap_or(Locality::Device)
}

/// Whether the job is offloaded, given the service order of the record.
fn offload(scheduler: &Scheduler, figures: &Figures) -> Option<Reason> {
    let speed = scheduler.speed();
    let parallel = f64::from(figures.parallel.max(1));
    let mut line = ServiceOrder::new();
    if figures.ahead.worst > 0.0 {
        let own = figures.ahead.map(|ms| ms / speed);
        let _ = line.push(OrderedJob {
            own,
            delay: own.map(|ms| ms / parallel),
            left: f64::INFINITY,
            group: 0,
            offload_deadline: None,
        });
    }
    let own = line.len() + figures.own;
    for case in &figures.line {
        let work = case.work.map(|ms| ms / speed);
        // the first group of all is that of what goes before
        let group = case.group.saturating_add(1);
        let _ = line.push(OrderedJob {
            own: work,
            delay: case
                .delay
                .map_or(work.map(|ms| ms / parallel), |delay| delay.map(|ms| ms / speed)),
            left: case.left,
            group,
            offload_deadline: case.offload_deadline,
        });
    }
    let (to_offload, _) = find_offloads(&line);
    let mut left: heapless::Vec<usize, LINE_MAX> = heapless::Vec::new();
    for (candidate, level) in to_offload {
        if candidate.item == own {
            return Some(scheduler.reason(&line, candidate.late, level, &left));
        }
        let _ = left.push(candidate.item);
    }
    None
}

fn after(ms: f64) -> Time {
    Time::default() + Duration::from_secs_f64((ms / 1e3).clamp(0.0, 1e9))
}
