//! When a job stays, when it leaves, who goes first: what the judge says to small stories.

use std::time::Duration;

use pilotlight::model::context::Locality;
use pilotlight::model::generate::Fault;
use pilotlight::pressure::level::{DevicePressure, PressureCause, PressureStage};
use pilotlight::request::client::Client;
use pilotlight::request::job::{JobId, Mode, Priority};
use pilotlight::scheduler::decision::Reason;
use pilotlight::scheduler::{
    Answered, BackendId, BackendProfile, Effect, Event, JobSpec, Scheduler, Sent, TokenTimes,
    Verdict,
};
use pilotlight::time::Time;

const LOCAL: &str = "local";
const PEER: &str = "peer";
const CLOUD: &str = "cloud";

fn at(ms: u64) -> Time {
    Time(ms * 1000)
}

/// An engine that reads a token in 1 ms and writes one in 10 ms, and a cloud.
fn scheduler_with(slots: u32) -> Scheduler {
    let local = BackendProfile {
        slots,
        preemptive: slots > 1,
        read_ms: Some(1.0),
        write_ms: Some(10.0),
        max_tokens: 64,
        ..BackendProfile::unknown("local", Locality::Device)
    };
    let cloud = BackendProfile {
        slots: 8,
        max_tokens: 64,
        ..BackendProfile::unknown("cloud", Locality::Cloud)
    };
    let mut scheduler = Scheduler::new(vec![local.clone(), cloud.clone()]);
    scheduler.handle_event(Event::Up(local), at(0));
    scheduler.handle_event(Event::Up(cloud), at(0));
    scheduler
}

/// A job of so many tokens, wanted after so many milliseconds from `now`.
fn spec(job: u64, tokens: u32, now: u64, within: u64) -> JobSpec {
    JobSpec {
        job: JobId(job),
        client: Client::known("app"),
        template: "task".into(),
        due: at(now + within),
        priority: Priority::Normal,
        mode: Mode::PreferLocal,
        model: None,
        wants_json: false,
        wants_tools: false,
        is_word: false,
        is_buffered: true,
        max_tokens: Some(tokens),
        skills: Vec::new(),
        margin: 0.0,
        ruled: false,
        bytes: 36,
        input_max: 36,
        hops: 0,
        furthest: Locality::Cloud,
        unfit: None,
    }
}

fn started(effects: &[Effect]) -> Vec<(u64, &'static str)> {
    let name = |backend: &BackendId| {
        [LOCAL, PEER, CLOUD].into_iter().find(|name| *name == backend.as_str()).unwrap()
    };
    let start = |effect: &Effect| match effect {
        Effect::Start { job, backend, .. } => Some((job.0, name(backend))),
        _ => None,
    };
    effects.iter().filter_map(start).collect()
}

fn recalled(effects: &[Effect]) -> Vec<u64> {
    let recall = |effect: &Effect| match effect {
        Effect::Recall { job } => Some(job.0),
        _ => None,
    };
    effects.iter().filter_map(recall).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "it is the outcome of an attempt")]
fn answer(tokens: u32) -> Result<Answered, (Fault, Sent)> {
    let spent = TokenTimes {
        prompt_tokens: 25,
        completion_tokens: tokens,
        prefill_ms: 25.0,
        decode_ms: f64::from(tokens) * 10.0,
        ..TokenTimes::default()
    };
    Ok(Answered { spent: Some(spent), ..Answered::default() })
}

/// Lets it learn that an answer of "task" has 20 tokens, give or take two.
fn taught(scheduler: &mut Scheduler) -> u64 {
    let mut now = 0;
    for n in 0..20 {
        scheduler.handle_event(Event::Arrived(spec(9000 + n, 100, now, 60_000)), at(now));
        now += 225;
        let tokens = 18 + u32::try_from(n % 5).unwrap();
        scheduler
            .handle_event(Event::Ended { job: JobId(9000 + n), outcome: answer(tokens) }, at(now));
    }
    now
}

fn reason_of(effects: &[Effect], job: u64) -> (Verdict, Reason) {
    let settle = effects.iter().find_map(|effect| match effect {
        Effect::Settle { job: JobId(id), verdict, decision, .. } if *id == job => {
            Some((verdict.clone(), decision.reason))
        }
        _ => None,
    });
    settle.unwrap_or_else(|| panic!("{job} was not settled: {effects:?}"))
}

fn cloud_answers(scheduler: &mut Scheduler, job: u64, now: u64) -> Reason {
    let effects =
        scheduler.handle_event(Event::Ended { job: JobId(job), outcome: answer(20) }, at(now));
    reason_of(&effects, job).1
}

