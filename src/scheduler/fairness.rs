//! Fairness: recent engine time of each application, and which had more than its share.

use heapless::Vec as Bounded;

use crate::limits::APPS_MAX;
use crate::time::Time;

/// Half-life of used engine time.
const HALF_LIFE_MS: f64 = 60_000.0;
/// Factor by which an application may exceed an equal share, and time that it may exceed it by
/// in any case.
const TOLERANCE: f64 = 1.25;
const SLACK_MS: f64 = 20_000.0;

/// One application.
#[derive(Debug)]
struct App {
    name: String,
    /// Milliseconds of engine time, decayed.
    used: f64,
    /// Jobs that are not settled.
    jobs: usize,
}

/// All applications that were seen lately.
#[derive(Debug, Default)]
pub(super) struct Shares {
    apps: Bounded<App, APPS_MAX>,
    at: Time,
}

/// Index of an application, valid while one of its jobs is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AppId(usize);

impl Shares {
    /// A job of this application is taken in.
    pub(super) fn enter(&mut self, name: &str) -> AppId {
        if let Some(at) = self.apps.iter().position(|app| app.name == name) {
            self.apps[at].jobs += 1;
            return AppId(at);
        }
        let app = App { name: name.to_owned(), used: 0.0, jobs: 1 };
        if let Err(app) = self.apps.push(app) {
            // there are more applications than jobs, so one of them has none
            let idle = self.apps.iter().enumerate().filter(|(_, app)| app.jobs == 0);
            let least =
                idle.min_by(|(_, a), (_, b)| a.used.total_cmp(&b.used)).map_or(0, |(at, _)| at);
            self.apps[least] = app;
            return AppId(least);
        }
        AppId(self.apps.len() - 1)
    }

    /// A job of this application is settled.
    pub(super) fn leave(&mut self, app: AppId) {
        if let Some(app) = self.apps.get_mut(app.0) {
            app.jobs = app.jobs.saturating_sub(1);
        }
    }

    /// It used an engine for so many milliseconds.
    pub(super) fn used(&mut self, app: AppId, ms: f64) {
        if let Some(app) = self.apps.get_mut(app.0) {
            app.used += ms;
        }
    }

    /// Decays the used time.
    pub(super) fn fade(&mut self, now: Time) {
        let ms = now.since(self.at).as_secs_f64() * 1e3;
        if ms < HALF_LIFE_MS / 60.0 {
            return;
        }
        self.at = now;
        let left = 0.5_f64.powf(ms / HALF_LIFE_MS);
        for app in &mut self.apps {
            app.used *= left;
        }
    }

    /// The equal share of what those used that have jobs here, with some tolerance, in
    /// milliseconds; without bound if there is only one.
    pub(super) fn equal_share(&self) -> f64 {
        let active = self.apps.iter().filter(|app| app.jobs > 0);
        let (count, used) = active.fold((0, 0.0), |(n, sum), app| (n + 1, sum + app.used));
        if count < 2 { f64::INFINITY } else { used / f64::from(count) * TOLERANCE + SLACK_MS }
    }

    /// Whether it has had more than this.
    pub(super) fn is_above(&self, app: AppId, share: f64) -> bool {
        self.apps.get(app.0).is_some_and(|app| app.used > share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_application_is_never_above_its_share() {
        let mut shares = Shares::default();
        let only = shares.enter("a");
        shares.used(only, 1e9);
        assert!(!shares.is_above(only, shares.equal_share()));
        let other = shares.enter("b");
        assert!(shares.is_above(only, shares.equal_share()));
        assert!(!shares.is_above(other, shares.equal_share()));
        shares.leave(other);
        assert!(!shares.is_above(only, shares.equal_share()));
    }

    #[test]
    fn used_time_decays() {
        let mut shares = Shares::default();
        let (a, _) = (shares.enter("a"), shares.enter("b"));
        shares.used(a, 60_000.0);
        assert!(shares.is_above(a, shares.equal_share()));
        shares.fade(Time(10 * 60 * 1_000_000));
        assert!(!shares.is_above(a, shares.equal_share()));
    }

    #[test]
    fn applications_without_jobs_make_room() {
        let mut shares = Shares::default();
        for n in 0..APPS_MAX * 2 {
            let app = shares.enter(&format!("app-{n}"));
            shares.leave(app);
        }
        let kept = shares.enter("kept");
        shares.used(kept, 5.0);
        for n in 0..APPS_MAX * 2 {
            let app = shares.enter(&format!("late-{n}"));
            shares.leave(app);
        }
        assert_eq!(shares.apps[kept.0].name, "kept");
    }
}
