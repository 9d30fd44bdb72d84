//! Requests to read the configuration again, and the state of the configuration in force.

use tokio::sync::{mpsc, oneshot, watch};

use crate::limits::reload::RELOADS_WAITING_MAX;
use crate::status::ConfigStatus;

/// Asks the service to read its configuration again; cheap to clone.
#[derive(Debug, Clone)]
pub struct Reloads {
    requests: mpsc::Sender<oneshot::Sender<ConfigStatus>>,
    status: watch::Receiver<ConfigStatus>,
}

/// The requests: each is answered with the state after the reload.
pub type ReloadRequests = mpsc::Receiver<oneshot::Sender<ConfigStatus>>;

impl Reloads {
    /// Reloads, and the requests to serve; `status` is the state of the configuration.
    pub fn new(status: watch::Receiver<ConfigStatus>) -> (Reloads, ReloadRequests) {
        let (requests, waiting) = mpsc::channel(RELOADS_WAITING_MAX);
        (Reloads { requests, status }, waiting)
    }

    /// Reads the configuration again; returns the state afterwards. None if too many requests wait, or the
    /// service stops.
    pub async fn reload(&self) -> Option<ConfigStatus> {
        let (done, outcome) = oneshot::channel();
        self.requests.try_send(done).ok()?;
        outcome.await.ok()
    }

    /// The present state.
    pub fn status(&self) -> ConfigStatus {
        self.status.borrow().clone()
    }

    /// The state, as it changes.
    pub fn changes(&self) -> watch::Receiver<ConfigStatus> {
        self.status.clone()
    }
}
