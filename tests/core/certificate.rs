//! While the worst case is in time nobody leaves: seeded days against the world's own certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use pilotlight::model::batch::BatchRates;
use pilotlight::model::context::Locality;
use pilotlight::model::generate::Fault;
use pilotlight::request::client::Client;
use pilotlight::request::job::{JobId, Mode, Priority};
use pilotlight::scheduler::{Answered, BackendProfile, Effect, Event, JobSpec, Scheduler, Sent};
use pilotlight::time::Time;

/// What the world knows of a job that is to be answered here if it can.
#[derive(Debug, Clone, Copy)]
struct Promise {
    due: Time,
    priority: Priority,
    /// Milliseconds that it takes at the very worst.
    worst: f64,
    runs: bool,
}

/// The world's own certificate, harder to hold than the judge's: whatever runs goes first and has
/// all its work before it.
fn certified(promises: &BTreeMap<JobId, Promise>, now: Time) -> bool {
    let mut order: Vec<&Promise> = promises.values().collect();
    order.sort_by_key(|promise| (!promise.runs, promise.priority, promise.due));
    let mut before = 0.0;
    order.iter().all(|promise| {
        before += promise.worst;
        before <= now.until(promise.due).as_secs_f64() * 1e3
    })
}

#[test]
fn while_the_worst_case_is_in_time_nobody_leaves() {
    let base = BackendProfile {
        preemptive: true,
        read_ms: Some(1.0),
        write_ms: Some(10.0),
        max_tokens: 64,
        ..BackendProfile::unknown("local", Locality::Device)
    };
    let (mut held, mut left) = (0, 0);
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let steps = [(1, 10.0), (2, 12.0), (4, 16.0)];
        let batch = BatchRates::of_steps(&steps[..random.usize(0..=3)]);
        let slots = random.u32(1..4) + batch.width() - 1;
        let local = BackendProfile { slots, batch, ..base.clone() };
        let cloud = BackendProfile {
            server: "cloud".into(),
            locality: Locality::Cloud,
            slots: 64,
            ..base.clone()
        };
        let mut scheduler = Scheduler::new(vec![local.clone(), cloud.clone()]);
        scheduler.handle_event(Event::Up(local), Time(0));
        scheduler.handle_event(Event::Up(cloud), Time(0));
        let mut promises: BTreeMap<JobId, Promise> = BTreeMap::new();
        let mut away = Vec::new();
        let mut now = Time(0);
        for id in 0..80 {
            now = now + Duration::from_millis(random.u64(1..1500));
            let running: Vec<JobId> =
                promises.iter().filter(|(_, p)| p.runs).map(|(job, _)| *job).collect();
            let event = match random.u8(0..3) {
                0 if !running.is_empty() => {
                    let job = *random.choice(&running).unwrap();
                    promises.remove(&job);
                    Event::Ended { job, outcome: Ok(Answered::default()) }
                }
                _ => {
                    let (bytes, tokens) = (random.usize(1..400), random.u32(1..200));
                    let priority = *random
                        .choice(&[Priority::Interactive, Priority::Normal, Priority::Batch])
                        .unwrap();
                    let due = now + Duration::from_millis(random.u64(2_000..40_000));
                    // a token a byte and for the template, twice as slow as measured
                    let worst = (bytes as f64 + 64.0) * 2.0 + f64::from(tokens) * 20.0;
                    let promise = Promise { due, priority, worst, runs: false };
                    promises.insert(JobId(id), promise);
                    Event::Arrived(JobSpec {
                        job: JobId(id),
                        client: Client::known("app"),
                        template: "app".into(),
                        due,
                        priority,
                        mode: Mode::PreferLocal,
                        model: None,
                        wants_json: false,
                        wants_tools: false,
                        is_word: false,
                        is_buffered: random.bool(),
                        max_tokens: Some(tokens),
                        skills: Vec::new(),
                        margin: 0.0,
                        ruled: false,
                        bytes,
                        input_max: 100,
                        hops: 0,
                        furthest: Locality::Cloud,
                        unfit: None,
                    })
                }
            };
            promises.retain(|_, promise| promise.due > now);
            let holds = certified(&promises, now);
            for effect in scheduler.handle_event(event, now) {
                match effect {
                    Effect::Start { job, backend, .. } if backend.as_str() == "local" => {
                        promises.get_mut(&job).unwrap().runs = true;
                    }
                    Effect::Start { job, .. } | Effect::Recall { job } => {
                        assert!(
                            !holds,
                            "seed {seed}: {job:?} left, and all would have been in time"
                        );
                        promises.remove(&job);
                        away.push(job);
                        left += 1;
                    }
                    Effect::Settle { job, .. } => {
                        promises.remove(&job);
                    }
                    _ => {}
                }
            }
            held += u32::from(holds && promises.len() > 1);
            // who was called back says so at once
            for job in std::mem::take(&mut away) {
                let outcome = Err((Fault::Cancelled, Sent::Nothing));
                scheduler.handle_event(Event::Ended { job, outcome }, now);
            }
        }
    }
    assert!(held > 1_000 && left > 1_000, "too easy: {held} held, {left} left");
}
