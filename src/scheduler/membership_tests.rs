//! Changes of the catalog while jobs wait and run.

use super::*;
use crate::limits::SERVERS_MAX;
use crate::model::generate::Fault;
use crate::request::job::{JobId, Mode};
use crate::request::refusal::{Code, Refusal};
use crate::scheduler::tests::{profile, spec};
use crate::scheduler::{Answered, Effect, Event, JobSpec, Sent, TokenTimes};

fn local() -> BackendProfile {
    profile("local", Locality::Device)
}

fn cloud() -> BackendProfile {
    BackendProfile { slots: 8, ..profile("cloud", Locality::Cloud) }
}

/// A scheduler over these backends, all up.
fn over(profiles: &[BackendProfile]) -> Scheduler {
    let mut scheduler = Scheduler::new(profiles.to_vec());
    for profile in profiles {
        scheduler.handle_event(Event::Up(profile.clone()), Time(0));
    }
    scheduler
}

fn arrive(scheduler: &mut Scheduler, spec: JobSpec) -> Option<String> {
    started(&scheduler.handle_event(Event::Arrived(spec), Time(1)))
}

fn started(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Start { backend, .. } => Some(backend.as_str().to_owned()),
        _ => None,
    })
}

fn settled(effects: &[Effect]) -> Option<(&Verdict, Option<&str>, Reason)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Settle { verdict, backend, decision, .. } => {
            Some((verdict, backend.as_ref().map(BackendId::as_str), decision.reason))
        }
        _ => None,
    })
}

fn answer(job: u64) -> Event {
    Event::Ended { job: JobId(job), outcome: Ok(Answered::default()) }
}

fn catalog(profiles: &[BackendProfile]) -> Event {
    Event::Catalog(profiles.to_vec())
}

#[test]
fn a_job_of_a_removed_backend_ends_normally() {
    let mut scheduler = over(&[local(), cloud()]);
    assert_eq!(arrive(&mut scheduler, spec(1)).as_deref(), Some("local"));
    assert_eq!(scheduler.handle_event(catalog(&[cloud()]), Time(2)), []);
    assert_eq!((scheduler.backends.len(), scheduler.load()), (2, (0, 1)));
    // it gets no more jobs, even if it says that it is up
    scheduler.handle_event(Event::Up(local()), Time(3));
    assert_eq!(arrive(&mut scheduler, spec(2)).as_deref(), Some("cloud"));
    let effects = scheduler.handle_event(answer(1), Time(5));
    assert_eq!(settled(&effects), Some((&Verdict::Done, Some("local"), Reason::Feasible)));
    assert_eq!(scheduler.backends.len(), 1, "its slot is free");
    let effects = scheduler.handle_event(answer(2), Time(6));
    assert_eq!(settled(&effects), Some((&Verdict::Done, Some("cloud"), Reason::Feasible)));
}

#[test]
fn waiting_jobs_are_decided_again() {
    let private = |id| JobSpec { mode: Mode::LocalOnly, ..spec(id) };
    let mut scheduler = over(&[local(), cloud()]);
    arrive(&mut scheduler, private(1));
    assert_eq!(arrive(&mut scheduler, private(2)), None);
    assert_eq!(arrive(&mut scheduler, spec(3)), None);
    let effects = scheduler.handle_event(catalog(&[cloud()]), Time(2));
    // one may go to the cloud, the other to no backend that is left
    assert_eq!(started(&effects).as_deref(), Some("cloud"));
    let Some((Verdict::Refused(refusal), None, Reason::Mode)) = settled(&effects) else {
        panic!("{effects:?}")
    };
    assert!(refusal.message.contains("local-only"), "{refusal:?}");
    assert_eq!(scheduler.load(), (0, 2));
}

