//! Unacknowledged publishes: kept until the broker has acknowledged them, sent again after a loss.

use std::collections::{BTreeMap, VecDeque};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rumqttc::mqttbytes::QoS;
use rumqttc::{AsyncClient, PublishNotice, PublishNoticeError};
use tokio::sync::{mpsc, watch};

use super::{ConnectionState, Outgoing, Posted, publish_options};
use crate::limits::{MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE};

/// Messages taken from the outbox and not yet acknowledged by the broker, in the order of taking.
#[derive(Default)]
pub(super) struct Unacked {
    posts: BTreeMap<u64, Posted>,
    /// To be sent, for the first time or again.
    to_send: VecDeque<u64>,
    next: u64,
}

impl Unacked {
    fn take(&mut self, posted: Posted) {
        self.posts.insert(self.next, posted);
        self.to_send.push_back(self.next);
        self.next += 1;
    }

    /// Sends all of them again: a new client does not know what the old one was given.
    fn send_all_again(&mut self) {
        self.to_send = self.posts.keys().copied().collect();
    }

    fn completed(&mut self, number: u64, result: Result<(), PublishNoticeError>) {
        match result {
            Ok(()) => {
                if let Some(posted) = self.posts.remove(&number) {
                    let _ = posted.done.send(());
                }
            }
            Err(error) => {
                tracing::debug!(%error, "publish repeated after a lost session");
                self.to_send.push_back(number);
            }
        }
    }
}

/// Publishes the messages of the outbox and keeps each until it is acknowledged. Ends only if the
/// client makes no progress for two keep-alive intervals although it is connected.
pub(super) async fn send_all(
    client: AsyncClient,
    posted: &mut mpsc::Receiver<Posted>,
    unacked: &mut Unacked,
    connection: watch::Receiver<ConnectionState>,
) {
    unacked.send_all_again();
    let mut in_flight = FuturesUnordered::new();
    // ends when the client is replaced
    loop {
        let has_room = in_flight.len() < usize::from(MQTT_INFLIGHT_MAX);
        if has_room && let Some(number) = unacked.to_send.pop_front() {
            let Some(posted) = unacked.posts.get(&number) else {
                continue;
            };
            match publish(&client, &posted.message).await {
                Some(notice) => {
                    in_flight.push(async move { (number, notice.wait_completion_async().await) });
                }
                None => drop(unacked.posts.remove(&number)),
            }
            continue;
        }
        let is_waiting = !in_flight.is_empty();
        tokio::select! {
            Some((number, result)) = in_flight.next(), if is_waiting => unacked.completed(number, result),
            Some(posted) = posted.recv(), if has_room => unacked.take(posted),
            () = tokio::time::sleep(MQTT_KEEP_ALIVE * 2), if is_waiting => {
                if *connection.borrow() == ConnectionState::Up {
                    return;
                }
            }
            else => return std::future::pending().await,
        }
    }
}

/// Hands a message to the client; none if it can never be published.
async fn publish(client: &AsyncClient, message: &Outgoing) -> Option<PublishNotice> {
    let options = publish_options(QoS::AtLeastOnce, message);
    let topic = message.topic.clone();
    client
        .publish_tracked(topic, message.payload.clone(), options)
        .await
        .inspect_err(
            |error| tracing::error!(%error, topic = message.topic, "a message cannot be published"),
        )
        .ok()
}
