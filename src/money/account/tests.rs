//! Tests of the spending account.

use super::*;

const DAY: u64 = 86_400;

fn usd(cents: u32) -> Usd {
    Usd::at_least(f64::from(cents) / 100.0)
}

fn caps() -> Caps {
    let hour = |cents| Limits { hour: Some(usd(cents)), ..Limits::default() };
    Caps {
        device: Limits { day: Some(usd(100)), month: Some(usd(150)), ..Limits::default() },
        per_app: hour(40),
        apps: BTreeMap::from([("rich".to_owned(), hour(1000))]),
    }
}

fn spend(account: &mut SpendingAccount, call: u64, app: &str, held: u32, billed: Option<u32>) {
    let line = account.hold(call, app, usd(held));
    account.write(&line);
    if let Some(billed) = billed {
        account.write(&LedgerEntry::Bill { call, usd: usd(billed) });
    }
}

#[test]
fn a_hold_counts_until_its_bill_comes() {
    let mut account = SpendingAccount::default();
    account.turn(Hour::at(DAY));
    spend(&mut account, 1, "a", 30, None);
    assert_eq!(account.fits(&caps(), "a", usd(10)), Fits::Yes);
    assert_eq!(account.fits(&caps(), "a", usd(11)), Fits::Later);
    assert_eq!(account.fits(&caps(), "a", usd(41)), Fits::No(Span::Hour));
    assert_eq!(account.fits(&caps(), "b", usd(40)), Fits::Yes);
    account.write(&LedgerEntry::Bill { call: 1, usd: usd(5) });
    assert_eq!(account.fits(&caps(), "a", usd(35)), Fits::Yes);
    assert_eq!(account.spent(None, Span::Month), usd(5));
    // a bill without a hold
    account.write(&LedgerEntry::Bill { call: 1, usd: usd(50) });
    assert_eq!(account.spent(Some("a"), Span::Day), usd(5));
}

#[test]
fn all_together_have_a_cap_and_some_have_one_of_their_own() {
    let mut account = SpendingAccount::default();
    spend(&mut account, 1, "rich", 90, Some(90));
    assert_eq!(account.fits(&caps(), "rich", usd(10)), Fits::Yes);
    assert_eq!(account.fits(&caps(), "rich", usd(11)), Fits::No(Span::Day));
    assert_eq!(account.fits(&caps(), "poor", usd(11)), Fits::No(Span::Day));
}

#[test]
fn spans_end_and_a_clock_set_back_gives_nothing_back() {
    let mut account = SpendingAccount::default();
    account.turn(Hour::at(30 * DAY));
    spend(&mut account, 1, "a", 40, None);
    assert_eq!(account.fits(&caps(), "a", usd(1)), Fits::Later);
    account.turn(Hour::at(29 * DAY));
    assert_eq!(account.fits(&caps(), "a", usd(1)), Fits::Later);
    account.turn(Hour::at(30 * DAY + 3600));
    assert_eq!(account.fits(&caps(), "a", usd(40)), Fits::Yes);
    // its bill counts for the day that still lasts, not for the new hour
    account.write(&LedgerEntry::Bill { call: 1, usd: usd(20) });
    assert_eq!(account.spent(None, Span::Hour), Usd::NONE);
    assert_eq!(account.spent(None, Span::Day), usd(20));
    // February: the applications of January are forgotten
    account.turn(Hour::at(31 * DAY));
    assert_eq!(account.spenders().count(), 0);
    assert_eq!(account.spent(None, Span::Month), Usd::NONE);
}

/// Hours of real dates: the first of November 2026, and 400 days later.
const PRESENT: u64 = 20_758 * DAY;
const FAR: u64 = PRESENT + 400 * DAY;

