//! The spending account: totals by application and calendar span, with holds of running calls.
//!
//! A *hold* is the most that a call can cost. It counts as spent from before the call until its
//! *bill* is known, which then counts in its place. A call of which no bill comes has cost its hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Caps, Hour, Limits, SPANS, Span, Usd};
use crate::limits::SPENDERS_MAX;

/// One line of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerEntry {
    /// A call begins.
    Hold {
        /// Its number, unique among open calls.
        call: u64,
        /// The application.
        app: String,
        /// The most that it can cost.
        usd: Usd,
        /// When.
        at: Hour,
    },
    /// A call has ended.
    Bill {
        /// Its number.
        call: u64,
        /// What it has cost.
        usd: Usd,
    },
}

/// Whether an amount may be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fits {
    /// Now.
    Yes,
    /// If calls under way turn out to cost less than they could.
    Later,
    /// Not before this span ends.
    No(Span),
}

/// What was spent in the present spans, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Totals([Used; 3]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Used {
    /// Which span it is.
    span: u32,
    /// With holds.
    usd: Usd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hold {
    app: String,
    usd: Usd,
    at: Hour,
}

/// The account.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SpendingAccount {
    now: Hour,
    device: Totals,
    apps: BTreeMap<String, Totals>,
    open: BTreeMap<u64, Hold>,
}

impl Totals {
    fn spent(&self, at: Hour, nth: usize) -> Usd {
        let used = self.0[nth];
        if used.span == at.number(SPANS[nth]) { used.usd } else { Usd::NONE }
    }

    fn add(&mut self, at: Hour, usd: Usd) {
        for (used, span) in self.0.iter_mut().zip(SPANS) {
            let number = at.number(span);
            if used.span != number {
                *used = Used { span: number, usd: Usd::NONE };
            }
            used.usd = used.usd.plus(usd);
        }
    }

    /// Puts a bill in the place of a hold of that hour, in the spans that still last.
    fn replace(&mut self, at: Hour, hold: Usd, bill: Usd) {
        for (used, span) in self.0.iter_mut().zip(SPANS) {
            if used.span == at.number(span) {
                used.usd = used.usd.minus(hold).plus(bill);
            }
        }
    }

    fn fits(&self, limits: &Limits, at: Hour, usd: Usd, open: [Usd; 3]) -> Fits {
        let mut fits = Fits::Yes;
        for (nth, span) in SPANS.into_iter().enumerate() {
            let Some(most) = limits.of(span) else { continue };
            let spent = self.spent(at, nth);
            if spent.plus(usd) <= most {
                continue;
            }
            if spent.minus(open[nth]).plus(usd) > most {
                return Fits::No(span);
            }
            fits = Fits::Later;
        }
        fits
    }
}

impl SpendingAccount {
    /// Takes note of the hour. A clock that is set back does not give anything back: the later hour
    /// lasts until the clock has reached it again.
    pub fn turn(&mut self, hour: Hour) {
        let month = self.now.number(Span::Month);
        self.now = self.now.max(hour);
        let present = self.now.number(Span::Month);
        if month != present {
            self.apps.retain(|_, account| account.0[2].span == present);
        }
    }

    /// The hour that counts.
    pub fn now(&self) -> Hour {
        self.now
    }

    /// Whether the application may spend this.
    pub fn fits(&self, caps: &Caps, app: &str, usd: Usd) -> Fits {
        let own = self.apps.get(app);
        if own.is_none() && self.apps.len() >= SPENDERS_MAX {
            return Fits::No(Span::Month);
        }
        let none = Totals::default();
        let device = self.device.fits(&caps.device, self.now, usd, self.open_of(None));
        let own = own.unwrap_or(&none).fits(caps.of(app), self.now, usd, self.open_of(Some(app)));
        match (device, own) {
            (Fits::No(span), _) | (_, Fits::No(span)) => Fits::No(span),
            (Fits::Later, _) | (_, Fits::Later) => Fits::Later,
            (Fits::Yes, Fits::Yes) => Fits::Yes,
        }
    }

