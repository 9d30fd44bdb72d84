//! What an event costs the judge when the queue is full.
//!
//! `cargo bench --no-default-features --bench scheduler`

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark ends at the first surprise and reads the clock"
)]

use std::time::{Duration, Instant};

use pilotlight::limits::WAITING_JOBS_MAX;
use pilotlight::model::context::Locality;
use pilotlight::request::client::Client;
use pilotlight::request::job::{JobId, Mode, Priority};
use pilotlight::scheduler::{
    Answered, BackendProfile, Effect, Event, JobSpec, Scheduler, TokenTimes,
};
use pilotlight::time::Time;

const EVENTS: usize = 20_000;
const ROUNDS: usize = 15;

fn profile(locality: Locality, slots: u32) -> BackendProfile {
    BackendProfile {
        slots,
        read_ms: Some(2.0),
        write_ms: Some(20.0),
        max_tokens: 64,
        ..BackendProfile::unknown(locality.name(), locality)
    }
}

fn spec(job: u64, now: Time, random: &mut fastrand::Rng, budget: Duration) -> JobSpec {
    JobSpec {
        job: JobId(job),
        client: Client::known(format!("app-{}", random.u8(0..8))),
        template: format!("task-{}", random.u8(0..8)),
        due: now + budget,
        priority: *random
            .choice(&[Priority::Interactive, Priority::Normal, Priority::Batch])
            .unwrap(),
        mode: Mode::PreferLocal,
        model: None,
        wants_json: false,
        wants_tools: false,
        is_word: false,
        is_buffered: true,
        max_tokens: Some(64),
        skills: vec!["generate".to_owned()],
        margin: 0.0,
        ruled: false,
        bytes: 400,
        input_max: 100,
        hops: 0,
        furthest: Locality::Cloud,
        unfit: None,
    }
}

/// Keeps the queue full: an answer, an arrival and a tick in turn. The median over rounds of the
/// mean time of an event, in microseconds.
fn measure(elsewhere: Option<u32>, budget: Duration) -> f64 {
    let mut means = Vec::new();
    for round in 0..ROUNDS {
        let mut random = fastrand::Rng::with_seed(round as u64);
        let local = profile(Locality::Device, 1);
        let mut cards = vec![local];
        cards.extend(elsewhere.map(|slots| profile(Locality::Cloud, slots)));
        let mut scheduler = Scheduler::new(cards.clone());
        for profile in cards {
            scheduler.handle_event(Event::Up(profile), Time(0));
        }
        let (mut next, mut now) = (0, Time(0));
        let mut running = Vec::new();
        let mut spent = Duration::ZERO;
        let mut count = 0;
        let mut fullest = 0;
        while count < EVENTS {
            now = now + Duration::from_millis(50);
            let wanted = WAITING_JOBS_MAX.saturating_sub(scheduler.load().0).max(1);
            let mut events = vec![Event::Tick];
            for _ in 0..wanted {
                events.push(Event::Arrived(spec(next, now, &mut random, budget)));
                next += 1;
            }
            if count % 4 == 0
                && let Some(job) = running.pop()
            {
                let took = TokenTimes {
                    prompt_tokens: 110,
                    cached_tokens: 30,
                    forced_tokens: 0,
                    completion_tokens: random.u32(5..60),
                    prefill_ms: 160.0,
                    decode_ms: 500.0,
                };
                let answered = Answered { spent: Some(took), ..Answered::default() };
                events.push(Event::Ended { job, outcome: Ok(answered) });
            }
            for event in events {
                fullest = fullest.max(scheduler.load().0);
                let before = Instant::now();
                let effects = scheduler.handle_event(event, now);
                let took = before.elapsed();
                if scheduler.load().0 >= WAITING_JOBS_MAX - 2 {
                    spent += took;
                    count += 1;
                }
                for effect in effects {
                    match effect {
                        Effect::Start { job, .. } => running.push(job),
                        Effect::Settle { job, .. } => running.retain(|other| *other != job),
                        Effect::Stop { .. }
                        | Effect::Recall { .. }
                        | Effect::Unload(_)
                        | Effect::Load(_)
                        | Effect::Book(_)
                        | Effect::Width { .. }
                        | Effect::Drained => {}
                    }
                }
            }
        }
        assert_eq!(fullest, WAITING_JOBS_MAX);
        means.push(spent.as_secs_f64() * 1e6 / count as f64);
    }
    means.sort_by(f64::total_cmp);
    means[means.len() / 2]
}

fn main() {
    println!(
        "mean time of an event at a full queue of {WAITING_JOBS_MAX}, median of {ROUNDS} rounds"
    );
    let hour = Duration::from_secs(3600);
    let minutes = Duration::from_secs(200);
    println!("no other model:                    {:.2} µs", measure(None, hour));
    println!("in time at the worst:              {:.2} µs", measure(Some(64), hour));
    println!("in time, but not at the worst:     {:.2} µs", measure(Some(64), minutes));
    println!("late, and the other model is full: {:.2} µs", measure(Some(1), minutes / 10));
}
