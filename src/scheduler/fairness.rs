//! Fairness: recent engine time of each principal, and which had more than its share.
//!
//! The applications that are not listed are one principal, and share among themselves by their names.

use heapless::Vec as Bounded;

use crate::limits::APPS_MAX;
use crate::request::client::{Client, UNLISTED};
use crate::time::Time;

/// Half-life of used engine time.
const HALF_LIFE_MS: f64 = 60_000.0;
/// Factor by which a principal may exceed an equal share, and time that it may exceed it by in any case.
const TOLERANCE: f64 = 1.25;
const SLACK_MS: f64 = 500.0;

/// One principal, or one application that is not listed.
#[derive(Debug)]
struct Share {
    name: String,
    /// Milliseconds of engine time, decayed.
    used: f64,
    /// Jobs that are not settled.
    jobs: usize,
}

/// Those seen lately that share equally.
#[derive(Debug, Default)]
struct Peers(Bounded<Share, APPS_MAX>);

/// All principals and applications that were seen lately.
#[derive(Debug, Default)]
pub(super) struct Shares {
    principals: Peers,
    unlisted: Peers,
    at: Time,
}

/// Index of a principal, and of the application if that is not listed; valid while one of its jobs is not
/// settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AppId {
    /// The principal.
    pub(super) principal: usize,
    /// The application, if it is not listed.
    pub(super) unlisted: Option<usize>,
}

/// The equal shares of engine time, with some tolerance, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct EqualShares {
    principals: f64,
    unlisted: f64,
}

impl Peers {
    fn enter(&mut self, name: &str) -> usize {
        if let Some(at) = self.0.iter().position(|share| share.name == name) {
            self.0[at].jobs += 1;
            return at;
        }
        let share = Share { name: name.to_owned(), used: 0.0, jobs: 1 };
        if let Err(share) = self.0.push(share) {
            // there are more entries than jobs, so one of them has none
            let idle = self.0.iter().enumerate().filter(|(_, share)| share.jobs == 0);
            let least =
                idle.min_by(|(_, a), (_, b)| a.used.total_cmp(&b.used)).map_or(0, |(at, _)| at);
            self.0[least] = share;
            return least;
        }
        self.0.len() - 1
    }

    fn leave(&mut self, at: usize) {
        if let Some(share) = self.0.get_mut(at) {
            share.jobs = share.jobs.saturating_sub(1);
        }
    }

    fn used(&mut self, at: usize, ms: f64) {
        if let Some(share) = self.0.get_mut(at) {
            share.used += ms;
        }
    }

    fn fade(&mut self, left: f64) {
        self.0.iter_mut().for_each(|share| share.used *= left);
    }

    /// The equal share of what those used that have jobs here; without bound if there is only one.
    fn equal_share(&self) -> f64 {
        let active = self.0.iter().filter(|share| share.jobs > 0);
        let (count, used) = active.fold((0, 0.0), |(n, sum), share| (n + 1, sum + share.used));
        if count < 2 { f64::INFINITY } else { used / f64::from(count) * TOLERANCE + SLACK_MS }
    }

    fn is_above(&self, at: usize, share: f64) -> bool {
        self.0.get(at).is_some_and(|own| own.used > share)
    }
}

impl Shares {
    /// A job of this client is taken in.
    pub(super) fn enter(&mut self, client: &Client) -> AppId {
        let is_unlisted = client.principal == UNLISTED;
        AppId {
            principal: self.principals.enter(&client.principal),
            unlisted: is_unlisted.then(|| self.unlisted.enter(&client.app)),
        }
    }

    /// A job of this client is settled.
    pub(super) fn leave(&mut self, app: AppId) {
        self.principals.leave(app.principal);
        app.unlisted.into_iter().for_each(|at| self.unlisted.leave(at));
    }

    /// It used an engine for so many milliseconds.
    pub(super) fn used(&mut self, app: AppId, ms: f64) {
        self.principals.used(app.principal, ms);
        app.unlisted.into_iter().for_each(|at| self.unlisted.used(at, ms));
    }

    /// Decays the used time.
    pub(super) fn fade(&mut self, now: Time) {
        let ms = now.since(self.at).as_secs_f64() * 1e3;
        if ms < HALF_LIFE_MS / 60.0 {
            return;
        }
        self.at = now;
        let left = 0.5_f64.powf(ms / HALF_LIFE_MS);
        self.principals.fade(left);
        self.unlisted.fade(left);
    }

    /// The present equal shares.
    pub(super) fn equal_shares(&self) -> EqualShares {
        EqualShares {
            principals: self.principals.equal_share(),
            unlisted: self.unlisted.equal_share(),
        }
    }

    /// Whether a client has had more than these.
    pub(super) fn is_above(&self, app: AppId, shares: EqualShares) -> bool {
        self.principals.is_above(app.principal, shares.principals)
            || app.unlisted.is_some_and(|at| self.unlisted.is_above(at, shares.unlisted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_principal_is_never_above_its_share() {
        let mut shares = Shares::default();
        let only = shares.enter(&Client::known("a"));
        shares.used(only, 1e9);
        assert!(!shares.is_above(only, shares.equal_shares()));
        let other = shares.enter(&Client::known("b"));
        assert!(shares.is_above(only, shares.equal_shares()));
        assert!(!shares.is_above(other, shares.equal_shares()));
        shares.leave(other);
        assert!(!shares.is_above(only, shares.equal_shares()));
    }

    #[test]
    fn names_that_are_not_listed_have_one_share_and_divide_it() {
        let mut shares = Shares::default();
        let camera = shares.enter(&Client::known("camera"));
        let names: Vec<AppId> =
            (0..50).map(|n| shares.enter(&Client::unlisted(format!("name-{n}")))).collect();
        shares.used(camera, 100_000.0);
        for name in &names {
            shares.used(*name, 10_000.0);
        }
        // together 500 s, of which one of two principals may have 300
        assert!(names.iter().all(|name| shares.is_above(*name, shares.equal_shares())));
        assert!(!shares.is_above(camera, shares.equal_shares()));
        shares.leave(camera);
        shares.used(names[0], 50_000.0);
        let above = |name: &AppId| shares.is_above(*name, shares.equal_shares());
        assert_eq!(names.iter().filter(|name| above(name)).count(), 1);
    }

    #[test]
    fn used_time_decays() {
        let mut shares = Shares::default();
        let (a, _) = (shares.enter(&Client::known("a")), shares.enter(&Client::unlisted("b")));
        shares.used(a, 60_000.0);
        assert!(shares.is_above(a, shares.equal_shares()));
        shares.fade(Time(10 * 60 * 1_000_000));
        assert!(!shares.is_above(a, shares.equal_shares()));
    }

    #[test]
    fn applications_without_jobs_make_room() {
        let mut shares = Shares::default();
        let pass = |shares: &mut Shares, name: String| {
            let app = shares.enter(&Client::unlisted(name));
            shares.leave(app);
        };
        for n in 0..APPS_MAX * 2 {
            pass(&mut shares, format!("app-{n}"));
        }
        let kept = shares.enter(&Client::unlisted("kept"));
        shares.used(kept, 5.0);
        for n in 0..APPS_MAX * 2 {
            pass(&mut shares, format!("late-{n}"));
        }
        assert_eq!(shares.unlisted.0[kept.unlisted.unwrap()].name, "kept");
    }
}
