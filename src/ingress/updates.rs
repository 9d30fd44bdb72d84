//! Requests of programs of this device about signed updates: to take one, to check one, and to return to
//! the configuration before.

use tokio::sync::{mpsc, oneshot};

use crate::limits::fleet::UPDATE_REQUESTS_MAX;
use crate::status::ConfigStatus;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateAction {
    /// Check and try this `update.signed`.
    Apply(Vec<u8>),
    /// Check it, and change nothing.
    Check(Vec<u8>),
    /// Return to the configuration before the last one, or end the trial that is running.
    RollBack {
        /// Also accept updates again whose versions are higher than that of the restored configuration.
        steps_down: bool,
    },
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateFailure {
    /// The code of a refusal.
    pub code: Option<&'static str>,
    /// Why, with the remedy.
    pub reason: String,
}

/// What is asked for, and where the answer goes: the state afterwards. An update that was applied may still
/// be on trial.
#[derive(Debug)]
pub struct UpdateRequest {
    /// What is asked for.
    pub action: UpdateAction,
    /// Takes the answer.
    pub done: oneshot::Sender<Result<ConfigStatus, UpdateFailure>>,
}

/// Asks the service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Updates(mpsc::Sender<UpdateRequest>);

impl Updates {
    /// The requests to serve, and the sender for them. If nobody serves them, remote configurations are not
    /// in use.
    pub fn new() -> (Updates, mpsc::Receiver<UpdateRequest>) {
        let (requests, waiting) = mpsc::channel(UPDATE_REQUESTS_MAX);
        (Updates(requests), waiting)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// If it was not done.
    pub async fn ask(&self, action: UpdateAction) -> Result<ConfigStatus, UpdateFailure> {
        let failed = |reason: &str| UpdateFailure { code: None, reason: reason.to_owned() };
        let (done, answer) = oneshot::channel();
        self.0.try_send(UpdateRequest { action, done }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => failed("too many requests wait; retry later"),
            mpsc::error::TrySendError::Closed(_) => {
                failed(
                    "this device takes no signed updates: PILOTLIGHT_TRUST names no trust policy, or it \
                     or the state folder can't be used, which is in the log",
                )
            }
        })?;
        answer.await.unwrap_or_else(|_| Err(failed("the service is stopping")))
    }
}
