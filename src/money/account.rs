//! The spending account: totals by application and calendar span, with holds of running calls.
//!
//! A *hold* is the most that a call can cost. It counts as spent from before the call until its
//! *bill* is known, which then counts in its place. A call of which no bill comes has cost its hold.
//!
//! The hour that counts is the latest that the clock has shown. A clock that is more than
//! [`CLOCK_AHEAD_MAX`] behind it was wrong before: its hour counts again, and what was spent meanwhile is
//! carried into the present hour, day and month. Each span remembers the one before it, so that a clock
//! that jumps between two times, as on a board without a battery for it, finds what was spent in either.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Caps, Hour, Limits, SPANS, Span, Usd};
use crate::limits::{
    CLOCK_AHEAD_MAX, CLOCK_BEHIND_TOLD, CLOCK_EARLIEST, CORRECTIONS_MAX, SPENDERS_MAX,
};
use crate::request::client::UNLISTED;

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
    /// The operator corrects what counts as spent.
    Correction(Correction),
}

/// A correction of what counts as spent by an application, in the present hour, day and month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// Its number, at random: a correction counts once, however often it is read.
    pub id: u64,
    /// The application.
    pub app: String,
    /// By how much.
    pub change: Change,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Hour,
}

/// The change of a [`Correction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// So much less was spent; holds of calls under way stay.
    Subtract(Usd),
    /// So much more was spent.
    Add(Usd),
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
    /// The span that counted before, with all that was spent since it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<(u32, Usd)>,
}

/// How the clock agrees with the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockState {
    /// It does.
    #[default]
    Agrees,
    /// The clock is so many hours behind the account: the present spans last until it has caught up.
    Behind(u32),
    /// The account was so many hours ahead of the clock, and counts by the clock again.
    SetBack(u32),
}

impl fmt::Display for ClockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClockState::Agrees => write!(f, "the clock agrees with the ledger"),
            ClockState::Behind(hours) => write!(
                f,
                "the clock is {hours} hours behind the ledger: the budget's present hour, day and month \
                 last until it has caught up; if the ledger is wrong, run pilotlight budget correct"
            ),
            ClockState::SetBack(hours) => write!(
                f,
                "the ledger was {hours} hours ahead of the clock: what was spent meanwhile counts in the \
                 present hour, day and month; if that is wrong, run pilotlight budget correct"
            ),
        }
    }
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
    /// The hours by which the account was ahead of the clock when it was set back, for the rest of the
    /// month.
    #[serde(skip_serializing_if = "Option::is_none")]
    set_back: Option<u32>,
    /// The hour that the clock shows.
    #[serde(skip)]
    clock: Option<Hour>,
    /// The last [`CORRECTIONS_MAX`] corrections.
    corrections: VecDeque<Correction>,
}

/// Whether a clock that shows this hour has been set since the board was started.
pub fn is_set(hour: Hour) -> bool {
    hour.number(Span::Hour) >= CLOCK_EARLIEST
}

impl Used {
    /// What was spent in the span of this number.
    fn of(&self, number: u32) -> Usd {
        match self.before {
            _ if self.span == number => self.usd,
            Some((span, usd)) if span == number => usd,
            Some(_) | None => Usd::NONE,
        }
    }

    /// Begins the span of this number, or goes back to it, with these expenses if it is a new one.
    fn enter(&mut self, number: u32, carried: Usd) {
        if self.span == number {
            return;
        }
        let usd = match self.before {
            Some((span, usd)) if span == number => usd,
            Some(_) | None => carried,
        };
        *self = Used { span: number, usd, before: Some((self.span, self.usd)) };
    }

    fn add(&mut self, number: u32, usd: Usd) {
        self.enter(number, Usd::NONE);
        self.change(|known| known.plus(usd));
    }

    /// Changes the present span and the one before it, which counts what was spent since.
    fn change(&mut self, to: impl Fn(Usd) -> Usd) {
        self.usd = to(self.usd);
        self.before = self.before.map(|(span, usd)| (span, to(usd)));
    }

    /// Puts a bill in the place of a hold of the span of this number.
    fn replace(&mut self, number: u32, hold: Usd, bill: Usd) {
        let to = |known: Usd| known.minus(hold).plus(bill);
        if self.span == number {
            self.change(to);
        } else {
            let changed = |(span, usd)| (span, if span == number { to(usd) } else { usd });
            self.before = self.before.map(changed);
        }
    }
}

impl Totals {
    fn spent(&self, at: Hour, nth: usize) -> Usd {
        self.0[nth].of(at.number(SPANS[nth]))
    }

    fn add(&mut self, at: Hour, usd: Usd) {
        for (used, span) in self.0.iter_mut().zip(SPANS) {
            used.add(at.number(span), usd);
        }
    }

    /// Counts all that is counted in the present spans in those of this hour.
    fn carry(&mut self, at: Hour) {
        for (used, span) in self.0.iter_mut().zip(SPANS) {
            used.enter(at.number(span), used.usd);
        }
    }

    /// Puts a bill in the place of a hold of that hour.
    fn replace(&mut self, at: Hour, hold: Usd, bill: Usd) {
        for (used, span) in self.0.iter_mut().zip(SPANS) {
            used.replace(at.number(span), hold, bill);
        }
    }