#[test]
fn an_added_backend_takes_waiting_jobs() {
    let mut scheduler = over(&[local()]);
    arrive(&mut scheduler, spec(1));
    assert_eq!(arrive(&mut scheduler, spec(2)), None);
    let second = profile("second", Locality::Device);
    scheduler.handle_event(catalog(&[local(), second.clone()]), Time(2));
    let effects = scheduler.handle_event(Event::Up(second), Time(3));
    assert_eq!(started(&effects).as_deref(), Some("second"));
}

#[test]
fn the_order_of_the_catalog_is_the_order_of_preference() {
    let (a, b) = (profile("a", Locality::Cloud), profile("b", Locality::Cloud));
    let mut scheduler = over(&[a.clone(), b.clone()]);
    assert_eq!(arrive(&mut scheduler, spec(1)).as_deref(), Some("a"));
    scheduler.handle_event(answer(1), Time(2));
    scheduler.handle_event(catalog(&[b, a]), Time(2));
    assert_eq!(arrive(&mut scheduler, spec(2)).as_deref(), Some("b"));
}

#[test]
fn rates_outlive_a_removal() {
    let measured = BackendProfile { measured: Some("weights".to_owned()), ..local() };
    let mut scheduler = over(std::slice::from_ref(&measured));
    for id in 0..4 {
        arrive(&mut scheduler, spec(id));
        let spent = TokenTimes { completion_tokens: 4, decode_ms: 80.0, ..TokenTimes::default() };
        let outcome = Ok(Answered { spent: Some(spent), ..Answered::default() });
        scheduler.handle_event(Event::Ended { job: JobId(id), outcome }, Time(9));
    }
    let rates = scheduler.backends[0].rates.clone();
    scheduler.handle_event(catalog(&[cloud()]), Time(10));
    assert_eq!(scheduler.backends.len(), 1);
    scheduler.handle_event(catalog(&[local(), cloud()]), Time(11));
    scheduler.handle_event(Event::Up(measured), Time(12));
    assert_eq!(scheduler.backends[0].rates, rates);
}

#[test]
fn a_backend_that_comes_back_while_its_job_runs_keeps_its_state() {
    let mut scheduler = over(&[local(), cloud()]);
    arrive(&mut scheduler, spec(1));
    scheduler.handle_event(catalog(&[cloud()]), Time(2));
    scheduler.handle_event(catalog(&[cloud(), local()]), Time(3));
    assert_eq!(scheduler.backends.len(), 2);
    scheduler.handle_event(Event::Up(local()), Time(4));
    assert_eq!(arrive(&mut scheduler, spec(2)), None, "its one slot is taken");
    let effects = scheduler.handle_event(answer(1), Time(5));
    assert_eq!(started(&effects).as_deref(), Some("local"));
    // at another locality it is another backend
    let moved = profile("local", Locality::Peer);
    scheduler.handle_event(catalog(std::slice::from_ref(&moved)), Time(6));
    assert_eq!(scheduler.backends.len(), 2);
    scheduler.handle_event(Event::Up(moved), Time(7));
    assert_eq!(arrive(&mut scheduler, spec(3)).as_deref(), Some("local"));
    assert_eq!(scheduler.load(), (0, 2));
}

#[test]
fn the_classification_of_a_removed_backend_counts() {
    let job = |id| JobSpec { margin: 0.9, ..spec(id) };
    let unsure = |id, confidence| Event::Ended {
        job: JobId(id),
        outcome: Ok(Answered { confidence: Some(confidence), ..Answered::default() }),
    };
    let mut scheduler = over(&[local(), cloud()]);
    arrive(&mut scheduler, job(1));
    assert!(started(&scheduler.handle_event(unsure(1, 0.5), Time(2))).is_some());
    scheduler.handle_event(catalog(&[cloud()]), Time(3));
    let effects = scheduler.handle_event(unsure(1, 0.4), Time(4));
    assert_eq!(settled(&effects), Some((&Verdict::Done, Some("local"), Reason::Confidence)));
}

