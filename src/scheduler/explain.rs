//! Decides again from a decision record: the same figures, through the same judge.

use std::time::Duration;

use super::decision::{Decision, Figures, Reason, State};
use super::entry::{Entry, Running};
use super::predict::{Load, Rates, Spread};
use super::{Backend, Card, Effect, Event, Scheduler, Ticket};
use crate::limits::{HOPS_MAX, WAITING_JOBS_MAX};
use crate::model::{GENERATE, Reach};
use crate::prompt::{Class, JobId, Mode};
use crate::strain::Strain;
use crate::time::Time;

/// The job that goes before the others.
const AHEAD: JobId = JobId(u64::MAX);
/// The name that stands for the one that was asked for.
const NAMED: &str = "named";
/// A talent that a card has only if it had what the job needed.
const TALENT: &str = "talent";

/// Where the job goes and why, decided again.
///
/// # Errors
/// If the record does not say enough.
pub fn explain(decision: &Decision) -> Result<(String, Reason), String> {
    let effects = match (&decision.figures, decision.reason) {
        (_, Reason::Rule) => arrive(Ticket { ruled: true, ..plain(0) }, &[]),
        (_, Reason::Hops) => arrive(Ticket { hops: HOPS_MAX + 1, ..plain(0) }, &[]),
        (_, Reason::Draining) => arrive(plain(0), &[Event::Drain]),
        (_, Reason::Cancelled) => end_by(Event::Gone(JobId(0)), Time(0)),
        (_, Reason::Deadline) if decision.route == "none" => end_by(Event::Tick, plain(0).due),
        (_, Reason::Queue) if decision.route == "none" => arrive(plain(0), &crowd()),
        (Some(figures), _) => return decide(decision, figures),
        (None, _) => return Err("the record has no figures".to_owned()),
    };
    let settled = effects.into_iter().find_map(|effect| match effect {
        Effect::Settle { job: JobId(0), decision, .. } => Some((decision.route, decision.reason)),
        Effect::Settle { .. }
        | Effect::Start { .. }
        | Effect::Stop { .. }
        | Effect::Recall { .. }
        | Effect::Load(_)
        | Effect::Unload(_)
        | Effect::Drained => None,
    });
    settled.ok_or_else(|| "the judge did not settle it".to_owned())
}

fn plain(job: u64) -> Ticket {
    Ticket {
        job: JobId(job),
        app: "explain".to_owned(),
        template: "explain".to_owned(),
        due: Time::default() + Duration::from_secs(3600),
        class: Class::Normal,
        mode: Mode::PreferLocal,
        model: None,
        wants_json: false,
        is_word: false,
        is_whole: true,
        max_tokens: None,
        talents: Vec::new(),
        margin: 0.0,
        ruled: false,
        bytes: 0,
        hops: 0,
    }
}

fn card(server: &str, reach: Reach) -> Card {
    Card {
        server: server.to_owned(),
        model: Some(NAMED.to_owned()),
        reach,
        slots: 1,
        urgent_first: true,
        read_ms: None,
        write_ms: None,
        max_tokens: 1,
        context_tokens: u32::MAX,
        json_schema: true,
        talents: None,
    }
}

/// A house with one engine that is away, so that everything waits.
fn away() -> Scheduler {
    Scheduler::new(vec![card("local", Reach::Device)])
}

fn arrive(ticket: Ticket, before: &[Event]) -> Vec<Effect> {
    let mut scheduler = away();
    for event in before {
        scheduler.on(event.clone(), Time(0));
    }
    scheduler.on(Event::Arrived(ticket), Time(0))
}

fn crowd() -> Vec<Event> {
    (1..=WAITING_JOBS_MAX as u64).map(|job| Event::Arrived(plain(job))).collect()
}

fn end_by(event: Event, now: Time) -> Vec<Effect> {
    let mut scheduler = away();
    scheduler.on(Event::Arrived(plain(0)), Time(0));
    scheduler.on(event, now)
}