    /// What is left for the application of this span's caps, and the lowest of these caps; none if
    /// there is no cap on the span. Holds count as spent.
    pub fn left(&self, caps: &Caps, app: &str, span: Span) -> Option<(Usd, Usd)> {
        let nth = SPANS.iter().position(|other| *other == span)?;
        let left = |account: Option<&Totals>, limits: &Limits| {
            let most = limits.of(span)?;
            let spent = account.map_or(Usd::NONE, |account| account.spent(self.now, nth));
            Some((most.minus(spent), most))
        };
        let device = left(Some(&self.device), &caps.device);
        let own = left(self.apps.get(app), caps.of(app));
        let both = device.into_iter().chain(own);
        both.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)))
    }

    /// Holds of calls under way in the present spans: of all, or of one application.
    fn open_of(&self, app: Option<&str>) -> [Usd; 3] {
        let of = |hold: &&Hold| app.is_none_or(|app| hold.app == app);
        SPANS.map(|span| {
            let present = |hold: &&Hold| hold.at.number(span) == self.now.number(span);
            let held = self.open.values().filter(of).filter(present).map(|hold| hold.usd);
            held.fold(Usd::NONE, Usd::plus)
        })
    }

    /// The entry of a call that begins now.
    pub fn hold(&self, call: u64, app: &str, usd: Usd) -> LedgerEntry {
        LedgerEntry::Hold { call, app: app.to_owned(), usd, at: self.now }
    }

    /// Applies an entry. A bill without a hold is passed over, a second hold of the same name adds to
    /// what was spent.
    pub fn write(&mut self, entry: &LedgerEntry) {
        match entry {
            LedgerEntry::Hold { call, app, usd, at } => {
                self.turn(*at);
                let at = self.now;
                self.device.add(at, *usd);
                self.apps.entry(app.clone()).or_default().add(at, *usd);
                self.open.insert(*call, Hold { app: app.clone(), usd: *usd, at });
            }
            LedgerEntry::Bill { call, usd } => {
                let Some(hold) = self.open.remove(call) else { return };
                self.device.replace(hold.at, hold.usd, *usd);
                if let Some(account) = self.apps.get_mut(&hold.app) {
                    account.replace(hold.at, hold.usd, *usd);
                }
            }
        }
    }

    /// Closes calls of which no bill will come at their hold.
    pub fn close(&mut self) {
        self.open.clear();
    }

    /// What was spent in a span, holds included: by all, or by one application.
    pub fn spent(&self, app: Option<&str>, span: Span) -> Usd {
        let account = match app {
            None => Some(&self.device),
            Some(app) => self.apps.get(app),
        };
        let nth = SPANS.iter().position(|other| *other == span).unwrap_or(0);
        account.map_or(Usd::NONE, |account| account.spent(self.now, nth))
    }

    /// Applications that have spent something this month.
    #[cfg(test)]
    fn spenders(&self) -> impl Iterator<Item = &str> {
        self.apps.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn what_was_open_at_the_end_has_cost_the_most() {
        let mut account = SpendingAccount::default();
        spend(&mut account, 1, "a", 30, None);
        account.close();
        assert_eq!(account.fits(&caps(), "a", usd(20)), Fits::No(Span::Hour));
        assert_eq!(account.spent(None, Span::Day), usd(30));
    }

    #[test]
    fn the_number_of_applications_is_bounded() {
        let mut account = SpendingAccount::default();
        for call in 0..SPENDERS_MAX as u64 {
            spend(&mut account, call, &format!("app-{call}"), 0, Some(0));
        }
        assert_eq!(account.fits(&caps(), "one-more", usd(1)), Fits::No(Span::Month));
        assert_eq!(account.fits(&caps(), "app-7", usd(1)), Fits::Yes);
    }
}