#[test]
fn a_clock_that_was_far_ahead_blocks_no_longer_than_the_present_spans() {
    let mut account = SpendingAccount::default();
    account.turn(Hour::at(PRESENT));
    spend(&mut account, 1, "a", 10, Some(10));
    account.turn(Hour::at(FAR));
    assert_eq!(account.clock_state(), ClockState::Agrees);
    spend(&mut account, 2, "a", 30, Some(30));
    account.turn(Hour::at(PRESENT + 600));
    assert_eq!(account.clock_state(), ClockState::SetBack(400 * 24));
    // what was spent before the jump and after it counts
    assert_eq!(account.spent(None, Span::Hour), usd(40));
    assert_eq!(account.spent(Some("a"), Span::Month), usd(40));
    assert_eq!(account.fits(&caps(), "a", usd(1)), Fits::No(Span::Hour));
    account.turn(Hour::at(PRESENT + 3600));
    assert_eq!(account.fits(&caps(), "a", usd(40)), Fits::Yes);
    assert_eq!(account.spent(None, Span::Day), usd(40));
    account.turn(Hour::at(PRESENT + 30 * DAY));
    assert_eq!(account.spent(None, Span::Month), Usd::NONE);
    assert_eq!(account.clock_state(), ClockState::Agrees);
}

#[test]
fn a_clock_that_jumps_to_and_fro_gives_nothing_twice() {
    for (one, other) in [(PRESENT, FAR), (0, PRESENT), (PRESENT - 600 * DAY, PRESENT)] {
        let mut account = SpendingAccount::default();
        account.turn(Hour::at(other));
        spend(&mut account, 0, "a", 25, Some(25));
        for round in 1..20 {
            account.turn(Hour::at(one));
            assert!(account.spent(None, Span::Month) >= usd(25), "{one} {other} {round}");
            if account.fits(&caps(), "a", usd(1)) == Fits::Yes {
                spend(&mut account, 2 * round, "a", 1, Some(1));
            }
            account.turn(Hour::at(other));
            if account.fits(&caps(), "a", usd(1)) == Fits::Yes {
                spend(&mut account, 2 * round + 1, "a", 1, Some(1));
            }
        }
        // 25, and the 15 that were left of the hour's cap of 40
        assert_eq!(account.spent(Some("a"), Span::Hour), usd(40), "{one} {other}");
        assert_eq!(account.fits(&caps(), "a", usd(1)), Fits::No(Span::Hour));
        account.turn(Hour::at(one));
        assert_eq!(account.fits(&caps(), "a", usd(1)), Fits::No(Span::Hour));
    }
}

#[test]
fn what_was_spent_before_the_clock_was_set_counts_after() {
    let mut account = SpendingAccount::default();
    account.turn(Hour::at(600));
    spend(&mut account, 1, "a", 30, Some(30));
    account.turn(Hour::at(PRESENT));
    assert_eq!(account.spent(Some("a"), Span::Hour), usd(30));
    assert_eq!(account.clock_state(), ClockState::Agrees);
}

#[test]
fn a_clock_that_is_a_little_behind_is_told() {
    let mut account = SpendingAccount::default();
    account.turn(Hour::at(PRESENT + 20 * DAY));
    spend(&mut account, 1, "a", 30, Some(30));
    account.turn(Hour::at(PRESENT));
    assert_eq!(account.clock_state(), ClockState::Behind(480));
    assert_eq!(account.hours_behind(), 480);
    assert!(account.clock_state().to_string().contains("pilotlight budget correct"));
    assert_eq!(account.spent(Some("a"), Span::Hour), usd(30));
    spend(&mut account, 2, "a", 1, Some(1));
    assert_eq!(account.clock_state(), ClockState::Behind(480), "a call is no clock");
}

#[test]
fn a_ledger_of_an_earlier_version_is_read() {
    let text = r#"{"now": {"hour": 498192, "month": 24322}, "device": [{"span": 498192, "usd": 5}, {"span": 20758, "usd": 5}, {"span": 24322, "usd": 5}], "apps": {}, "open": {}}"#;
    let account: SpendingAccount = serde_json::from_str(text).unwrap();
    assert_eq!(account.now(), Hour::at(PRESENT));
    assert_eq!(account.spent(None, Span::Month), Usd(5));
    let again = serde_json::to_string(&account).unwrap();
    assert_eq!(serde_json::from_str::<SpendingAccount>(&again).unwrap(), account);
}