/// Puts the judge before the same jobs, models and pressure.
fn decide(decision: &Decision, figures: &Figures) -> Result<(String, Reason), String> {
    if figures.servers.len() > crate::limits::SERVERS_MAX || figures.own > figures.line.len() {
        return Err("the record's figures are not possible".to_owned());
    }
    let tried = |server: &str, outcomes: &[&str]| {
        let mut all = decision.attempts.iter();
        all.any(|a| a.server == server && outcomes.contains(&a.outcome.as_str()))
    };
    let chosen = decision.attempts.last().map(|last| last.server.as_str());
    let mut scheduler =
        Scheduler::new(figures.servers.iter().map(|s| card_of(s, figures)).collect());
    scheduler.strain = Strain {
        #[expect(clippy::cast_possible_truncation, reason = "it was one when it was written")]
        duty: figures.duty as f32,
        stage: figures.stage,
        cause: figures.cause,
        ..Strain::default()
    };
    for (backend, state) in scheduler.backends.iter_mut().zip(&figures.servers) {
        let is_chosen = Some(state.server.as_str()) == chosen;
        backend.up = is_chosen || !matches!(state.lacks, Some(Reason::Resting | Reason::Memory));
        backend.unloaded = !is_chosen && state.lacks == Some(Reason::Memory);
        if let (Some(time), true) = (figures.away, state.reach != Reach::Device) {
            backend.rates = Rates::answering_in(&backend.card, time);
        }
    }
    scheduler.take_health(Time(0));
    let mut own = subject(&mut scheduler, figures);
    for (at, state) in figures.servers.iter().enumerate() {
        match state.lacks {
            Some(lack) if tried(&state.server, &["unsure", "unfit"]) => {
                let _ = own.unfit.push((at, lack));
            }
            Some(_) if tried(&state.server, &["away", "crashed", "hung", "broken"]) => {
                own.failed.add(at);
            }
            Some(_) | None => {}
        }
    }
    scheduler.house(&mut own);
    let Some(first) = figures.line.get(figures.own) else {
        return Ok(match super::route::able(&own.ticket, &scheduler.backends) {
            Err((_, reason)) => ("none".to_owned(), reason),
            Ok(_) => (decision.route.clone(), decision.reason),
        });
    };
    own.load = Load::fixed(first.work);
    let home = own.home;
    let job = own.job();
    let mut own = Some(own);
    for (at, case) in figures.line.iter().enumerate() {
        let entry = if at == figures.own { own.take() } else { None };
        let entry = entry.unwrap_or_else(|| other(&mut scheduler, at, case, home));
        let _ = scheduler.queue.offer(entry);
    }
    if figures.ahead.worst > 0.0
        && let Some(home) = home
    {
        go_before(&mut scheduler, home, figures.ahead);
    }
    scheduler.decide(Time(0));
    scheduler.start(Time(0));
    let run = scheduler.running.get(&job).ok_or("the judge lets it wait")?;
    let route = match scheduler.backends[run.backend].card.reach {
        Reach::Device => "local",
        Reach::Peer => "peer",
        Reach::Cloud => "cloud",
    };
    Ok((route.to_owned(), run.reason))
}

/// A model that lacks what it lacked.
fn card_of(state: &State, figures: &Figures) -> Card {
    let base = card(&state.server, state.reach);
    let is_engine = state.reach == Reach::Device;
    Card {
        model: (state.lacks != Some(Reason::Model)).then_some(base.model).flatten(),
        slots: if is_engine { figures.parallel.max(1) } else { u32::MAX },
        urgent_first: is_engine && figures.parallel <= 1,
        context_tokens: if state.lacks == Some(Reason::Context) { 0 } else { u32::MAX },
        json_schema: state.lacks != Some(Reason::Schema),
        talents: Some(match state.lacks {
            Some(Reason::Talent) => vec![GENERATE.to_owned()],
            Some(_) | None => vec![GENERATE.to_owned(), TALENT.to_owned()],
        }),
        ..base
    }
}

/// The job that the record is of.
fn subject(scheduler: &mut Scheduler, figures: &Figures) -> Entry {
    let lacked = |reason| figures.servers.iter().any(|state| state.lacks == Some(reason));
    let left = figures.line.get(figures.own).map_or(3.6e6, |case| case.left);
    let ticket = Ticket {
        due: after(left),
        mode: figures.mode,
        model: lacked(Reason::Model).then(|| NAMED.to_owned()),
        wants_json: lacked(Reason::Schema),
        talents: if lacked(Reason::Talent) { vec![TALENT.to_owned()] } else { Vec::new() },
        bytes: if lacked(Reason::Context) { 64 } else { 0 },
        ..plain(figures.own as u64)
    };
    let mut entry = scheduler.entry(ticket);
    entry.able = super::route::able(&entry.ticket, &scheduler.backends).unwrap_or_default();
    entry
}

/// Another job of its line.
fn other(
    scheduler: &mut Scheduler,
    at: usize,
    case: &super::decision::Case,
    home: Option<usize>,
) -> Entry {
    let mode = if case.may_leave { Mode::PreferLocal } else { Mode::LocalOnly };
    let mut entry = scheduler.entry(Ticket { due: after(case.left), mode, ..plain(at as u64) });
    entry.able = super::route::able(&entry.ticket, &scheduler.backends).unwrap_or_default();
    entry.home = home;
    entry.load = Load::fixed(case.work);
    entry
}

/// The engine works on something that ends after this.
fn go_before(scheduler: &mut Scheduler, engine: usize, work: Spread) {
    let mut entry = scheduler.entry(Ticket { mode: Mode::LocalOnly, ..plain(AHEAD.0) });
    entry.home = Some(engine);
    entry.load = Load::fixed(work);
    let backend: &mut Backend = &mut scheduler.backends[engine];
    backend.running += 1;
    let run = Running {
        entry,
        backend: engine,
        started: Time(0),
        reason: Reason::Feasible,
        served: 0.0,
        recalled: None,
        promoted: true,
    };
    scheduler.running.insert(AHEAD, run);
}

fn after(ms: f64) -> Time {
    Time::default() + Duration::from_secs_f64((ms / 1e3).clamp(0.0, 1e9))
}
