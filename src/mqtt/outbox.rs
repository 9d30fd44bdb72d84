//! What shall be published: held until the broker has acknowledged it, offered again if it was lost.

use std::collections::{BTreeMap, VecDeque};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rumqttc::mqttbytes::QoS;
use rumqttc::{AsyncClient, PublishNotice, PublishNoticeError};
use tokio::sync::{mpsc, watch};

use super::{ConnectionState, Outgoing, Posted, publish_options};
use crate::limits::{MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE};

/// What was taken from the doors and is not acknowledged, in the order in which it was taken.
#[derive(Default)]
pub(super) struct Unacked {
    posts: BTreeMap<u64, Posted>,
    /// To be offered, again or for the first time.
    offers: VecDeque<u64>,
    next: u64,
}

impl Unacked {
    fn take(&mut self, posted: Posted) {
        self.posts.insert(self.next, posted);
        self.offers.push_back(self.next);
        self.next += 1;
    }

    /// A new client knows nothing of what was given to the old one.
    fn offer_all_again(&mut self) {
        self.offers = self.posts.keys().copied().collect();
    }

    fn landed(&mut self, number: u64, result: Result<(), PublishNoticeError>) {
        match result {
            Ok(()) => {
                if let Some(posted) = self.posts.remove(&number) {
                    let _ = posted.done.send(());
                }
            }
            Err(error) => {
                tracing::debug!(%error, "publish repeated after a lost session");
                self.offers.push_back(number);
            }
        }
    }
}

/// Publishes what is in the outbox and holds on to it until it is acknowledged. Ends only if the
/// client makes no progress although the line stands.
pub(super) async fn send_all(
    client: AsyncClient,
    posted: &mut mpsc::Receiver<Posted>,
    held: &mut Unacked,
    line: watch::Receiver<ConnectionState>,
) {
    held.offer_all_again();
    let mut flying = FuturesUnordered::new();
    // ends when the client is given up
    loop {
        let room = flying.len() < usize::from(MQTT_INFLIGHT_MAX);
        if room && let Some(number) = held.offers.pop_front() {
            let Some(posted) = held.posts.get(&number) else {
                continue;
            };
            match offer(&client, &posted.message).await {
                Some(notice) => {
                    flying.push(async move { (number, notice.wait_completion_async().await) });
                }
                None => drop(held.posts.remove(&number)),
            }
            continue;
        }
        let owed = !flying.is_empty();
        tokio::select! {
            Some((number, result)) = flying.next(), if owed => held.landed(number, result),
            Some(posted) = posted.recv(), if room => held.take(posted),
            () = tokio::time::sleep(MQTT_KEEP_ALIVE * 2), if owed => {
                if *line.borrow() == ConnectionState::Up {
                    return;
                }
            }
            else => return std::future::pending().await,
        }
    }
}

async fn offer(client: &AsyncClient, message: &Outgoing) -> Option<PublishNotice> {
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
