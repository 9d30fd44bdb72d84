//! Effects of single events.

use std::time::Duration;

use super::*;
use crate::decision::Outcome;
use crate::limits::{REST_MAX, REST_MIN, WAITING_JOBS_MAX};
use crate::model::generate::Fault;
use crate::request::client::Client;
use crate::request::job::{Job, Mode, Priority};
use crate::request::skill::{CLASSIFY, EMBED, GENERATE};

/// A small job with a minute's time.
pub(super) fn spec(id: u64) -> JobSpec {
    JobSpec {
        job: JobId(id),
        client: Client::known("app"),
        template: "app".to_owned(),
        due: Time(60_000_000),
        priority: Priority::Normal,
        mode: Mode::PreferLocal,
        model: None,
        wants_json: false,
        wants_tools: false,
        is_word: false,
        is_buffered: true,
        max_tokens: Some(16),
        skills: vec![GENERATE.to_owned()],
        margin: 0.0,
        ruled: false,
        bytes: 100,
        input_max: 100,
        hops: 0,
        furthest: Locality::Cloud,
        unfit: None,
    }
}

/// The same as a queued job.
pub(super) fn entry(spec: JobSpec) -> QueuedJob {
    Scheduler::new(Vec::new()).entry(spec)
}

pub(super) fn profile(server: &str, locality: Locality) -> BackendProfile {
    BackendProfile {
        model: Some(format!("{server}-model")),
        read_ms: Some(1.0),
        write_ms: Some(10.0),
        max_tokens: 64,
        context_tokens: 1000,
        ..BackendProfile::unknown(server, locality)
    }
}

/// A local model without schemas and long contexts, a peer, and a cloud that can do both.
fn scheduler_of_three() -> Scheduler {
    let local =
        BackendProfile { json_schema: false, tools: false, ..profile("local", Locality::Device) };
    let cloud =
        BackendProfile { context_tokens: 100_000, slots: 8, ..profile("cloud", Locality::Cloud) };
    let profiles = vec![local, profile("peer", Locality::Peer), cloud];
    let mut scheduler = Scheduler::new(profiles.clone());
    for profile in profiles {
        assert_eq!(scheduler.handle_event(Event::Up(profile), Time(0)), []);
    }
    scheduler
}

pub(super) fn started(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Start { backend, .. } => Some(backend.as_str()),
        _ => None,
    })
}

pub(super) fn settled(effects: &[Effect]) -> Option<(&Verdict, &Decision)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Settle { verdict, decision, .. } => Some((verdict, decision.as_ref())),
        _ => None,
    })
}