#[test]
fn who_is_in_time_at_the_worst_waits() {
    let mut scheduler = scheduler_with(1);
    let now = taught(&mut scheduler);
    // five jobs of 64 tokens: at the worst less than 6 s in all
    let mut effects = Vec::new();
    for job in 0..5 {
        effects.extend(scheduler.handle_event(Event::Arrived(spec(job, 64, now, 20_000)), at(now)));
    }
    assert_eq!(started(&effects), [(0, LOCAL)]);
    assert_eq!(scheduler.load(), (4, 1));
}

#[test]
fn who_is_hopelessly_late_leaves_at_once() {
    let mut scheduler = scheduler_with(1);
    let now = taught(&mut scheduler);
    scheduler.handle_event(Event::Arrived(spec(1, 500, now, 60_000)), at(now));
    // some 225 ms each: the eighth of those can't be in time within 1.5 s
    let mut left = Vec::new();
    for job in 2..12 {
        let effects = scheduler.handle_event(Event::Arrived(spec(job, 100, now, 1_500)), at(now));
        left.extend(started(&effects));
    }
    assert!(left.len() >= 3 && left.iter().all(|(_, to)| *to == CLOUD), "{left:?}");
    assert_eq!(cloud_answers(&mut scheduler, left[0].0, now + 300), Reason::Deadline);
}

#[test]
fn who_has_to_leave_does_not_wait_for_a_full_neighbour() {
    let local = BackendProfile {
        read_ms: Some(1.0),
        write_ms: Some(10.0),
        ..BackendProfile::unknown("local", Locality::Device)
    };
    let peer = BackendProfile { slots: 1, ..BackendProfile::unknown("peer", Locality::Peer) };
    let cloud = BackendProfile { slots: 8, ..BackendProfile::unknown("cloud", Locality::Cloud) };
    let cards = [local, peer, cloud];
    let mut scheduler = Scheduler::new(cards.to_vec());
    for profile in cards {
        scheduler.handle_event(Event::Up(profile), at(0));
    }
    let mut effects = Vec::new();
    for job in 1..=3 {
        // the hopeful figure is an eighth of 4,000 tokens, 5 s
        effects.extend(scheduler.handle_event(Event::Arrived(spec(job, 4_000, 0, 4_000)), at(0)));
    }
    let expected = [(1, PEER), (2, CLOUD), (3, CLOUD)];
    assert_eq!(started(&effects), expected);
}

#[test]
fn between_the_two_it_is_decided_at_the_last_moment() {
    let mut scheduler = scheduler_with(1);
    let now = taught(&mut scheduler);
    // in time by all that was seen, late if it were as long as it may be
    let effects = scheduler.handle_event(Event::Arrived(spec(1, 4_000, now, 20_000)), at(now));
    assert_eq!(started(&effects), [(1, LOCAL)]);
    // it goes on and on: when it has been longer than all that were seen, it may go on for ever
    let mut time = now;
    let effects = loop {
        let wake = scheduler.wake_at(at(time)).unwrap();
        time = (wake.0 / 1000).min(time + 500);
        let effects = scheduler.handle_event(Event::Tick, at(time));
        if !effects.is_empty() {
            break effects;
        }
    };
    assert_eq!(recalled(&effects), [1]);
    // three seconds for the cloud, of which nothing is known
    let left = now + 20_000 - time;
    assert!((2_900..=3_100).contains(&left), "{left} ms before its deadline");
    let outcome = Err((Fault::Cancelled, Sent::Nothing));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, at(time));
    assert_eq!(started(&effects), [(1, CLOUD)]);
    assert_eq!(cloud_answers(&mut scheduler, 1, time + 900), Reason::Deadline);
}

#[test]
fn what_is_read_piece_by_piece_is_not_called_back() {
    let mut scheduler = scheduler_with(1);
    let now = taught(&mut scheduler);
    let streamed = JobSpec { is_buffered: false, ..spec(1, 4_000, now, 20_000) };
    scheduler.handle_event(Event::Arrived(streamed), at(now));
    for second in 1..20 {
        let effects = scheduler.handle_event(Event::Tick, at(now + second * 1000));
        assert_eq!(effects, [], "after {second} s");
    }
    // one that would most likely be late does not begin here
    let effects = scheduler.handle_event(Event::Tick, at(now + 20_000));
    assert_eq!(reason_of(&effects, 1).0, Verdict::Expired);
    let hopeless =
        JobSpec { is_buffered: false, template: "other".into(), ..spec(2, 4_000, now, 24_000) };
    let effects = scheduler.handle_event(Event::Arrived(hopeless), at(now + 20_000));
    assert_eq!(started(&effects), [(2, CLOUD)]);
}

