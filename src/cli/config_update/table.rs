//! The text of a table of devices. Names and reasons come from devices, and are escaped.

use std::time::Duration;

use crate::cli::output::one_line;
use crate::fleet::update::UpdateState;
use crate::rollout::devices::DeviceReport;
use crate::rollout::summary::{EqualReasons, NO_ANSWER, NOT_BEGUN, NOT_OFFERED, OFFLINE, Summary};

/// Columns of the bar.
const BAR: usize = 32;
/// The states in the order in which they are shown.
const ORDER: [&str; 11] = [
    UpdateState::Kept.name(),
    UpdateState::Trial.name(),
    UpdateState::Staged.name(),
    UpdateState::Verified.name(),
    UpdateState::RolledBack.name(),
    UpdateState::Refused.name(),
    NO_ANSWER,
    NOT_BEGUN,
    NOT_OFFERED,
    OFFLINE,
    UpdateState::Idle.name(),
];

/// How many devices are in each state: `kept 3, trial 1`.
pub(super) fn counts(summary: &Summary) -> String {
    let present = ORDER.iter().filter(|state| summary.count(state) > 0);
    let all: Vec<String> =
        present.map(|state| format!("{state} {}", summary.count(state))).collect();
    if all.is_empty() { "no devices".to_owned() } else { all.join(", ") }
}

/// A number of devices.
pub(super) fn devices(count: usize) -> String {
    format!("{count} {}", if count == 1 { "device" } else { "devices" })
}

/// What a device runs.
pub(super) fn runs(report: &DeviceReport) -> String {
    let version = report.version;
    if report.is_update {
        format!(", runs version {version}")
    } else {
        ", runs its file".to_owned()
    }
}

/// The share of the devices at which the update is over: `#` kept, `x` failed.
pub(super) fn bar(summary: &Summary) -> String {
    let failed = summary.failures() + summary.count(NO_ANSWER);
    let part = |count: usize| (count * BAR).checked_div(summary.devices).unwrap_or_default();
    // what is there is seen, also if it is less than a column
    let marked = |count: usize| part(count).max(usize::from(count > 0)).min(BAR);
    let bad = marked(failed);
    let good = marked(summary.kept()).min(BAR - bad);
    let percent = (summary.kept() * 100).checked_div(summary.devices).unwrap_or_default();
    let rest = "-".repeat(BAR - good - bad);
    format!("[{}{}{rest}] {percent:3} % kept", "#".repeat(good), "x".repeat(bad))
}

/// The times until devices have kept it, if there are any.
pub(super) fn times(summary: &Summary) -> Option<String> {
    let (half, most) = (summary.seconds_p50?, summary.seconds_p99?);
    Some(format!("kept after: p50 {half:.1} s, p99 {most:.1} s"))
}

/// Why devices have failed, and what could not be read.
pub(super) fn reasons(summary: &Summary) -> Vec<String> {
    let row = |one: &EqualReasons| {
        let EqualReasons { state, code, reason, devices, names } = one;
        let code = code.as_ref().map_or_else(String::new, |code| format!(" ({})", one_line(code)));
        let names: Vec<String> = names.iter().map(|name| one_line(name)).collect();
        let more = if *devices > names.len() { ", …" } else { "" };
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        let (names, reason) = (names.join(", "), one_line(reason));
        format!("{devices} {state}{code}: {reason} [{names}{more}]")
    };
    let mut lines: Vec<String> = summary.reasons.iter().map(row).collect();
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            lines.push(format!("{count} {what}"));
        }
    };
    note(summary.reasons_left_out as u64, "further reasons");
    note(summary.bad_reports, "reports could not be read");
    note(summary.left_out, "messages of further devices are not shown");
    lines
}

/// One change of a device.
pub(super) fn change(
    name: &str,
    state: &str,
    took: Option<Duration>,
    (code, reason): (Option<&str>, Option<&str>),
) -> String {
    let name = one_line(name);
    let is_failure =
        state == UpdateState::RolledBack.name() || state == UpdateState::Refused.name();
    let took = took.filter(|_| state == UpdateState::Kept.name());
    let took = took.map_or_else(String::new, |took| format!(" after {:.1} s", took.as_secs_f64()));
    let code = code.filter(|_| is_failure).map(|code| format!(" ({})", one_line(code)));
    let why = reason.filter(|_| is_failure).map(|reason| format!(": {}", one_line(reason)));
    format!("{name} {state}{took}{}{}", code.unwrap_or_default(), why.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn summary(states: &[(&'static str, usize)]) -> Summary {
        let states: BTreeMap<&'static str, usize> = states.iter().copied().collect();
        Summary { devices: states.values().sum(), states, ..Summary::default() }
    }

    #[test]
    fn a_bar_shows_what_is_there() {
        let check = |states: &[(&'static str, usize)], good: usize, bad: usize, percent: &str| {
            let bar = bar(&summary(states));
            assert_eq!(bar.matches('#').count(), good, "{bar}");
            assert_eq!(bar.matches('x').count(), bad, "{bar}");
            assert_eq!(bar.find(']'), Some(BAR + 1), "{bar}");
            assert!(bar.ends_with(&format!("{percent} % kept")), "{bar}");
        };
        check(&[], 0, 0, "0");
        check(&[("kept", 1000)], BAR, 0, "100");
        check(&[("kept", 999), ("refused", 1)], BAR - 1, 1, "99");
        check(&[("kept", 1), ("not-begun", 999)], 1, 0, "0");
        check(&[("rolled-back", 3), ("no-answer", 1)], 0, BAR, "0");
        check(&[("kept", 2), ("trial", 2)], BAR / 2, 0, "50");
    }

    #[test]
    fn states_have_one_order_and_all_are_shown() {
        let expected = "kept 1, trial 2, staged 3, verified 4, rolled-back 5, refused 6, no-answer 7, \
                        not-begun 8, not-offered 9, offline 10, idle 11";
        let states: Vec<(&str, usize)> = expected
            .split(", ")
            .filter_map(|part| part.split_once(' '))
            .map(|(state, count)| (state, count.parse().unwrap()))
            .collect();
        assert_eq!(counts(&summary(&states)), expected);
        assert_eq!(counts(&summary(&[])), "no devices");
    }

    #[test]
    fn what_devices_say_is_one_line_without_control_characters() {
        let evil = "a\x1b[2J\nb\u{202e}";
        let mut table = summary(&[("refused", 9)]);
        table.reasons = vec![EqualReasons {
            state: "refused",
            code: Some(evil.to_owned()),
            reason: evil.to_owned(),
            devices: 9,
            names: vec!["pi-1".to_owned(), "pi-2".to_owned()],
        }];
        table.bad_reports = 2;
        let lines = reasons(&table);
        let shown = "a\\u{1b}[2J\\u{a}b\\u{202e}";
        assert_eq!(lines[0], format!("9 refused ({shown}): {shown} [pi-1, pi-2, …]"));
        assert_eq!(lines[1], "2 reports could not be read");
        let took = Some(Duration::from_millis(4240));
        assert_eq!(change("pi-7", "kept", took, (None, None)), "pi-7 kept after 4.2 s");
        assert_eq!(change("pi-7", "trial", took, (None, Some("old"))), "pi-7 trial");
        let refused = change(evil, "refused", None, (Some("old-version"), Some(evil)));
        assert_eq!(refused, format!("{shown} refused (old-version): {shown}"));
    }
}
