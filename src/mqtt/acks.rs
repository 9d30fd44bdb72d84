//! Acknowledgements: each received QoS 1 message is acknowledged explicitly.
//!
//! Packet identifiers are used again, so an acknowledgement carries a number of the service's own, which
//! never is.

use tokio::sync::mpsc;

/// The end of a received message, sent to the task that owns the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SettledMessage {
    /// See [`ReceiveWindow::received`](super::window::ReceiveWindow::received).
    pub(super) number: u64,
    pub(super) outcome: Settlement,
}

/// Whether a received message is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    /// It is acknowledged in its turn.
    Acknowledged,
    /// It is not: the broker delivers it again when the session resumes.
    Left,
}

/// The duty to settle one received message: acknowledge it, or leave it to the broker.
///
/// A guard that is dropped without either does not acknowledge: the broker delivers the message
/// again when the session resumes, and the log has a warning.
#[derive(Debug)]
#[must_use = "an unacknowledged message is delivered again"]
pub struct AckGuard {
    /// The message's number; none once settled, and none for QoS 0.
    owed: Option<u64>,
    to: mpsc::Sender<SettledMessage>,
}

impl AckGuard {
    /// The guard of a message; `owed` is none if its QoS asks for no acknowledgement.
    pub(super) fn new(owed: Option<u64>, to: mpsc::Sender<SettledMessage>) -> AckGuard {
        AckGuard { owed, to }
    }

    /// Acknowledges the message: the broker will not deliver it again.
    pub fn ack(mut self) {
        self.settle(Settlement::Acknowledged);
    }

    /// Leaves the message unacknowledged, as at shutdown: the broker delivers it to the next start,
    /// or to another subscriber of a shared subscription.
    pub fn leave(mut self) {
        self.settle(Settlement::Left);
    }

    fn settle(&mut self, outcome: Settlement) {
        if let Some(number) = self.owed.take() {
            // the channel holds all messages in hand, and those of the connection before
            let _ = self.to.try_send(SettledMessage { number, outcome });
        }
    }
}

impl Drop for AckGuard {
    fn drop(&mut self) {
        if self.owed.is_some() {
            tracing::warn!("a message was dropped without an acknowledgement");
            self.settle(Settlement::Left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(number: u64, to: &mpsc::Sender<SettledMessage>) -> AckGuard {
        AckGuard::new(Some(number), to.clone())
    }

    #[test]
    fn only_an_explicit_ack_acknowledges() {
        let (to, mut settled) = mpsc::channel(4);
        let mut outcome = || settled.try_recv().map(|s: SettledMessage| (s.number, s.outcome)).ok();
        guard(7, &to).ack();
        assert_eq!(outcome(), Some((7, Settlement::Acknowledged)));
        guard(8, &to).leave();
        assert_eq!(outcome(), Some((8, Settlement::Left)));
        drop(guard(9, &to));
        assert_eq!(outcome(), Some((9, Settlement::Left)));
        // QoS 0 needs no acknowledgement
        AckGuard::new(None, to.clone()).ack();
        assert_eq!(outcome(), None);
    }
}