    /// Takes these amounts off the spans of that hour which still last.
    fn take(&mut self, at: Hour, amounts: [Usd; 3]) {
        for ((used, span), usd) in self.0.iter_mut().zip(SPANS).zip(amounts) {
            if used.span == at.number(span) {
                used.change(|known| known.minus(usd));
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
    /// Takes note of the hour that the clock shows. A clock that is set back does not give anything back:
    /// the later hour lasts until the clock has reached it again, or, if that is too far, what was spent
    /// counts in the spans of the earlier one.
    pub fn turn(&mut self, hour: Hour) {
        self.clock = Some(hour);
        self.advance(hour);
    }

    fn advance(&mut self, hour: Hour) {
        let before = self.now;
        let ahead = before.hours_after(hour);
        if ahead > CLOCK_AHEAD_MAX || (!is_set(before) && is_set(hour)) {
            self.device.carry(hour);
            self.apps.values_mut().for_each(|account| account.carry(hour));
            self.now = hour;
            self.set_back = (ahead > 0).then_some(ahead);
            return;
        }
        self.now = before.max(hour);
        let present = self.now.number(Span::Month);
        // after a jump the clock may be set back to the month before
        let has_jumped = hour.hours_after(before) > CLOCK_AHEAD_MAX;
        if before.number(Span::Month) != present && !has_jumped {
            self.apps.retain(|_, account| account.0[2].span == present);
            self.set_back = None;
        }
    }

    /// How the clock agrees with the account.
    pub fn clock_state(&self) -> ClockState {
        let behind = self.hours_behind();
        match self.set_back {
            _ if behind >= CLOCK_BEHIND_TOLD => ClockState::Behind(behind),
            Some(hours) => ClockState::SetBack(hours),
            None => ClockState::Agrees,
        }
    }

    /// The hours that the clock is behind the hour that counts.
    pub fn hours_behind(&self) -> u32 {
        self.clock.map_or(0, |clock| self.now.hours_after(clock))
    }

    /// The hour that counts.
    pub fn now(&self) -> Hour {
        self.now
    }

    /// Whether the application may spend this.
    pub fn fits(&self, caps: &Caps, app: &str, usd: Usd) -> Fits {
        let app = self.account_of(app);
        let own = self.apps.get(app);
        let none = Totals::default();
        let device = self.device.fits(&caps.device, self.now, usd, self.open_of(None));
        let own = own.unwrap_or(&none).fits(caps.of(app), self.now, usd, self.open_of(Some(app)));
        match (device, own) {
            (Fits::No(span), _) | (_, Fits::No(span)) => Fits::No(span),
            (Fits::Later, _) | (_, Fits::Later) => Fits::Later,
            (Fits::Yes, Fits::Yes) => Fits::Yes,
        }
    }

    /// The account of an application: its own, or, if there are so many that it can have none, the one of
    /// all that are not listed.
    fn account_of<'a>(&self, app: &'a str) -> &'a str {
        let has_room = self.apps.len() < SPENDERS_MAX;
        if has_room || self.apps.contains_key(app) { app } else { UNLISTED }
    }

    /// What is left for the application of this span's caps, and the lowest of these caps; none if
    /// there is no cap on the span. Holds count as spent.
    pub fn left(&self, caps: &Caps, app: &str, span: Span) -> Option<(Usd, Usd)> {
        let app = self.account_of(app);
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
        LedgerEntry::Hold { call, app: self.account_of(app).to_owned(), usd, at: self.now }
    }

    /// Applies an entry. A bill without a hold is passed over, a second hold of the same name adds to
    /// what was spent.
    pub fn write(&mut self, entry: &LedgerEntry) {
        match entry {
            LedgerEntry::Hold { call, app, usd, at } => {
                self.advance(*at);
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
            LedgerEntry::Correction(correction) => self.correct(correction),
        }
    }

    /// Applies a correction, unless it has been applied.
    fn correct(&mut self, correction: &Correction) {
        if self.has(correction) {
            return;
        }
        let Correction { app, change, at, .. } = correction;
        self.advance(*at);
        match change {
            Change::Add(usd) => {
                self.device.add(self.now, *usd);
                let app = self.account_of(app).to_owned();
                self.apps.entry(app).or_default().add(self.now, *usd);
            }
            Change::Subtract(usd) => {
                let open = self.open_of(Some(app));
                if let Some(own) = self.apps.get_mut(app) {
                    let amounts =
                        [0, 1, 2].map(|nth| own.spent(*at, nth).minus(open[nth]).min(*usd));
                    own.take(*at, amounts);
                    self.device.take(*at, amounts);
                }
            }
        }
        if self.corrections.len() >= CORRECTIONS_MAX {
            self.corrections.pop_front();
        }
        self.corrections.push_back(correction.clone());
    }

    /// Whether this correction has been applied.
    pub fn has(&self, correction: &Correction) -> bool {
        self.corrections.iter().any(|known| known.id == correction.id)
    }

    /// The last corrections, in the order in which they were applied.
    pub fn corrections(&self) -> impl Iterator<Item = &Correction> {
        self.corrections.iter()
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

    /// What is held for calls under way in a span: of all, or of one application.
    pub fn held(&self, app: Option<&str>, span: Span) -> Usd {
        let nth = SPANS.iter().position(|other| *other == span).unwrap_or(0);
        self.open_of(app)[nth]
    }

    /// Applications that have spent something this month.
    pub fn spenders(&self) -> impl Iterator<Item = &str> {
        self.apps.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
