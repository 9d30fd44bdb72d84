//! Receive window: acknowledgements in the order of receipt, and early ones for what takes long.
//!
//! A broker keeps back further messages while [`MQTT_RECEIVE_MAX`] are not acknowledged, and they have
//! to be acknowledged in the order of receipt [MQTT-4.6.0-2]: a request that takes long would keep
//! everybody's requests at the broker. While half of the window is taken, the oldest unfinished request
//! is therefore written to the [`Spool`] and acknowledged before its answer. After a restart it comes
//! from there.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use rumqttc::mqttbytes::v5::Publish;
use tokio::task::JoinSet;

use super::acks::{SettledMessage, Settlement};
use super::spool::{FileId, Spool, SpooledMessage};
use crate::limits::{MQTT_HELD_BYTES_MAX, MQTT_RECEIVE_MAX};

/// Messages in hand: those of the present connection, and those on disk.
pub(super) struct ReceiveWindow {
    next: u64,
    /// Not acknowledged, in the order of receipt.
    held: VecDeque<Held>,
    /// Payload bytes of these.
    held_bytes: usize,
    spool: Option<Spool>,
    /// Acknowledged and not finished.
    spooled: BTreeMap<u64, FileId>,
    /// The write that is under way; one at a time.
    writing: JoinSet<(u64, FileId, io::Result<()>)>,
}

struct Held {
    number: u64,
    publish: Publish,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unfinished,
    /// It is being written to disk.
    Writing,
    /// It may be acknowledged in its turn.
    Done,
}

impl ReceiveWindow {
    pub(super) fn new(spool: Option<Spool>) -> ReceiveWindow {
        let (held, spooled, writing) = (VecDeque::new(), BTreeMap::new(), JoinSet::new());
        ReceiveWindow { next: 0, held, held_bytes: 0, spool, spooled, writing }
    }

    /// The messages that an earlier process acknowledged and did not finish, each with its number.
    pub(super) fn restore(&mut self) -> Vec<(u64, SpooledMessage)> {
        let left = self.spool.as_mut().map(Spool::read_all).unwrap_or_default();
        let number = |(file, message)| {
            self.next += 1;
            self.spooled.insert(self.next, file);
            (self.next, message)
        };
        left.into_iter().map(number).collect()
    }

    /// Adds a received message of QoS 1; returns its number, which is never used again.
    pub(super) fn received(&mut self, publish: Publish) -> u64 {
        self.next += 1;
        let (number, mut publish) = (self.next, publish);
        // without its payload a message can't be written to disk: it waits for its answer
        if self.held_bytes + publish.payload.len() > MQTT_HELD_BYTES_MAX {
            publish.payload = bytes::Bytes::new();
            self.held.push_back(Held { number, publish, stage: Stage::Unfinished });
            return number;
        }
        self.held_bytes += publish.payload.len();
        self.held.push_back(Held { number, publish, stage: Stage::Unfinished });
        number
    }

    /// Forgets the messages of a connection that has ended: the broker delivers them again.
    pub(super) fn disconnected(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }

    /// Notes the end of a message. One that is left no longer holds up those behind it.
    pub(super) fn settle(&mut self, SettledMessage { number, outcome }: SettledMessage) {
        if let Some(file) = self.spooled.remove(&number) {
            // what is left stays on disk for the next start
            if outcome == Settlement::Acknowledged {
                self.remove(file);
            }
            return;
        }
        let Some(at) = self.held.iter().position(|held| held.number == number) else { return };
        match outcome {
            Settlement::Acknowledged => self.held[at].stage = Stage::Done,
            Settlement::Left => drop(self.take(at)),
        }
    }

    /// Acknowledges with `ack`, in the order of receipt, up to the first message that is not done. Stops
    /// if `ack` fails; the next settled message tries again.
    pub(super) fn acknowledge(&mut self, mut ack: impl FnMut(&Publish) -> bool) {
        while let Some(Held { publish, stage: Stage::Done, .. }) = self.held.front() {
            if !ack(publish) {
                break;
            }
            self.take(0);
        }
        self.relieve();
    }

    /// Begins to write the oldest unfinished message to disk if the window is half full.
    pub(super) fn relieve(&mut self) {
        if self.held.len() < usize::from(MQTT_RECEIVE_MAX) / 2 || !self.writing.is_empty() {
            return;
        }
        let Some(spool) = &mut self.spool else { return };
        let oldest = self.held.iter_mut().find(|held| held.stage == Stage::Unfinished);
        let Some(oldest) = oldest else { return };
        let Some(message) = SpooledMessage::of(&oldest.publish) else { return };
        let Some((file, write)) = spool.write(&message) else { return };
        oldest.stage = Stage::Writing;
        let number = oldest.number;
        self.writing.spawn_blocking(move || (number, file, write()));
    }

