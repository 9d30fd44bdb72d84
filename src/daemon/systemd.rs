//! Notifications to the service manager (systemd): ready, reloading, stopping, the state in one line, and the
//! watchdog. Source: `sd_notify(3)`, `systemd.service(5)`. Without a service manager nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::core::TaskGroup;
use crate::dispatch::Dispatch;
use crate::limits::liveness::{OVERDUE_MAX, STATUS_EVERY, WATCHDOG_SHARE};
use crate::limits::{CHILD_EXIT_MAX, DRAIN_MAX, LAST_CALLS_MAX};
use crate::model::health::Health;

/// Longest time from the request to stop until the end of the process: running jobs end, then the engines,
/// then the connections are closed.
const STOP_MAX: Duration = DRAIN_MAX.saturating_add(CHILD_EXIT_MAX).saturating_add(STOP_EXTRA);
/// For all that has no bound of its own in [`STOP_MAX`].
const STOP_EXTRA: Duration = LAST_CALLS_MAX.saturating_mul(10);

/// Tells that the service is ready, and starts its reports and the feeding of the watchdog.
pub(super) fn start(dispatch: Dispatch) -> TaskGroup {
    let mut watchdog = TaskGroup::new("watchdog");
    watchdog.add(report(dispatch, watchdog.stop.clone()));
    notify_ready();
    watchdog
}

/// The interfaces are reachable, or the configuration has been read again.
pub(super) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`notify_ready`] must follow.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the monotonic clock can't be read"),
    }
}

/// The service stops: running jobs may end.
pub(super) fn notify_stopping() {
    let most = u32::try_from(STOP_MAX.as_micros()).unwrap_or(u32::MAX);
    notify(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(most),
        NotifyState::Status("stopping: running requests end"),
    ]);
}

/// Tells the service manager the state of the service whenever it changes, and feeds its watchdog for as
/// long as the loop of the dispatcher turns and requests have an end by their deadlines.
async fn report(dispatch: Dispatch, stop: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let interval = sd_notify::watchdog_enabled();
    let mut feeder = Feeder { dispatch, status: String::new(), is_unfed: false };
    let most = interval.map_or(STATUS_EVERY, |interval| interval / WATCHDOG_SHARE);
    let pause = most.min(STATUS_EVERY);
    // ends with the service
    loop {
        if feeder.is_alive(most).await {
            notify(&[NotifyState::Watchdog]);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Feeder {
    dispatch: Dispatch,
    /// The state that was told last.
    status: String,
    is_unfed: bool,
}

impl Feeder {
    /// Whether the dispatcher's loop answers within `most` and has no overdue request. Changes are told.
    async fn is_alive(&mut self, most: Duration) -> bool {
        let fault = match tokio::time::timeout(most, self.dispatch.pulse()).await {
            Ok(pulse) => fault_of(pulse),
            Err(_) => Some(format!("the dispatcher has not turned for {} ms", most.as_millis())),
        };
        let is_alive = fault.is_none();
        if let (Some(why), false) = (&fault, self.is_unfed) {
            tracing::error!(why, "the watchdog of the service manager is not fed");
        }
        self.is_unfed = !is_alive;
        let status = fault.unwrap_or_else(|| self.models());
        if status != self.status {
            notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
        is_alive
    }

    fn models(&self) -> String {
        let servers = self.dispatch.backends();
        let ready = servers.iter().filter(|server| server.health == Health::Ready).count();
        format!("{ready} of {} models ready", servers.len())
    }
}

/// The fault that a pulse of the dispatcher shows, if any.
fn fault_of(pulse: Option<Duration>) -> Option<String> {
    let Some(overdue) = pulse else { return Some("the dispatcher has ended".to_owned()) };
    let late = overdue.as_secs();
    (overdue > OVERDUE_MAX)
        .then(|| format!("a request is {late} s past its deadline and has no end"))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager can't be notified");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio::task::JoinSet;

    use super::*;
    use crate::catalog::catalog::Catalog;
    use crate::dispatch::{self, LearnedStore};
    use crate::pressure::level::DevicePressure;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn only_a_loop_that_turns_feeds_the_watchdog() {
        let (_pressure, calm) = watch::channel(DevicePressure::default());
        let catalog = Arc::new(Catalog::default());
        let (dispatch, dispatcher) =
            dispatch::new(catalog, Vec::new(), calm, LearnedStore::default());
        let mut feeder = Feeder { dispatch, status: String::new(), is_unfed: false };
        assert!(!feeder.is_alive(SHORT).await, "the loop does not turn yet");
        assert!(feeder.is_unfed);
        let stop = CancellationToken::new();
        let mut looping = JoinSet::new();
        looping.spawn(dispatcher.run(stop.clone()));
        assert!(feeder.is_alive(SHORT * 100).await);
        assert!(!feeder.is_unfed);
        stop.cancel();
        looping.join_all().await;
        assert!(!feeder.is_alive(SHORT).await, "the loop has ended");
    }

    #[test]
    fn a_request_without_an_end_is_a_sign_of_a_stuck_service() {
        assert_eq!(fault_of(Some(OVERDUE_MAX)), None);
        let why = fault_of(Some(OVERDUE_MAX + Duration::from_secs(1))).unwrap();
        assert!(why.contains("31 s past its deadline"), "{why}");
        assert!(fault_of(None).is_some());
    }
}
