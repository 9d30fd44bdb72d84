//! Tests of the parts of a roll-out.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::choice::{ranked, share};
use super::devices::Devices;
use super::stages::{Ending, Plan, Rollout, RolloutEffect};
use super::summary::Summary;
use super::update::UpdateMark;
use crate::fleet::digest::Digest;
use crate::fleet::target::UpdateTarget;
use crate::fleet::update::UpdateState;
use crate::limits::rollout::{
    NAMES_SHOWN_MAX, REASONS_SHOWN_MAX, REPORT_BYTES_MAX, WATCHED_DEVICES_MAX,
};
use crate::time::Time;

const VERSION: u64 = 12;
const HOUR: Duration = Duration::from_secs(3600);

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn mark() -> UpdateMark {
    UpdateMark { version: VERSION, digests: Some((digest("update"), digest("config"))) }
}

/// A report of a device of the fleet `plant-a`, with these fields instead of those of one that runs its file.
fn report(more: &Value) -> Value {
    let mut report = json!({
        "state": "kept", "source": "file", "version": 0, "digest": digest("file").to_string(),
        "since": 0, "fleet": "plant-a",
    });
    for (key, value) in more.as_object().unwrap() {
        report[key] = value.clone();
    }
    report
}

/// The report in this state of the update.
fn at(state: &str) -> Value {
    let update = digest("update").to_string();
    let running = json!({
        "state": state, "offered": VERSION, "offered_digest": update, "source": "update",
        "version": VERSION, "digest": digest("config").to_string(),
    });
    let other =
        json!({"state": state, "offered": VERSION, "offered_digest": update, "reason": "why"});
    report(if state == "kept" { &running } else { &other })
}

fn told(devices: &mut Devices, name: &str, report: &Value) -> bool {
    devices.report(name, Ok(report.to_string().as_bytes()))
}

fn fleet(count: usize) -> Devices {
    let mut devices = Devices::default();
    for n in 0..count {
        told(&mut devices, &format!("d{n}"), &report(&json!({})));
    }
    devices
}

fn target() -> UpdateTarget {
    UpdateTarget::Fleet("plant-a".to_owned().try_into().unwrap())
}

fn rollout(percents: &[u8], max_failures: Option<usize>, devices: Devices) -> Rollout {
    let plan = Plan { percents: percents.to_vec(), max_failures, time: HOUR };
    Rollout::new(target(), mark(), plan, devices)
}

fn offered(effects: &[RolloutEffect]) -> BTreeSet<String> {
    let name = |effect: &RolloutEffect| match effect {
        RolloutEffect::Offer(name) => Some(name.clone()),
        RolloutEffect::OfferAll | RolloutEffect::Withdraw(_) | RolloutEffect::WithdrawAll => None,
    };
    effects.iter().filter_map(name).collect()
}

fn withdrawn(effects: &[RolloutEffect]) -> BTreeSet<String> {
    let name = |effect: &RolloutEffect| match effect {
        RolloutEffect::Withdraw(name) => Some(name.clone()),
        RolloutEffect::Offer(_) | RolloutEffect::OfferAll | RolloutEffect::WithdrawAll => None,
    };
    effects.iter().filter_map(name).collect()
}

/// The devices report this state of the update, one after the other.
fn all_say<'n>(
    rollout: &mut Rollout,
    names: impl IntoIterator<Item = &'n String>,
    state: &str,
    now: Time,
) -> Vec<RolloutEffect> {
    let mut effects = Vec::new();
    for name in names {
        told(&mut rollout.devices, name, &at(state));
        effects.extend(rollout.heard(name, now));
    }
    effects
}

#[test]
fn a_share_is_rounded_up_and_never_empty() {
    for (all, percent, expected) in [
        (0, 5, 0),
        (1, 1, 1),
        (3, 5, 1),
        (20, 5, 1),
        (21, 5, 2),
        (100, 50, 50),
        (7, 100, 7),
        (1000, 1, 10),
    ] {
        assert_eq!(share(all, percent), expected, "{percent} % of {all}");
    }
}

#[test]
fn the_same_devices_are_chosen_again_and_others_by_the_next_version() {
    let names = |count: usize| (0..count).map(|n| format!("d{n}"));
    let order = ranked(VERSION, names(100));
    assert_eq!(order, ranked(VERSION, names(100).rev()));
    assert_ne!(order, ranked(VERSION + 1, names(100)));
    // a further device changes at most one place of a stage
    let first: BTreeSet<_> = order.iter().take(5).collect();
    let more = ranked(VERSION, names(101));
    assert!(more.iter().take(5).filter(|name| first.contains(name)).count() >= 4);
    // each device is first at some version
    let firsts: BTreeSet<String> =
        (1..200).map(|version| ranked(version, names(10)).remove(0)).collect();
    assert_eq!(firsts.len(), 10);
}

