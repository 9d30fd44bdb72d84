//! Remote backends that fail: circuit breaker, concurrency limit and retry budget together.

use std::time::Duration;

use super::tests::{profile, settled, spec, started};
use super::*;
use crate::limits::{REST_MAX, REST_MIN, RETRIES_SAVED_MAX, RETRY_EVERY, WAITING_JOBS_MAX};
use crate::model::generate::Fault;
use crate::request::job::Mode;

/// A provider that fails every time is asked no more than that it can come back, and by one job at
/// a time: 3,000 jobs, one each 10 ms.
#[test]
fn a_failing_provider_gets_few_requests() {
    let cloud = BackendProfile { slots: 8, ..profile("cloud", Locality::Cloud) };
    let mut scheduler = Scheduler::new(vec![cloud.clone()]);
    scheduler.handle_event(Event::Up(cloud), Time(0));
    let mut first = std::collections::BTreeSet::new();
    let (mut retries, mut settled) = (0_u32, 0);
    let mut running: Vec<JobId> = Vec::new();
    let mut has_failed = false;
    for step in 0..3_300 {
        let now = Time(step * 10_000);
        let mut events: Vec<Event> = running
            .drain(..)
            .map(|job| {
                let fault = Fault::unavailable(String::new());
                Event::Ended { job, outcome: Err((fault, Sent::Nothing)) }
            })
            .collect();
        if step < 3_000 {
            let due = now + Duration::from_secs(2);
            events.push(Event::Arrived(JobSpec { mode: Mode::CloudOnly, due, ..spec(step) }));
        }
        events.push(Event::Tick);
        for event in events {
            has_failed |= matches!(event, Event::Ended { .. });
            for effect in scheduler.handle_event(event, now) {
                match effect {
                    Effect::Start { job, .. } => {
                        retries += u32::from(!first.insert(job));
                        running.push(job);
                    }
                    Effect::Settle { .. } => settled += 1,
                    _ => {}
                }
            }
        }
        assert!(running.len() <= if has_failed { 1 } else { 8 }, "{step}: {running:?}");
    }
    assert_eq!(settled, 3_000);
    let most = RETRIES_SAVED_MAX + u32::try_from(first.len()).unwrap() / RETRY_EVERY;
    assert!(retries <= most, "{retries} retries of {} jobs", first.len());
    // it was tried from time to time all the while, and more would have been allowed then
    assert!((5..60).contains(&first.len()), "{}", first.len());
}

/// After it has answered again it gets more at once, step by step.
#[test]
fn a_recovered_provider_gets_more_step_by_step() {
    let cloud = BackendProfile { slots: 8, ..profile("cloud", Locality::Cloud) };
    let mut scheduler = Scheduler::new(vec![cloud.clone()]);
    scheduler.handle_event(Event::Up(cloud), Time(0));
    let mut running: Vec<JobId> = Vec::new();
    let take = |effects: Vec<Effect>, running: &mut Vec<JobId>| {
        running.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Start { job, .. } => Some(*job),
            _ => None,
        }));
    };
    for id in 0..40 {
        let ask = JobSpec { mode: Mode::CloudOnly, ..spec(id) };
        take(scheduler.handle_event(Event::Arrived(ask), Time(0)), &mut running);
    }
    assert_eq!(running.len(), 8);
    let job = running.remove(0);
    let fault = Fault::TimedOut(String::new());
    take(
        scheduler.handle_event(Event::Ended { job, outcome: Err((fault, Sent::Some)) }, Time(1)),
        &mut running,
    );
    assert_eq!(running.len(), 7);
    let rested = Time(1) + REST_MIN;
    let mut seen = Vec::new();
    while let Some(job) = running.pop() {
        let end = Event::Ended { job, outcome: Ok(Answered::default()) };
        take(scheduler.handle_event(end, rested), &mut running);
        seen.push(running.len());
    }
    // those under way end first, then there are 4 at once, and more and more
    assert_eq!(seen[..4], [6, 5, 4, 4], "{seen:?}");
    assert!(seen.contains(&6), "{seen:?}");
}

/// Each job fails once: only a tenth of them, and those saved up, are tried again.
#[test]
fn the_retry_budget_bounds_retries() {
    let cloud = profile("cloud", Locality::Cloud);
    let mut scheduler = Scheduler::new(vec![cloud.clone()]);
    scheduler.handle_event(Event::Up(cloud), Time(0));
    let mut retries = 0;
    for id in 0..100 {
        let now = Time(id * 60_000_000);
        let due = now + Duration::from_secs(50);
        let ask = JobSpec { mode: Mode::CloudOnly, due, ..spec(id) };
        assert_eq!(
            started(&scheduler.handle_event(Event::Arrived(ask), now)),
            Some("cloud"),
            "{id}"
        );
        let (job, fault) = (JobId(id), Fault::unavailable(String::new()));
        scheduler.handle_event(Event::Ended { job, outcome: Err((fault, Sent::Nothing)) }, now);
        if started(&scheduler.handle_event(Event::Tick, now + REST_MAX)).is_some() {
            retries += 1;
            scheduler.handle_event(
                Event::Ended { job, outcome: Ok(Answered::default()) },
                now + REST_MAX,
            );
        }
    }
    assert!((10..=20).contains(&retries), "{retries}");
}

#[test]
fn a_busy_refusal_states_when_the_breaker_reopens() {
    let cloud = profile("cloud", Locality::Cloud);
    let mut scheduler = Scheduler::new(vec![cloud.clone()]);
    scheduler.handle_event(Event::Up(cloud), Time(0));
    let ask = |id| Event::Arrived(JobSpec { mode: Mode::CloudOnly, ..spec(id) });
    scheduler.handle_event(ask(0), Time(0));
    let retry_after = Some(Duration::from_secs(40));
    let fault = Fault::Unavailable { reason: "overloaded".to_owned(), retry_after };
    let outcome = Err((fault, Sent::Some));
    let now = Time(1_000_000);
    scheduler.handle_event(Event::Ended { job: JobId(0), outcome }, now);
    for id in 1..=WAITING_JOBS_MAX as u64 {
        assert_eq!(scheduler.handle_event(ask(id), now), []);
    }
    let later = now + Duration::from_secs(10);
    let effects = scheduler.handle_event(ask(999), later);
    let Some((Verdict::Refused(refusal), _)) = settled(&effects) else { panic!("{effects:?}") };
    assert_eq!((refusal.code, refusal.retry_after), (Code::Busy, Some(Duration::from_secs(30))));
    assert_eq!(scheduler.wake_at(later), Some(now + Duration::from_secs(40)));
}