    /// Waits for the write that is under way; for ever if there is none.
    pub(super) async fn written(&mut self) {
        let Some(done) = self.writing.join_next().await else {
            return std::future::pending().await;
        };
        let Ok((number, file, result)) = done else { return };
        let held = self.held.iter_mut().find(|held| held.number == number);
        match (held, result) {
            (Some(held), Ok(())) if held.stage == Stage::Writing => {
                held.stage = Stage::Done;
                self.spooled.insert(number, file);
            }
            // it has its answer, or its connection has ended
            (_, Ok(())) => self.remove(file),
            (held, Err(error)) => {
                tracing::warn!(%error, "requests that take long keep others at the broker: the spool \
                                        cannot be written");
                if let Some(held) = held {
                    held.stage = Stage::Unfinished;
                }
                self.spool = None;
            }
        }
    }

    fn remove(&mut self, file: FileId) {
        if let Some(spool) = &mut self.spool {
            spool.remove(file);
        }
    }

    fn take(&mut self, at: usize) -> Option<Held> {
        let held = self.held.remove(at)?;
        self.held_bytes = self.held_bytes.saturating_sub(held.publish.payload.len());
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::mqttbytes::QoS;

    use super::super::acks::AckGuard;
    use super::*;

    fn publish(packet: u16) -> Publish {
        let mut publish = Publish::new("t/request/app", QoS::AtLeastOnce, "x", None);
        publish.pkid = packet;
        publish
    }

    fn acknowledged(window: &mut ReceiveWindow) -> Vec<u16> {
        let mut sent = Vec::new();
        window.acknowledge(|publish| {
            sent.push(publish.pkid);
            true
        });
        sent
    }

    #[test]
    fn messages_are_acknowledged_in_the_order_of_receipt() {
        let mut window = ReceiveWindow::new(None);
        let numbers: Vec<u64> = (1..=5).map(|packet| window.received(publish(packet))).collect();
        let mut check = |at: usize, outcome: Settlement, expected: &[u16]| {
            window.settle(SettledMessage { number: numbers[at - 1], outcome });
            assert_eq!(acknowledged(&mut window), expected, "{at}");
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
        let mut window = ReceiveWindow::new(None);
        let number = window.received(publish(1));
        window.settle(SettledMessage { number, outcome: Settlement::Acknowledged });
        window.acknowledge(|_| false);
        assert_eq!(acknowledged(&mut window), [1]);
    }

    /// A window that is half full of unfinished messages.
    fn half_full(folder: &tempfile::TempDir) -> (ReceiveWindow, Vec<u64>) {
        let mut window = ReceiveWindow::new(Spool::open(folder.path()).ok());
        assert!(window.restore().is_empty());
        let half = MQTT_RECEIVE_MAX / 2;
        let numbers = (1..=half).map(|packet| window.received(publish(packet))).collect();
        (window, numbers)
    }

    #[tokio::test]
    async fn the_oldest_unfinished_message_is_written_and_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let (mut window, numbers) = half_full(&folder);
        window.settle(SettledMessage { number: numbers[1], outcome: Settlement::Acknowledged });
        assert_eq!(acknowledged(&mut window), [0; 0]);
        window.written().await;
        assert_eq!(acknowledged(&mut window), [1, 2]);
        // less than half: the next one waits for its answer
        assert!(window.writing.is_empty());
        // after a crash the message comes from the disk, once
        let mut again = ReceiveWindow::new(Spool::open(folder.path()).ok());
        let left = again.restore();
        assert_eq!(left.len(), 1);
        let (number, message) = left.into_iter().next().unwrap();
        let (to, mut settled) = tokio::sync::mpsc::channel(1);
        let message = message.incoming(AckGuard::new(Some(number), to)).unwrap();
        assert_eq!(message.topic, "t/request/app");
        assert_eq!(message.payload.as_deref(), Ok(&b"x"[..]));
        message.ack.ack();
        again.settle(settled.try_recv().unwrap());
        assert!(ReceiveWindow::new(Spool::open(folder.path()).ok()).restore().is_empty());
    }

    #[tokio::test]
    async fn a_message_that_is_settled_while_it_is_written_leaves_no_file() {
        for outcome in [Settlement::Acknowledged, Settlement::Left] {
            let folder = tempfile::tempdir().unwrap();
            let (mut window, numbers) = half_full(&folder);
            window.relieve();
            window.settle(SettledMessage { number: numbers[0], outcome });
            window.written().await;
            assert!(ReceiveWindow::new(Spool::open(folder.path()).ok()).restore().is_empty());
        }
    }

    #[tokio::test]
    async fn what_is_left_stays_on_disk_for_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let (mut window, numbers) = half_full(&folder);
        window.relieve();
        window.written().await;
        assert_eq!(acknowledged(&mut window), [1]);
        window.settle(SettledMessage { number: numbers[0], outcome: Settlement::Left });
        assert_eq!(ReceiveWindow::new(Spool::open(folder.path()).ok()).restore().len(), 1);
    }
}