#[test]
fn where_a_job_goes() {
    let check = |name: &str, spec: JobSpec, expected: Option<&str>, reason: Reason| {
        let mut scheduler = scheduler_of_three();
        let job = spec.job;
        let effects = scheduler.handle_event(Event::Arrived(spec), Time(0));
        assert_eq!(started(&effects), expected, "{name}: {effects:?}");
        let effects = match expected {
            Some(_) => scheduler
                .handle_event(Event::Ended { job, outcome: Ok(Answered::default()) }, Time(5)),
            None => effects,
        };
        let (_, decision) = settled(&effects).unwrap();
        assert_eq!(decision.reason, reason, "{name}");
    };
    let plain = spec(1);
    let with_mode = |mode| JobSpec { mode, ..spec(1) };
    check("plain", plain.clone(), Some("local"), Reason::Feasible);
    check("local-only", with_mode(Mode::LocalOnly), Some("local"), Reason::Feasible);
    check("prefer-cloud", with_mode(Mode::PreferCloud), Some("cloud"), Reason::Mode);
    check("cloud-only", with_mode(Mode::CloudOnly), Some("cloud"), Reason::Mode);
    let schema = JobSpec { wants_json: true, ..plain.clone() };
    check("schema", schema.clone(), Some("peer"), Reason::Schema);
    let schema_here = JobSpec { mode: Mode::LocalOnly, ..schema };
    check("schema, local-only", schema_here, None, Reason::Schema);
    let tools = JobSpec { wants_tools: true, ..plain.clone() };
    check("tools", tools, Some("peer"), Reason::Tools);
    let long = JobSpec { bytes: 100_000, ..plain.clone() };
    check("long", long.clone(), Some("cloud"), Reason::Context);
    check("long, local-only", JobSpec { mode: Mode::LocalOnly, ..long }, None, Reason::Context);
    let named = |name: &str| JobSpec { model: Some(name.to_owned()), ..spec(1) };
    check("by server", named("peer"), Some("peer"), Reason::Feasible);
    check("by model", named("cloud-model"), Some("cloud"), Reason::Feasible);
    check("unknown name", named("nobody"), None, Reason::Model);
    let private = JobSpec { mode: Mode::LocalOnly, ..named("cloud") };
    check("named and private", private, None, Reason::Mode);
    let passed_on = |spec: JobSpec| JobSpec { hops: 1, ..spec };
    check("a neighbour's", passed_on(plain.clone()), Some("local"), Reason::Feasible);
    let schema = JobSpec { wants_json: true, ..plain.clone() };
    check("a neighbour's, schema", passed_on(schema), Some("cloud"), Reason::Schema);
    check("a neighbour's, for another", passed_on(named("peer")), None, Reason::Hops);
    let unfit = |mode| {
        let refusal = Refusal::new(Code::Incapable, "a pattern");
        JobSpec { unfit: Some(refusal), ..with_mode(mode) }
    };
    check("unredactable", unfit(Mode::PreferLocal), Some("local"), Reason::Feasible);
    check("unredactable, prefer-cloud", unfit(Mode::PreferCloud), Some("local"), Reason::Redaction);
    check("unredactable, cloud-only", unfit(Mode::CloudOnly), None, Reason::Redaction);
    let schema = JobSpec { wants_json: true, ..unfit(Mode::PreferLocal) };
    check("unredactable, schema", schema, None, Reason::Redaction);
    let within = |furthest, mode| JobSpec { furthest, ..with_mode(mode) };
    check("a peer at most", within(Locality::Peer, Mode::CloudOnly), Some("peer"), Reason::Mode);
    check("this device at most", within(Locality::Device, Mode::CloudOnly), None, Reason::Mode);
    check("too many hops", JobSpec { hops: HOPS_MAX + 1, ..plain }, None, Reason::Hops);
}

#[test]
fn a_busy_local_model_is_waited_for() {
    let mut scheduler = scheduler_of_three();
    assert_eq!(started(&scheduler.handle_event(Event::Arrived(spec(1)), Time(0))), Some("local"));
    assert_eq!(scheduler.handle_event(Event::Arrived(spec(2)), Time(1)), []);
    assert_eq!(scheduler.load(), (1, 1));
    let effects = scheduler
        .handle_event(Event::Ended { job: JobId(1), outcome: Ok(Answered::default()) }, Time(2));
    assert_eq!(started(&effects), Some("local"));
}

#[test]
fn a_backend_that_is_down_is_skipped() {
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Down("local".into()), Time(0));
    let effects = scheduler.handle_event(Event::Arrived(spec(1)), Time(0));
    assert_eq!(started(&effects), Some("peer"));
    let effects = scheduler
        .handle_event(Event::Ended { job: JobId(1), outcome: Ok(Answered::default()) }, Time(5));
    assert_eq!(settled(&effects).unwrap().1.reason, Reason::Unhealthy);
}

#[test]
fn a_private_job_waits_for_its_model_to_come_back() {
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Down("local".into()), Time(0));
    let private = JobSpec { mode: Mode::LocalOnly, ..spec(1) };
    assert_eq!(scheduler.handle_event(Event::Arrived(private), Time(0)), []);
    assert_eq!(scheduler.load(), (1, 0));
    let local = BackendProfile { json_schema: false, ..profile("local", Locality::Device) };
    assert_eq!(started(&scheduler.handle_event(Event::Up(local), Time(9))), Some("local"));
}