#[test]
fn what_was_open_at_the_end_has_cost_the_most() {
    let mut account = SpendingAccount::default();
    spend(&mut account, 1, "a", 30, None);
    account.close();
    assert_eq!(account.fits(&caps(), "a", usd(20)), Fits::No(Span::Hour));
    assert_eq!(account.spent(None, Span::Day), usd(30));
}

fn correction(id: u64, app: &str, change: Change, at: Hour) -> LedgerEntry {
    let reason = "a wrong bill".to_owned();
    LedgerEntry::Correction(Correction { id, app: app.to_owned(), change, reason, at })
}

#[test]
fn a_correction_counts_once_and_spares_holds_and_others() {
    let mut account = SpendingAccount::default();
    let at = Hour::at(DAY);
    account.turn(at);
    spend(&mut account, 1, "a", 90, Some(90));
    spend(&mut account, 2, "a", 5, None);
    spend(&mut account, 3, "b", 7, Some(7));
    for _ in 0..2 {
        account.write(&correction(1, "a", Change::Subtract(usd(50)), at));
    }
    assert_eq!(account.spent(Some("a"), Span::Month), usd(45));
    assert_eq!(account.spent(None, Span::Hour), usd(52));
    account.write(&correction(2, "a", Change::Subtract(Usd::MOST), at));
    assert_eq!(account.spent(Some("a"), Span::Day), usd(5));
    assert_eq!(account.held(Some("a"), Span::Day), usd(5));
    assert_eq!(account.spent(None, Span::Day), usd(12));
    account.write(&LedgerEntry::Bill { call: 2, usd: usd(1) });
    assert_eq!(account.spent(None, Span::Day), usd(8));
    account.write(&correction(3, "b", Change::Add(usd(3)), at));
    assert_eq!(account.spent(Some("b"), Span::Month), usd(10));
    // of an application that has spent nothing there is nothing to take
    account.write(&correction(4, "c", Change::Subtract(usd(3)), at));
    assert_eq!(account.spent(None, Span::Month), usd(11));
    assert_eq!(account.corrections().count(), 4);
}

#[test]
fn a_late_correction_counts_for_the_spans_that_last() {
    let mut account = SpendingAccount::default();
    account.turn(Hour::at(30 * DAY));
    spend(&mut account, 1, "a", 40, Some(40));
    let before = Hour::at(30 * DAY);
    account.turn(Hour::at(30 * DAY + 3600));
    spend(&mut account, 2, "a", 10, Some(10));
    account.write(&correction(1, "a", Change::Subtract(usd(40)), before));
    assert_eq!(account.spent(Some("a"), Span::Hour), usd(10));
    assert_eq!(account.spent(Some("a"), Span::Day), usd(10));
}

#[test]
fn corrections_are_bounded() {
    let mut account = SpendingAccount::default();
    for id in 0..2 * CORRECTIONS_MAX as u64 {
        account.write(&correction(id, "a", Change::Add(usd(1)), Hour::default()));
    }
    assert_eq!(account.corrections().count(), CORRECTIONS_MAX);
}

#[test]
fn the_number_of_applications_is_bounded() {
    let mut account = SpendingAccount::default();
    for call in 0..SPENDERS_MAX as u64 {
        spend(&mut account, call, &format!("app-{call}"), 0, Some(0));
    }
    // further ones have the account of all that are not listed
    spend(&mut account, 5000, "one-more", 30, Some(30));
    assert_eq!(account.spenders().count(), SPENDERS_MAX + 1);
    assert_eq!(account.spent(Some(UNLISTED), Span::Hour), usd(30));
    assert_eq!(account.fits(&caps(), "one-more", usd(11)), Fits::No(Span::Hour));
    assert_eq!(account.fits(&caps(), "another", usd(11)), Fits::No(Span::Hour));
    assert_eq!(account.left(&caps(), "another", Span::Hour), Some((usd(10), usd(40))));
    assert_eq!(account.fits(&caps(), "app-7", usd(11)), Fits::Yes);
}
