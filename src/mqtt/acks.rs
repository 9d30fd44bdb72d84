//! Acknowledgements: each received QoS 1 message is acknowledged explicitly, in the order of receipt.
//!
//! Packet identifiers start again with each connection, so an acknowledgement carries the number of
//! its connection (the generation) and is ignored once that connection has ended.

use std::collections::VecDeque;

use bytes::Bytes;
use rumqttc::mqttbytes::v5::Publish;
use tokio::sync::mpsc;

/// The end of a received message, sent to the task that owns the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SettledMessage {
    pub(super) generation: u64,
    pub(super) packet: u16,
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
    /// Generation and packet identifier; none once settled, and none for QoS 0.
    owed: Option<(u64, u16)>,
    to: mpsc::Sender<SettledMessage>,
}

impl AckGuard {
    /// The guard of a message; `owed` is none if its QoS asks for no acknowledgement.
    pub(super) fn new(owed: Option<(u64, u16)>, to: mpsc::Sender<SettledMessage>) -> AckGuard {
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
        if let Some((generation, packet)) = self.owed.take() {
            // the channel holds the unsettled messages of two connections
            let _ = self.to.try_send(SettledMessage { generation, packet, outcome });
        }
    }
}

impl Drop for AckGuard {
    fn drop(&mut self) {
        if let Some((_, packet)) = self.owed {
            tracing::warn!(packet, "a message was dropped without an acknowledgement");
            self.settle(Settlement::Left);
        }
    }
}

/// The unsettled messages of one connection, in the order of receipt.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    messages: VecDeque<(Publish, bool)>,
}

impl Unsettled {
    /// Adds a received message of QoS 1.
    pub(super) fn received(&mut self, publish: Publish) {
        self.messages.push_back((Publish { payload: Bytes::new(), ..publish }, false));
    }

    /// Notes the outcome of a message. A message that is left no longer holds up those behind it.
    pub(super) fn settle(&mut self, packet: u16, outcome: Settlement) {
        let unsettled = |(publish, is_done): &(Publish, bool)| publish.pkid == packet && !is_done;
        let Some(at) = self.messages.iter().position(unsettled) else { return };
        match outcome {
            Settlement::Acknowledged => {
                if let Some((_, is_done)) = self.messages.get_mut(at) {
                    *is_done = true;
                }
            }
            Settlement::Left => drop(self.messages.remove(at)),
        }
    }

    /// Acknowledges with `ack`, in the order of receipt [MQTT-4.6.0-2], up to the first message that
    /// is not settled. Stops if `ack` fails; the next settled message tries again.
    pub(super) fn acknowledge(&mut self, mut ack: impl FnMut(&Publish) -> bool) {
        while let Some((publish, true)) = self.messages.front() {
            if !ack(publish) {
                return;
            }
            self.messages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::mqttbytes::QoS;

    use super::*;

    fn guard(packet: u16, to: &mpsc::Sender<SettledMessage>) -> AckGuard {
        AckGuard::new(Some((3, packet)), to.clone())
    }

    #[test]
    fn only_an_explicit_ack_acknowledges() {
        let (to, mut settled) = mpsc::channel(4);
        let mut outcome = || settled.try_recv().map(|s: SettledMessage| (s.packet, s.outcome)).ok();
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

    #[test]
    fn messages_are_acknowledged_in_the_order_of_receipt() {
        let mut unsettled = Unsettled::default();
        for packet in 1..=5 {
            let mut publish = Publish::new("t", QoS::AtLeastOnce, "x", None);
            publish.pkid = packet;
            unsettled.received(publish);
        }
        let mut check = |packet: u16, outcome: Settlement, expected: &[u16]| {
            unsettled.settle(packet, outcome);
            let mut sent = Vec::new();
            unsettled.acknowledge(|publish| {
                sent.push(publish.pkid);
                true
            });
            assert_eq!(sent, expected, "{packet}");
        };
        check(2, Settlement::Acknowledged, &[]);
        check(1, Settlement::Acknowledged, &[1, 2]);
        check(4, Settlement::Acknowledged, &[]);
        // a message that was left is never acknowledged and holds up none
        check(3, Settlement::Left, &[4]);
        check(3, Settlement::Acknowledged, &[]);
        check(5, Settlement::Acknowledged, &[5]);
    }

    #[test]
    fn an_acknowledgement_without_room_is_tried_again() {
        let mut unsettled = Unsettled::default();
        let mut publish = Publish::new("t", QoS::AtLeastOnce, "x", None);
        publish.pkid = 1;
        unsettled.received(publish);
        unsettled.settle(1, Settlement::Acknowledged);
        unsettled.acknowledge(|_| false);
        let mut sent = 0;
        unsettled.acknowledge(|_| {
            sent += 1;
            true
        });
        assert_eq!(sent, 1);
    }
}