#[test]
fn heat_and_memory_send_away_who_would_be_late_for_them() {
    for (cause, stage, duty, reason) in [
        (PressureCause::Heat, PressureStage::Paced, 0.05, Reason::Hot),
        (PressureCause::Heat, PressureStage::Closed, 0.05, Reason::Hot),
        (PressureCause::Memory, PressureStage::Closed, 1.0, Reason::Memory),
        (PressureCause::Disk, PressureStage::Closed, 1.0, Reason::Disk),
    ] {
        let mut scheduler = scheduler_with(1);
        let now = taught(&mut scheduler);
        let device_pressure = DevicePressure { duty, stage, cause, ..DevicePressure::default() };
        scheduler.handle_event(Event::Strained(device_pressure), at(now));
        // a quarter of a second's work with three seconds for it
        let effects = scheduler.handle_event(Event::Arrived(spec(1, 100, now, 3_500)), at(now));
        assert_eq!(started(&effects), [(1, CLOUD)], "{cause:?} {stage:?}");
        assert_eq!(cloud_answers(&mut scheduler, 1, now + 500), reason);
        // with an hour's time heat is no reason to leave; who must stay is served in any case
        let patient = spec(2, 100, now, 3_000_000);
        let effects = scheduler.handle_event(Event::Arrived(patient), at(now));
        let to = if stage == PressureStage::Paced { LOCAL } else { CLOUD };
        assert_eq!(started(&effects), [(2, to)], "{cause:?} {stage:?}");
        scheduler.handle_event(Event::Ended { job: JobId(2), outcome: answer(20) }, at(now + 1));
        let private = JobSpec { mode: Mode::LocalOnly, ..spec(3, 100, now, 3_500) };
        let effects = scheduler.handle_event(Event::Arrived(private), at(now + 1));
        assert_eq!(started(&effects), [(3, LOCAL)], "{cause:?} {stage:?}");
    }
}

#[test]
fn batch_jobs_wait_while_the_device_sheds() {
    let mut scheduler = scheduler_with(1);
    let shed = DevicePressure {
        stage: PressureStage::Shed,
        cause: PressureCause::Memory,
        ..DevicePressure::default()
    };
    scheduler.handle_event(Event::Strained(shed), at(0));
    let batch =
        JobSpec { priority: Priority::Batch, mode: Mode::LocalOnly, ..spec(1, 20, 0, 60_000) };
    assert_eq!(scheduler.handle_event(Event::Arrived(batch), at(0)), []);
    let effects = scheduler.handle_event(Event::Arrived(spec(2, 20, 0, 60_000)), at(1));
    assert_eq!(started(&effects), [(2, LOCAL)]);
    scheduler.handle_event(Event::Ended { job: JobId(2), outcome: answer(20) }, at(300));
    let effects = scheduler.handle_event(Event::Strained(DevicePressure::default()), at(400));
    assert_eq!(started(&effects), [(1, LOCAL)]);
}

#[test]
fn an_idle_engine_is_ended_for_want_of_memory_and_started_again() {
    let mut scheduler = scheduler_with(1);
    let short = DevicePressure {
        stage: PressureStage::Unload,
        cause: PressureCause::Memory,
        ..DevicePressure::default()
    };
    scheduler.handle_event(Event::Arrived(spec(1, 20, 0, 60_000)), at(0));
    let effects = scheduler.handle_event(Event::Strained(short), at(1));
    assert!(!effects.contains(&Effect::Unload(LOCAL.into())), "it has something to do");
    scheduler.handle_event(Event::Ended { job: JobId(1), outcome: answer(20) }, at(300));
    assert_eq!(
        scheduler.handle_event(Event::Strained(short), at(301)),
        [Effect::Unload(LOCAL.into())]
    );
    assert_eq!(scheduler.handle_event(Event::Strained(short), at(302)), []);
    let effects = scheduler.handle_event(Event::Arrived(spec(2, 20, 400, 60_000)), at(400));
    assert_eq!(started(&effects), [(2, CLOUD)]);
    assert_eq!(cloud_answers(&mut scheduler, 2, 500), Reason::Memory);
    let effects = scheduler.handle_event(Event::Strained(DevicePressure::default()), at(600));
    assert_eq!(effects, [Effect::Load(LOCAL.into())]);
}