#[test]
fn fallbacks_bar_added_backends() {
    let strict = BackendProfile { fallbacks: vec!["cloud".to_owned()], ..local() };
    let busy = BackendProfile { slots: 1, ..cloud() };
    let mut scheduler = over(&[strict.clone(), busy.clone()]);
    arrive(&mut scheduler, JobSpec { mode: Mode::CloudOnly, ..spec(1) });
    arrive(&mut scheduler, spec(2));
    let forbidden = Fault::Rejected(Refusal::new(crate::request::refusal::Code::Forbidden, ""));
    let outcome = Err((forbidden, Sent::Nothing));
    assert_eq!(scheduler.handle_event(Event::Ended { job: JobId(2), outcome }, Time(2)), []);
    let other = profile("other", Locality::Peer);
    scheduler.handle_event(catalog(&[other.clone(), busy.clone()]), Time(3));
    assert_eq!(scheduler.handle_event(Event::Up(other.clone()), Time(4)), []);
    // without the fallback no backend is left
    let effects = scheduler.handle_event(catalog(&[other]), Time(5));
    let Some((Verdict::Refused(_), None, Reason::Policy)) = settled(&effects) else {
        panic!("{effects:?}")
    };
}

#[test]
fn slots_are_bounded() {
    let mut scheduler = Scheduler::new(Vec::new());
    for round in 0..4_u64 {
        let names = (0..SERVERS_MAX as u64).map(|n| format!("{round}-{n}"));
        let profiles: Vec<BackendProfile> =
            names.map(|name| profile(&name, Locality::Cloud)).collect();
        scheduler.handle_event(catalog(&profiles), Time(round));
        for (n, profile) in profiles.into_iter().enumerate() {
            scheduler.handle_event(Event::Up(profile), Time(round));
            let id = round * 1000 + n as u64;
            scheduler.handle_event(Event::Arrived(spec(id)), Time(round));
        }
        assert!(scheduler.backends.len() <= SLOTS_MAX);
    }
}

#[test]
fn jobs_for_a_model_that_cannot_be_started_are_refused_at_once() {
    let mut scheduler = over(&[local(), cloud()]);
    scheduler.handle_event(Event::Down("local".into()), Time(0));
    let private = |job| JobSpec { mode: Mode::LocalOnly, ..spec(job) };
    assert_eq!(scheduler.handle_event(Event::Arrived(private(1)), Time(1)), []);
    let failed = || Event::Failed("local".into(), "no file\n /home/pi/x.gguf".to_owned());
    let refused = |effects: &[Effect]| {
        let (verdict, backend, reason) = settled(effects).unwrap();
        let Verdict::Refused(refusal) = verdict else { panic!("{verdict:?}") };
        assert_eq!((refusal.code, backend, reason), (Code::Unavailable, None, Reason::Unhealthy));
        assert!(
            refusal.message.starts_with("the model local can't be started: no file"),
            "{refusal:?}"
        );
        assert!(
            refusal.message.ends_with("x.gguf") && !refusal.message.contains("pi"),
            "{refusal:?}"
        );
        assert!(!refusal.message.contains('\n') && refusal.retry_after.is_some(), "{refusal:?}");
    };
    // one that waits, and one that comes
    refused(&scheduler.handle_event(failed(), Time(2)));
    refused(&scheduler.handle_event(Event::Arrived(private(2)), Time(3)));
    // what another can do, it does
    let effects = scheduler.handle_event(Event::Arrived(spec(3)), Time(4));
    assert_eq!(started(&effects).as_deref(), Some("cloud"));
    // it is started again, and waited for
    scheduler.handle_event(Event::Down("local".into()), Time(5));
    assert_eq!(scheduler.handle_event(Event::Arrived(private(4)), Time(6)), []);
    scheduler.handle_event(failed(), Time(7));
    let effects = scheduler.handle_event(Event::Up(local()), Time(8));
    assert_eq!(started(&effects), None, "the one that waited was refused");
    let effects = scheduler.handle_event(Event::Arrived(private(5)), Time(9));
    assert_eq!(started(&effects).as_deref(), Some("local"));
}