#[test]
fn after_a_crash_another_answers_unless_something_was_sent() {
    let crash = || Fault::Crashed("gone".to_owned());
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Arrived(spec(1)), Time(0));
    let outcome = Err((crash(), Sent::Nothing));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(5));
    assert_eq!(started(&effects), Some("peer"), "{effects:?}");
    let effects = scheduler
        .handle_event(Event::Ended { job: JobId(1), outcome: Ok(Answered::default()) }, Time(9));
    let (verdict, decision) = settled(&effects).unwrap();
    assert_eq!(*verdict, Verdict::Done);
    let outcomes: Vec<Outcome> = decision.attempts.iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Outcome::Crashed, Outcome::Ok]);

    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Arrived(spec(1)), Time(0));
    let outcome = Err((crash(), Sent::Some));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(5));
    assert_eq!(started(&effects), None);
    assert_eq!(*settled(&effects).unwrap().0, Verdict::Failed(crash()));
}

#[test]
fn the_only_model_is_tried_again_after_a_rest() {
    let mut scheduler = scheduler_of_three();
    let private = JobSpec { mode: Mode::LocalOnly, ..spec(1) };
    scheduler.handle_event(Event::Arrived(private), Time(0));
    let outcome = Err((Fault::TimedOut("silent".to_owned()), Sent::Nothing));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(5));
    assert_eq!(effects, []);
    let wake = scheduler.wake_at(Time(5)).unwrap();
    assert_eq!(wake, Time(5) + REST_MIN);
    assert_eq!(started(&scheduler.handle_event(Event::Tick, wake)), Some("local"));
    assert!(REST_MIN < REST_MAX);
}

#[test]
fn a_prompt_that_is_too_long_goes_on_and_a_bad_schema_does_not() {
    let too_long = Refusal::field(Code::Incapable, "prompt", "2000 tokens");
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Arrived(spec(1)), Time(0));
    let outcome = Err((Fault::Rejected(too_long), Sent::Nothing));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(5));
    assert_eq!(started(&effects), Some("peer"));

    let bad = Refusal::field(Code::Invalid, "schema", "leads nowhere");
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Arrived(spec(1)), Time(0));
    let outcome = Err((Fault::Rejected(bad.clone()), Sent::Nothing));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(5));
    assert_eq!(*settled(&effects).unwrap().0, Verdict::Refused(bad));
}

#[test]
fn full_means_busy_with_a_time_to_come_back() {
    let private = |id| JobSpec { mode: Mode::LocalOnly, ..spec(id) };
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Arrived(spec(0)), Time(0));
    scheduler.handle_event(
        Event::Ended { job: JobId(0), outcome: Ok(Answered::default()) },
        Time(2_000_000),
    );
    let now = Time(2_000_000);
    for id in 1..=WAITING_JOBS_MAX as u64 + 1 {
        assert_eq!(settled(&scheduler.handle_event(Event::Arrived(private(id)), now)), None);
    }
    let effects = scheduler.handle_event(Event::Arrived(private(999)), now);
    let (verdict, decision) = settled(&effects).unwrap();
    let Verdict::Refused(refusal) = verdict else { panic!("{verdict:?}") };
    assert_eq!(refusal.code, Code::Busy);
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(2)));
    assert_eq!(decision.reason, Reason::Queue);
    assert!((decision.pressure.queue - 1.0).abs() < 0.01);
    // a job that may be offloaded is
    let effects = scheduler.handle_event(Event::Arrived(spec(1000)), now);
    assert_eq!(started(&effects), Some("peer"));
    let outcome = Ok(Answered::default());
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1000), outcome }, now);
    assert_eq!(settled(&effects).unwrap().1.reason, Reason::Queue);
    // and another application is not kept out
    let other = JobSpec { client: Client::known("other"), ..private(1001) };
    let effects = scheduler.handle_event(Event::Arrived(other), now);
    let (verdict, _) = settled(&effects).unwrap();
    assert!(matches!(verdict, Verdict::Refused(_)), "{effects:?}");
    assert!(!effects.iter().any(|e| matches!(e, Effect::Settle { job: JobId(1001), .. })));
}

