//! The state machine of an update: each way through it, and every event in every state.

use super::NOW;
use crate::fleet::digest::Digest;
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::update::{
    ConfigPlace, GoldenResult, UpdateEffect as Do, UpdateEvent as On, UpdateMachine,
    UpdateState as State, UpdateStep as Step,
};
use crate::limits::fleet::{PROBE_MAX, TRIAL_JOBS, TRIAL_MAX};
use crate::time::Time;

const VERIFIED: On = On::Verified { version: 12, place: ConfigPlace::Inline };

fn result(before: u32, after: u32) -> GoldenResult {
    GoldenResult { task: "label".to_owned(), cases: 60, before, after, loss_percent: 2 }
}

fn failed(step: Step) -> On {
    On::Done(step, Err("disk full".to_owned()))
}

fn done(step: Step) -> On {
    On::Done(step, Ok(()))
}

/// A machine after these events, all at the time zero.
fn after(events: &[On]) -> UpdateMachine {
    let mut machine = UpdateMachine::default();
    for event in events {
        machine.handle(event.clone(), Time(0));
    }
    machine
}

fn trial() -> Vec<On> {
    vec![
        VERIFIED,
        On::Accepted,
        done(Step::Pull),
        done(Step::Stage),
        On::TryBegun { tries_left: 1 },
    ]
}

/// On trial, with all but the jobs behind it.
fn at_work() -> Vec<On> {
    let more = [done(Step::Switch), done(Step::Probe), On::Golden(vec![result(50, 50)])];
    trial().into_iter().chain(more).collect()
}

#[test]
fn a_good_update_is_kept() {
    let mut machine = UpdateMachine::default();
    let mut step = |event: On, effects: &[Do], state: State| {
        assert_eq!(machine.handle(event.clone(), Time(0)), effects, "{event:?}");
        assert_eq!(machine.report().state, state, "{event:?}");
    };
    let remote = On::Verified { version: 12, place: ConfigPlace::Remote };
    step(remote, &[Do::Report, Do::Fetch], State::Verified);
    step(done(Step::Fetch), &[Do::Check], State::Verified);
    step(On::Accepted, &[Do::Pull], State::Verified);
    step(done(Step::Pull), &[Do::Stage], State::Verified);
    step(done(Step::Stage), &[Do::Report, Do::BeginTry], State::Staged);
    step(On::TryBegun { tries_left: 1 }, &[Do::Report, Do::Switch], State::Trial);
    step(done(Step::Switch), &[Do::Probe], State::Trial);
    step(done(Step::Probe), &[Do::RunGolden], State::Trial);
    // one case of 60 is within the bound
    step(On::Golden(vec![result(50, 49), result(40, 55)]), &[Do::Adopt], State::Trial);
    for _ in 1..TRIAL_JOBS {
        step(On::GoodJob, &[], State::Trial);
    }
    step(On::GoodJob, &[Do::Keep], State::Trial);
    step(On::GoodJob, &[], State::Trial);
    step(done(Step::Keep), &[Do::Report], State::Kept);
    let steps_down = true;
    step(On::RollBack { steps_down }, &[Do::RollBack { steps_down }], State::Kept);
    step(done(Step::RollBack), &[Do::Report], State::RolledBack);
    assert_eq!(machine.report().version, Some(12));
}

#[test]
fn a_device_without_jobs_keeps_an_update_after_some_time() {
    let mut machine = after(&at_work());
    let end = Time(0) + TRIAL_MAX;
    assert_eq!(machine.wake_at(), Some(end));
    assert_eq!(machine.handle(On::Tick, Time(end.0 - 1)), []);
    assert_eq!(machine.handle(On::Tick, end), [Do::Keep]);
    assert_eq!(machine.wake_at(), None);
}

#[test]
fn a_bad_update_is_rolled_back_with_its_reason() {
    let late = Time(0) + PROBE_MAX;
    let upto = |count: usize| at_work()[..count].to_vec();
    for (before, event, now, told) in [
        (upto(5), failed(Step::Switch), Time(0), "disk full"),
        (upto(6), failed(Step::Probe), Time(0), "disk full"),
        (upto(7), On::Golden(vec![result(50, 50), result(50, 48)]), Time(0), "48 of 60"),
        (upto(7), On::Golden(vec![result(60, 0)]), Time(0), "task label: 0 of 60"),
        (upto(8), On::Failed("backend a crashed".to_owned()), Time(0), "backend a crashed"),
        (upto(6), On::Failed("backend a crashed".to_owned()), Time(0), "backend a crashed"),
        (upto(5), On::Tick, late, "did not start within"),
        (upto(6), On::Tick, late, "did not answer within"),
        (upto(7), On::Tick, late, "golden sets were not answered"),
        (upto(8), On::RollBack { steps_down: false }, Time(0), "the operator"),
    ] {
        let mut machine = after(&before);
        assert_eq!(machine.report().state, State::Trial, "{event:?}");
        let effects = machine.handle(event.clone(), now);
        let [Do::Drop { why }, Do::SwitchBack, Do::Report] = &effects[..] else {
            panic!("{event:?}: {effects:?}")
        };
        assert!(why.contains(told), "{event:?}: {why}");
        let report = machine.report();
        assert_eq!((report.state, report.version), (State::RolledBack, Some(12)));
        assert_eq!(report.reason, Some(why.as_str()));
        // the next one is welcome
        assert_eq!(machine.handle(VERIFIED, now), [Do::Report, Do::Check]);
    }
    // what can't be lowered on disk is not run
    let mut machine = after(&trial()[..4]);
    let effects = machine.handle(failed(Step::BeginTry), Time(0));
    assert!(matches!(&effects[..], [Do::Drop { .. }, Do::Report]), "{effects:?}");
}