#[test]
fn what_a_device_says_is_read_as_what_became_of_the_update() {
    let check = |more: Value, expected: UpdateState| {
        let mut devices = Devices::default();
        told(&mut devices, "d", &report(&more));
        assert_eq!(mark().state_on(devices.report_of("d").unwrap()), expected, "{more}");
    };
    let (update, other) = (digest("update").to_string(), digest("other").to_string());
    let config = digest("config").to_string();
    check(json!({}), UpdateState::Idle);
    for state in ["verified", "staged", "trial", "rolled-back", "refused"] {
        let expected: UpdateState = serde_json::from_value(json!(state)).unwrap();
        check(json!({"state": state, "offered": VERSION, "offered_digest": update}), expected);
        // another update, also one of the same version
        check(
            json!({"state": state, "offered": VERSION, "offered_digest": other}),
            UpdateState::Idle,
        );
        // a device of an earlier release
        check(json!({"state": state, "offered": VERSION}), expected);
        check(json!({"state": state, "offered": VERSION - 1}), UpdateState::Idle);
    }
    // a refusal has no version
    check(
        json!({"state": "refused", "code": "wrong-target", "offered_digest": update}),
        UpdateState::Refused,
    );
    // the file was read again since
    check(
        json!({"state": "kept", "code": "wrong-target", "offered_digest": update}),
        UpdateState::Refused,
    );
    let in_force = json!({"source": "update", "version": VERSION, "digest": config});
    let with = |more: Value| {
        let mut all = in_force.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    check(in_force.clone(), UpdateState::Kept);
    check(
        with(json!({"state": "trial", "offered": VERSION, "offered_digest": update})),
        UpdateState::Trial,
    );
    // it was kept, and another one was refused or is tried since
    check(with(json!({"state": "refused", "offered_digest": other})), UpdateState::Kept);
    check(
        with(json!({"state": "trial", "offered": 13, "offered_digest": other})),
        UpdateState::Kept,
    );
    check(with(json!({"digest": other})), UpdateState::Idle);
    // said to be kept, and not in force
    check(
        json!({"state": "kept", "offered": VERSION, "offered_digest": update}),
        UpdateState::Idle,
    );
}

#[test]
fn an_update_without_stages_goes_to_its_target_and_waits_for_the_devices_that_are_there() {
    let mut devices = fleet(3);
    told(&mut devices, "alien", &report(&json!({"fleet": "plant-b"})));
    devices.presence("d2", Ok(br#"{"state": "offline"}"#));
    let mut rollout = rollout(&[100], None, devices);
    assert_eq!(rollout.begin(Time(0)), [RolloutEffect::OfferAll]);
    let later = Time(0) + Duration::from_secs(4);
    for state in ["verified", "staged", "trial"] {
        assert_eq!(all_say(&mut rollout, &["d0".to_owned()], state, later), []);
    }
    assert_eq!(all_say(&mut rollout, &["d0".to_owned()], "kept", later), []);
    assert_eq!(rollout.ending(), None);
    // one that comes late is waited for
    rollout.devices.presence("d2", Ok(br#"{"state": "online"}"#));
    rollout.heard("d2", later);
    assert_eq!(all_say(&mut rollout, &["d1".to_owned()], "rolled-back", later), []);
    assert_eq!(rollout.ending(), None);
    assert_eq!(all_say(&mut rollout, &["d2".to_owned()], "kept", later + HOUR / 2), []);
    assert_eq!(rollout.ending(), Some(Ending::Through));
    let summary = rollout.summary();
    assert_eq!((summary.devices, summary.kept(), summary.failures()), (3, 2, 1));
    assert_eq!((summary.seconds_p50, summary.seconds_p99), (Some(4.0), Some(1800.0)));
    assert_eq!(summary.reasons[0].names, ["d1"]);
}

#[test]
fn each_stage_waits_for_the_one_before_and_the_last_one_clears_the_topics_of_devices() {
    let mut rollout = rollout(&[5, 50, 100], Some(0), fleet(20));
    let first = offered(&rollout.begin(Time(0)));
    assert_eq!(first.len(), 1);
    let effects = all_say(&mut rollout, &first, "trial", Time(1));
    assert_eq!((effects, rollout.stage()), (vec![], (1, 3, 5)));
    let second = offered(&all_say(&mut rollout, &first, "kept", Time(2)));
    assert_eq!((second.len(), rollout.stage()), (9, (2, 3, 50)));
    assert!(second.is_disjoint(&first));
    let effects = all_say(&mut rollout, &second, "kept", Time(3));
    assert_eq!((effects, rollout.stage()), (vec![RolloutEffect::OfferAll], (3, 3, 100)));
    let chosen: BTreeSet<String> = &first | &second;
    let all: BTreeSet<String> = (0..20).map(|n| format!("d{n}")).collect();
    let effects = all_say(&mut rollout, all.difference(&chosen), "kept", Time(4));
    assert_eq!(rollout.ending(), Some(Ending::Through));
    assert_eq!(withdrawn(&effects), chosen);
    assert!(!effects.contains(&RolloutEffect::WithdrawAll));
    assert_eq!(rollout.summary().kept(), 20);
}

#[test]
fn a_stage_with_too_many_failures_stops_the_rest() {
    for (state, max_failures) in [("rolled-back", 0), ("refused", 0), ("rolled-back", 2)] {
        let mut rollout = rollout(&[50, 100], Some(max_failures), fleet(20));
        let first: Vec<String> = offered(&rollout.begin(Time(0))).into_iter().collect();
        assert_eq!(first.len(), 10);
        let (bad, more) = first.split_at(max_failures);
        assert_eq!(all_say(&mut rollout, bad, state, Time(1)), []);
        assert_eq!(rollout.failures_left(), Some(0));
        // at once, without waiting for the others
        let effects = all_say(&mut rollout, &more[..1], state, Time(2));
        assert_eq!(rollout.ending(), Some(Ending::Stopped), "{state}");
        assert_eq!(withdrawn(&effects), first.iter().cloned().collect());
        assert_eq!(
            (offered(&effects).len(), effects.contains(&RolloutEffect::WithdrawAll)),
            (0, false)
        );
        assert_eq!(
            all_say(&mut rollout, &more[1..], "kept", Time(3)),
            [],
            "nothing comes after the end"
        );
        assert_eq!(rollout.summary().count("not-offered"), 10);
    }
}

#[test]
fn failures_within_the_bound_do_not_stop_it() {
    let mut rollout = rollout(&[50, 100], Some(1), fleet(4));
    let first: Vec<String> = offered(&rollout.begin(Time(0))).into_iter().collect();
    all_say(&mut rollout, &first[..1], "refused", Time(1));
    let effects = all_say(&mut rollout, &first[1..], "kept", Time(1));
    assert_eq!(effects, [RolloutEffect::OfferAll]);
    // the failures of all stages count together
    let rest: Vec<String> =
        (0..4).map(|n| format!("d{n}")).filter(|name| !first.contains(name)).collect();
    let effects = all_say(&mut rollout, &rest[..1], "rolled-back", Time(2));
    assert_eq!(rollout.ending(), Some(Ending::Stopped));
    assert!(effects.contains(&RolloutEffect::WithdrawAll), "{effects:?}");
}

#[test]
fn a_device_that_does_not_answer_in_time_has_failed() {
    let mut staged = rollout(&[50, 100], Some(0), fleet(4));
    let first = offered(&staged.begin(Time(0)));
    all_say(&mut staged, first.iter().take(1), "kept", Time(1));
    assert_eq!(staged.tick(Time(0) + HOUR / 2), []);
    let effects = staged.tick(staged.until());
    assert_eq!((withdrawn(&effects), staged.ending()), (first, Some(Ending::Stopped)));
    assert_eq!(staged.summary().count("no-answer"), 1);

    let mut plain = rollout(&[100], None, fleet(2));
    plain.begin(Time(0));
    all_say(&mut plain, &["d0".to_owned()], "kept", Time(1));
    assert_eq!(plain.tick(plain.until()), [], "the update stays for devices that come later");
    assert_eq!(plain.ending(), Some(Ending::Through));

    // within the bound the next stage begins, and one that comes late after all has not failed
    let mut patient = rollout(&[50, 100], Some(1), fleet(2));
    let late = offered(&patient.begin(Time(0)));
    assert_eq!(patient.tick(patient.until()), [RolloutEffect::OfferAll]);
    let until = Time(0) + HOUR;
    all_say(&mut patient, &late, "kept", until);
    assert_eq!((patient.summary().kept(), patient.failures_left()), (1, Some(1)));
}

#[test]
fn a_second_push_goes_on_where_the_first_was_interrupted() {
    let mut one = rollout(&[5, 50, 100], Some(0), fleet(20));
    let first = offered(&one.begin(Time(0)));
    let second = offered(&all_say(&mut one, &first, "kept", Time(1)));
    let begun: Vec<String> = second.iter().take(3).cloned().collect();
    all_say(&mut one, &begun[..2], "kept", Time(2));
    all_say(&mut one, &begun[2..], "trial", Time(2));
    let effects = one.end(Ending::Interrupted);
    assert_eq!(withdrawn(&effects), &first | &second);
    assert_eq!(one.end(Ending::Interrupted), []);

    let mut again = rollout(&[5, 50, 100], Some(0), one.devices.clone());
    let rest = offered(&again.begin(Time(0)));
    assert_eq!(again.stage(), (2, 3, 50));
    assert_eq!(rest, second.iter().filter(|name| !begun.contains(name)).cloned().collect());
    // what the first one may have left is cleared as well
    let effects = again.end(Ending::Interrupted);
    assert_eq!(withdrawn(&effects), &first | &second);

    // what has failed stays failed
    let mut devices = one.devices.clone();
    told(&mut devices, &begun[2], &at("rolled-back"));
    let mut stopped = rollout(&[5, 50, 100], Some(0), devices);
    assert_eq!(offered(&stopped.begin(Time(0))), offered(&[]));
    assert_eq!(stopped.ending(), Some(Ending::Stopped));
}

#[test]
fn a_device_that_has_kept_more_is_found_before_the_push() {
    let mut devices = fleet(1);
    for (name, version, config) in
        [("higher", 13, "x"), ("same", 12, "x"), ("kept", 12, "config"), ("lower", 11, "x")]
    {
        let digest = digest(config).to_string();
        told(
            &mut devices,
            name,
            &report(&json!({"source": "update", "version": version, "digest": digest})),
        );
    }
    let rollout = rollout(&[100], None, devices);
    let found: Vec<&str> = rollout.outdated().map(|(name, _)| name).collect();
    assert_eq!(found, ["higher", "same"]);
}

#[test]
fn what_can_not_be_read_is_counted_and_changes_nothing() {
    let mut devices = fleet(1);
    let before = devices.report_of("d0").cloned();
    let large = vec![b' '; REPORT_BYTES_MAX + 1];
    for bad in [&b"no json"[..], b"[]", b"{}", br#"{"state": "unheard"}"#, &large] {
        assert!(!devices.report("d0", Ok(bad)));
    }
    devices.report("d0", Err(1 << 21));
    devices.report("no name", Ok(report(&json!({})).to_string().as_bytes()));
    devices.report("\u{1b}[2J", Ok(report(&json!({})).to_string().as_bytes()));
    assert_eq!((devices.bad_reports, devices.report_of("d0").cloned()), (8, before));
    assert_eq!(devices.reported().count(), 1);
    // a removed report
    assert!(devices.report("d0", Ok(b"")));
    assert_eq!(devices.reported().count(), 0);
    // bounded texts
    let long = "x".repeat(10_000);
    told(&mut devices, "d0", &report(&json!({"reason": long, "fleet": long, "code": long})));
    let kept = devices.report_of("d0").unwrap();
    assert_eq!((kept.reason.as_ref().unwrap().len(), &kept.fleet, &kept.code), (512, &None, &None));
}

#[test]
fn the_number_of_devices_is_bounded() {
    let mut devices = fleet(WATCHED_DEVICES_MAX + 7);
    assert_eq!((devices.reported().count(), devices.left_out), (WATCHED_DEVICES_MAX, 7));
    assert!(told(&mut devices, "d0", &at("trial")), "the known ones are still heard");
}

#[test]
fn equal_reasons_are_one_row_and_rows_are_bounded() {
    let mut devices = Devices::default();
    for n in 0..100 {
        let reason = format!("reason {}", if n < 60 { 0 } else { n });
        let more = json!({"state": "refused", "offered": VERSION, "reason": reason});
        told(&mut devices, &format!("d{n:02}"), &report(&more));
    }
    let mark = UpdateMark { version: VERSION, digests: None };
    let summary = Summary::of_all(&devices, Some(&mark));
    assert_eq!(
        (summary.reasons.len(), summary.reasons_left_out),
        (REASONS_SHOWN_MAX, 41 - REASONS_SHOWN_MAX)
    );
    let first = &summary.reasons[0];
    assert_eq!((first.devices, first.names.len()), (60, NAMES_SHOWN_MAX));
    assert_eq!((first.reason.as_str(), first.names[0].as_str()), ("reason 0", "d00"));
}