#[test]
fn a_client_above_its_share_makes_way() {
    let engine =
        BackendProfile { preemptive: true, slots: 3, ..profile("local", Locality::Device) };
    let mut scheduler = Scheduler::new(vec![engine.clone()]);
    scheduler.handle_event(Event::Up(engine), Time(0));
    let second = |s: u64| Time(s * 1_000_000);
    let long = |id| JobSpec {
        client: Client::known("greedy"),
        priority: Priority::Interactive,
        due: second(3600),
        mode: Mode::LocalOnly,
        ..spec(id)
    };
    let short = |id, at: u64| JobSpec { due: second(at + 4), mode: Mode::LocalOnly, ..spec(id) };
    let starts = |effects: &[Effect]| -> Vec<(u64, Priority)> {
        let all = effects.iter().filter_map(|effect| match effect {
            Effect::Start { job, priority, .. } => Some((job.0, *priority)),
            _ => None,
        });
        all.collect()
    };
    for id in [1, 2] {
        scheduler.handle_event(Event::Arrived(long(id)), Time(0));
    }
    // while others have had as much, the class decides
    let effects = scheduler.handle_event(Event::Arrived(short(3, 1)), second(1));
    assert_eq!(starts(&effects), []);
    scheduler.handle_event(Event::Gone(JobId(3)), second(1));
    scheduler.handle_event(Event::Tick, second(10));
    let effects = scheduler.handle_event(Event::Arrived(short(4, 10)), second(10));
    assert_eq!(starts(&effects), [(4, Priority::Interactive)]);
    let done = |job| Event::Ended { job: JobId(job), outcome: Ok(Answered::default()) };
    assert_eq!(starts(&scheduler.handle_event(done(4), second(11))), []);
    // a job that waits goes before the next one
    scheduler.handle_event(Event::Arrived(short(5, 11)), second(11));
    scheduler.handle_event(Event::Arrived(short(6, 11)), second(11));
    assert_eq!(starts(&scheduler.handle_event(done(5), second(12)))[0].0, 6);
}

#[test]
fn deadlines_end_waiting_and_running_jobs() {
    let mut scheduler = scheduler_of_three();
    let due = |id, us| JobSpec { due: Time(us), ..spec(id) };
    scheduler.handle_event(Event::Arrived(due(1, 500)), Time(0));
    scheduler.handle_event(Event::Arrived(due(2, 300)), Time(0));
    assert_eq!(scheduler.wake_at(Time(0)), Some(Time(300)));
    let effects = scheduler.handle_event(Event::Tick, Time(300));
    assert_eq!(*settled(&effects).unwrap().0, Verdict::Expired);
    assert_eq!(scheduler.load(), (0, 1));
    let effects = scheduler.handle_event(Event::Tick, Time(500));
    assert_eq!(effects[0], Effect::Stop { job: JobId(1) });
    assert_eq!(*settled(&effects).unwrap().0, Verdict::Expired);
    assert_eq!(scheduler.load(), (0, 0));
    assert_eq!(scheduler.wake_at(Time(500)), None);
    // the attempt's own end comes too late to matter
    assert_eq!(
        scheduler.handle_event(
            Event::Ended { job: JobId(1), outcome: Ok(Answered::default()) },
            Time(501)
        ),
        []
    );
}