#[test]
fn a_refused_update_leaves_no_trace_of_a_trial() {
    for (before, event, code) in [
        (vec![VERIFIED], failed(Step::Stage), "not-stored"),
        (vec![VERIFIED], failed(Step::Fetch), "not-fetched"),
        (vec![VERIFIED, On::Accepted], failed(Step::Pull), "not-pulled"),
        (
            vec![VERIFIED],
            On::Refused { version: Some(12), refusal: UpdateRefusal::Forbidden(Vec::new()) },
            "forbidden-config",
        ),
        (
            vec![],
            On::Refused { version: None, refusal: UpdateRefusal::LegacySignature },
            "legacy-signature",
        ),
    ] {
        let mut machine = after(&before);
        assert_eq!(machine.handle(event, Time(0)), [Do::Report]);
        let report = machine.report();
        assert_eq!((report.state, report.code), (State::Refused, Some(code)));
    }
}

/// Models take their time: what comes meanwhile ends the downloads or nothing.
#[test]
fn downloads_are_ended_by_a_newer_update_or_the_operator() {
    let pulling = [VERIFIED, On::Accepted];
    let newer = On::Verified { version: 13, place: ConfigPlace::Inline };
    let mut machine = after(&pulling);
    assert_eq!(machine.handle(newer, Time(0)), [Do::EndPull, Do::Report, Do::Check]);
    assert_eq!(machine.report().version, Some(13));
    // the end of the download of the one before
    assert_eq!(machine.handle(done(Step::Pull), Time(0)), []);
    let mut machine = after(&pulling);
    let back = On::RollBack { steps_down: false };
    assert_eq!(machine.handle(back, Time(0)), [Do::EndPull, Do::Report]);
    assert_eq!(machine.report().state, State::RolledBack);
    // a message of another
    let mut machine = after(&pulling);
    let event = On::Refused { version: None, refusal: UpdateRefusal::LegacySignature };
    assert_eq!(machine.handle(event, Time(0)), []);
    assert_eq!(machine.handle(done(Step::Pull), Time(0)), [Do::Stage]);
}

/// The broker delivers a retained message at each connection.
#[test]
fn a_known_update_changes_no_report() {
    let mut kept = at_work();
    kept.extend((0..TRIAL_JOBS).map(|_| On::GoodJob));
    kept.push(done(Step::Keep));
    let mut machine = after(&kept);
    for refusal in [
        UpdateRefusal::Replayed(Digest::of(b"")),
        UpdateRefusal::OldVersion { version: 12, floor: 12 },
    ] {
        let event = On::Refused { version: Some(12), refusal };
        assert_eq!(machine.handle(event, Time(0)), []);
        assert_eq!(machine.report().state, State::Kept);
    }
    // during a trial nothing else is taken
    let mut machine = after(&at_work());
    assert_eq!(machine.handle(VERIFIED, Time(0)), []);
    let event = On::Refused { version: None, refusal: UpdateRefusal::LegacySignature };
    assert_eq!(machine.handle(event, Time(0)), []);
    assert_eq!(machine.report().state, State::Trial);
}

#[test]
fn a_start_goes_on_with_a_trial_until_there_are_no_tries() {
    let mut machine = UpdateMachine::default();
    let found = |tries_left| On::Found { version: 12, tries_left };
    assert_eq!(machine.handle(found(1), Time(0)), [Do::Report, Do::BeginTry]);
    let mut machine = UpdateMachine::default();
    let effects = machine.handle(found(0), Time(0));
    assert!(matches!(&effects[..], [Do::Drop { .. }, Do::Report]), "{effects:?}");
    assert_eq!(machine.report().state, State::RolledBack);
}

/// From each state on each way, every event: nothing is kept that has not passed its whole trial, and
/// nothing is dropped that is kept.
#[test]
fn no_event_is_out_of_place() {
    let events = || {
        let steps = [
            Step::Fetch,
            Step::Pull,
            Step::Stage,
            Step::BeginTry,
            Step::Switch,
            Step::Probe,
            Step::Keep,
            Step::RollBack,
        ];
        let mut all = vec![
            VERIFIED,
            On::Found { version: 13, tries_left: 0 },
            On::Accepted,
            On::TryBegun { tries_left: 0 },
            On::Golden(Vec::new()),
            On::GoodJob,
            On::Failed(String::new()),
            On::RollBack { steps_down: false },
            On::Tick,
            On::Refused { version: None, refusal: UpdateRefusal::LegacySignature },
        ];
        all.extend(steps.into_iter().flat_map(|step| [done(step), failed(step)]));
        all
    };
    let way = at_work();
    for count in 0..=way.len() {
        for first in events() {
            for second in events() {
                let mut machine = after(&way[..count]);
                for event in [first.clone(), second.clone()] {
                    let before = machine.report().state;
                    let effects = machine.handle(event.clone(), Time(NOW.0));
                    if effects.contains(&Do::Keep) {
                        assert_eq!(count, way.len(), "{first:?} {second:?}");
                    }
                    if effects.contains(&Do::SwitchBack) {
                        assert_eq!(machine.report().state, State::RolledBack);
                    }
                    if before == State::Kept {
                        assert!(!effects.iter().any(|e| matches!(e, Do::Drop { .. })));
                    }
                }
            }
        }
    }
}