#[test]
fn an_application_that_floods_does_not_push_the_others_back() {
    let mut scheduler = scheduler_with(1);
    let private = |job, app: &str, now| JobSpec {
        client: Client::known(app),
        mode: Mode::LocalOnly,
        ..spec(job, 400, now, 600_000)
    };
    // it has had the engine for two minutes, and has fifty more that are due sooner
    let mut now = 0;
    scheduler.handle_event(Event::Arrived(private(0, "quiet", 0)), at(0));
    scheduler.handle_event(Event::Ended { job: JobId(0), outcome: answer(20) }, at(1));
    for job in 1..=30 {
        scheduler.handle_event(Event::Arrived(private(job, "flood", now)), at(now));
        now += 4_000;
        scheduler.handle_event(Event::Ended { job: JobId(job), outcome: answer(400) }, at(now));
    }
    for job in 100..150 {
        scheduler.handle_event(Event::Arrived(private(job, "flood", now - 1000)), at(now));
    }
    scheduler.handle_event(Event::Arrived(private(200, "quiet", now)), at(now));
    let outcome = answer(400);
    let effects =
        scheduler.handle_event(Event::Ended { job: JobId(100), outcome }, at(now + 4_000));
    assert_eq!(started(&effects), [(200, LOCAL)]);
}

#[test]
fn batch_jobs_have_a_tenth_of_a_busy_engine() {
    let mut scheduler = scheduler_with(1);
    let (mut now, mut batches, mut others) = (0, 0_u32, 0_u32);
    let batch = |job, now| JobSpec { priority: Priority::Batch, ..spec(job, 64, now, 3_000_000) };
    let urgent =
        |job, now| JobSpec { priority: Priority::Interactive, ..spec(job, 64, now, 60_000) };
    let mut next = 1;
    let mut running = None;
    // there is always one of each that waits
    for _ in 0..400 {
        for make in [batch, urgent] {
            let effects = scheduler.handle_event(Event::Arrived(make(next, now)), at(now));
            running = started(&effects).first().map(|(job, _)| *job).or(running);
            next += 1;
        }
        now += 250;
        let job = running.take().expect("the engine is never idle");
        if job % 2 == 1 {
            batches += 1;
        } else {
            others += 1;
        }
        let effects =
            scheduler.handle_event(Event::Ended { job: JobId(job), outcome: answer(20) }, at(now));
        running = started(&effects).iter().find(|(_, to)| *to == LOCAL).map(|(job, _)| *job);
        // the queue must not fill up
        for old in next.saturating_sub(40)..next.saturating_sub(20) {
            if Some(old) != running {
                scheduler.handle_event(Event::Gone(JobId(old)), at(now));
            }
        }
    }
    let share = f64::from(batches) / f64::from(batches + others);
    assert!((0.07..0.15).contains(&share), "{batches} of {}", batches + others);
}

#[test]
fn the_more_urgent_goes_first_where_the_engine_can_go_back() {
    let mut scheduler = scheduler_with(2);
    scheduler.handle_event(Event::Arrived(spec(1, 64, 0, 60_000)), at(0));
    // later: no use to have it as well
    assert_eq!(scheduler.handle_event(Event::Arrived(spec(2, 64, 0, 90_000)), at(1)), []);
    let urgent = JobSpec { priority: Priority::Interactive, ..spec(3, 64, 0, 60_000) };
    let effects = scheduler.handle_event(Event::Arrived(urgent), at(2));
    assert_eq!(started(&effects), [(3, LOCAL)]);
}

#[test]
fn the_worst_that_was_promised_is_told() {
    let mut scheduler = scheduler_with(1);
    let now = taught(&mut scheduler);
    scheduler.handle_event(Event::Arrived(spec(1, 100, now, 60_000)), at(now));
    scheduler.handle_event(Event::Arrived(spec(2, 100, now, 60_000)), at(now));
    let effects =
        scheduler.handle_event(Event::Ended { job: JobId(1), outcome: answer(20) }, at(now + 225));
    let Some(Effect::Settle { decision, .. }) = effects.first() else { panic!("{effects:?}") };
    let predicted = decision.predicted_ms.unwrap();
    assert!((200.0..250.0).contains(&predicted.p50), "{predicted:?}");
    let outcome = answer(20);
    let later = at(now) + Duration::from_millis(450);
    let effects = scheduler.handle_event(Event::Ended { job: JobId(2), outcome }, later);
    let Some(Effect::Settle { decision, .. }) = effects.first() else { panic!("{effects:?}") };
    // its own time, and that of the one before it
    let predicted = decision.predicted_ms.unwrap();
    assert!((400.0..500.0).contains(&predicted.p50), "{predicted:?}");
    assert!(predicted.p95 >= predicted.p50);
}