#[test]
fn draining_takes_nothing_and_ends_once() {
    let mut scheduler = scheduler_of_three();
    scheduler.handle_event(Event::Arrived(spec(1)), Time(0));
    assert_eq!(scheduler.handle_event(Event::Drain, Time(1)), []);
    let effects = scheduler.handle_event(Event::Arrived(spec(2)), Time(2));
    assert_eq!(settled(&effects).unwrap().1.reason, Reason::Draining);
    let effects = scheduler
        .handle_event(Event::Ended { job: JobId(1), outcome: Ok(Answered::default()) }, Time(3));
    assert_eq!(effects.last(), Some(&Effect::Drained));
    assert_eq!(scheduler.handle_event(Event::Tick, Time(4)), []);
}

/// An encoder, a language model and a cloud, all of which can classify; only the encoder embeds.
fn classifiers() -> Scheduler {
    let with = |profile: BackendProfile, skills: &[&str]| BackendProfile {
        skills: Some(skills.iter().map(|skill| (*skill).to_owned()).collect()),
        ..profile
    };
    let profiles = vec![
        with(profile("encoder", Locality::Device), &[CLASSIFY, EMBED]),
        with(profile("local", Locality::Device), &[GENERATE, CLASSIFY]),
        with(profile("cloud", Locality::Cloud), &[GENERATE, CLASSIFY, "french"]),
    ];
    let mut scheduler = Scheduler::new(profiles.clone());
    for profile in profiles {
        scheduler.handle_event(Event::Up(profile), Time(0));
    }
    scheduler
}

fn label_job(id: u64, margin: f32) -> JobSpec {
    JobSpec { skills: vec![CLASSIFY.to_owned()], margin, ..spec(id) }
}

fn says(scheduler: &mut Scheduler, job: u64, confidence: f32, at: u64) -> Vec<Effect> {
    let outcome = Ok(Answered { confidence: Some(confidence), ..Answered::default() });
    scheduler.handle_event(Event::Ended { job: JobId(job), outcome }, Time(at))
}

fn answered_by(effects: &[Effect]) -> Option<(&str, Reason)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Settle { verdict: Verdict::Done, backend, decision, .. } => {
            Some((backend.as_ref().map_or("none", BackendId::as_str), decision.reason))
        }
        _ => None,
    })
}

#[test]
fn a_job_goes_to_a_model_that_has_its_skills() {
    let mut scheduler = classifiers();
    let effects = scheduler.handle_event(Event::Arrived(spec(1)), Time(1));
    assert_eq!(started(&effects), Some("local"), "an encoder does not write");
    let embed = JobSpec { skills: vec![EMBED.to_owned()], ..spec(2) };
    assert_eq!(started(&scheduler.handle_event(Event::Arrived(embed), Time(1))), Some("encoder"));
    let french = vec![GENERATE.to_owned(), "french".to_owned()];
    let effects =
        scheduler.handle_event(Event::Arrived(JobSpec { skills: french, ..spec(3) }), Time(1));
    assert_eq!(started(&effects), Some("cloud"));
    let effects = scheduler
        .handle_event(Event::Ended { job: JobId(3), outcome: Ok(Answered::default()) }, Time(2));
    assert_eq!(settled(&effects).unwrap().1.reason, Reason::Skill);
    let paint = JobSpec { skills: vec!["paint".to_owned()], ..spec(4) };
    let effects = scheduler.handle_event(Event::Arrived(paint), Time(3));
    let (verdict, decision) = settled(&effects).unwrap();
    assert!(matches!(verdict, Verdict::Refused(r) if r.message.contains("paint")));
    assert_eq!(decision.reason, Reason::Skill);
    let mut exact = Job::plain("Name a river.", Duration::from_secs(9));
    exact.sampling.deterministic = true;
    let exact = JobSpec { job: JobId(5), ..JobSpec::of(&exact, Time(3)) };
    let effects = scheduler.handle_event(Event::Arrived(exact), Time(3));
    let (verdict, _) = settled(&effects).unwrap();
    assert!(matches!(verdict, Verdict::Refused(r) if r.message.contains("deterministic")));
}

#[test]
fn below_the_margin_the_next_model_is_asked_and_the_surest_counts() {
    let mut scheduler = classifiers();
    // sure at once
    scheduler.handle_event(Event::Arrived(label_job(1, 0.6)), Time(1));
    assert_eq!(answered_by(&says(&mut scheduler, 1, 0.6, 2)), Some(("encoder", Reason::Feasible)));
    // the second is sure
    scheduler.handle_event(Event::Arrived(label_job(2, 0.6)), Time(3));
    assert_eq!(started(&says(&mut scheduler, 2, 0.59, 4)), Some("local"));
    assert_eq!(answered_by(&says(&mut scheduler, 2, 0.9, 5)), Some(("local", Reason::Confidence)));
    // nobody is: the surest word is the answer
    scheduler.handle_event(Event::Arrived(label_job(3, 0.6)), Time(6));
    assert_eq!(started(&says(&mut scheduler, 3, 0.4, 7)), Some("local"));
    assert_eq!(started(&says(&mut scheduler, 3, 0.5, 8)), Some("cloud"));
    let effects = says(&mut scheduler, 3, 0.3, 9);
    assert_eq!(answered_by(&effects), Some(("local", Reason::Confidence)));
    let (_, decision) = settled(&effects).unwrap();
    let said: Vec<_> = decision.attempts.iter().map(|a| (a.outcome, a.confidence)).collect();
    assert_eq!(
        said,
        [(Outcome::Unsure, Some(0.4)), (Outcome::Unsure, Some(0.5)), (Outcome::Unsure, Some(0.3))]
    );
}

#[test]
fn an_unsure_classification_is_the_fallback() {
    // the next one breaks
    let mut scheduler = classifiers();
    scheduler.handle_event(
        Event::Arrived(JobSpec { mode: Mode::LocalOnly, ..label_job(1, 0.6) }),
        Time(1),
    );
    assert_eq!(started(&says(&mut scheduler, 1, 0.4, 2)), Some("local"));
    let outcome = Err((Fault::Rejected(Refusal::new(Code::Invalid, "x")), Sent::Nothing));
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(3));
    assert_eq!(answered_by(&effects), Some(("encoder", Reason::Confidence)));
    // time runs out at the next one
    scheduler
        .handle_event(Event::Arrived(JobSpec { due: Time(100), ..label_job(2, 0.6) }), Time(4));
    assert_eq!(started(&says(&mut scheduler, 2, 0.4, 5)), Some("local"));
    let effects = scheduler.handle_event(Event::Tick, Time(100));
    assert_eq!(answered_by(&effects), Some(("encoder", Reason::Confidence)));
    // the next one is away
    scheduler.handle_event(Event::Down("local".into()), Time(101));
    scheduler.handle_event(Event::Down("cloud".into()), Time(101));
    scheduler.handle_event(Event::Arrived(label_job(3, 0.6)), Time(102));
    assert_eq!(
        answered_by(&says(&mut scheduler, 3, 0.4, 103)),
        Some(("encoder", Reason::Confidence))
    );
    // the client has gone: no answer is wanted
    scheduler.handle_event(Event::Up(scheduler.backends[1].profile.clone()), Time(104));
    scheduler.handle_event(Event::Arrived(label_job(4, 0.6)), Time(104));
    assert_eq!(started(&says(&mut scheduler, 4, 0.4, 105)), Some("local"));
    let effects = scheduler.handle_event(Event::Gone(JobId(4)), Time(106));
    assert_eq!(settled(&effects).unwrap().0, &Verdict::Cancelled);
}

#[test]
fn a_rule_needs_no_model() {
    let mut scheduler = Scheduler::new(vec![profile("down", Locality::Device)]);
    let effects = scheduler
        .handle_event(Event::Arrived(JobSpec { ruled: true, ..label_job(1, 0.6) }), Time(1));
    let (verdict, decision) = settled(&effects).unwrap();
    assert_eq!((verdict, decision.reason), (&Verdict::Done, Reason::Rule));
    assert_eq!(decision.route, Route::Local);
}
