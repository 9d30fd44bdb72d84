//! Keeps one client going: takes its events, greets the broker, acknowledges in order.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use rumqttc::{AsyncClient, Event, EventLoop, PublishOptions, SubscribeFilter};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{AckGuard, ConnectionOptions, ConnectionState, Incoming};
use crate::limits::{MQTT_INBOX_MAX, RECONNECT_MAX, RECONNECT_MIN, REQUEST_BYTES_MAX};

pub(super) struct Poller<'d> {
    pub(super) options: &'d ConnectionOptions,
    pub(super) client: AsyncClient,
    pub(super) inbox: &'d mpsc::Sender<Incoming>,
    pub(super) line: &'d watch::Sender<ConnectionState>,
    pub(super) acks: &'d mpsc::Sender<(u64, u16)>,
    pub(super) handed_back: &'d mut mpsc::Receiver<(u64, u16)>,
    pub(super) generation: &'d mut u64,
    /// Messages of this connection in order of receipt, and whether each may be acknowledged.
    pub(super) owed: VecDeque<(Publish, bool)>,
}

impl Poller<'_> {
    /// `poll` is never abandoned half-way: it runs in a task of its own and hands its events over.
    pub(super) async fn poll(&mut self, events: EventLoop, stop: &CancellationToken) {
        let (to, mut from) = mpsc::channel(MQTT_INBOX_MAX);
        let (go_on, may_go_on) = mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(pump(events, to, may_go_on));
        let mut wait = RECONNECT_MIN;
        let mut leaving = false;
        // ends with the connection after `stop`
        loop {
            tokio::select! {
                event = from.recv() => match event {
                    Some(Ok(event)) => {
                        if self.on(event, stop).await {
                            wait = RECONNECT_MIN;
                        }
                    }
                    Some(Err(_)) if leaving => return,
                    Some(Err(error)) => {
                        self.lost(&error);
                        tokio::time::sleep(jittered(wait)).await;
                        wait = (wait * 2).min(RECONNECT_MAX);
                        let _ = go_on.send(()).await;
                    }
                    None => return,
                },
                Some((generation, packet)) = self.handed_back.recv() => self.acknowledge(generation, packet),
                () = stop.cancelled(), if !leaving => {
                    leaving = true;
                    if !self.leave() {
                        return;
                    }
                }
            }
        }
    }

    /// Takes one event; true if the connection stands.
    async fn on(&mut self, event: Event, stop: &CancellationToken) -> bool {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                *self.generation += 1;
                self.owed.clear();
                self.greet();
                true
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let refused = ack
                    .return_codes
                    .iter()
                    .any(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                if refused {
                    tracing::error!(codes = ?ack.return_codes, "the broker rejected the subscriptions");
                    self.line.send_replace(ConnectionState::Down(
                        "the broker rejected the subscriptions".to_owned(),
                    ));
                } else {
                    self.line.send_replace(ConnectionState::Up);
                }
                false
            }
            Event::Incoming(Packet::Publish(publish)) => {
                self.received(publish, stop).await;
                false
            }
            Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_) => false,
        }
    }

    /// Subscribes again, whatever the broker remembers, and says that we are there.
    fn greet(&mut self) {
        let filters =
            self.options.filters.iter().map(|f| SubscribeFilter::new(f.clone(), QoS::AtLeastOnce));
        if self.client.try_subscribe_many(filters).is_err() {
            tracing::error!("no room to subscribe");
        }
        if let Some(presence) = &self.options.presence {
            let online = PublishOptions::new(QoS::AtLeastOnce).retained();
            let _ =
                self.client.try_publish(presence.topic.clone(), presence.online.clone(), online);
        }
        tracing::info!(
            host = self.options.host,
            port = self.options.port,
            "connected to the broker"
        );
    }

    fn lost(&mut self, error: &str) {
        self.owed.clear();
        let reason = error.to_owned();
        if *self.line.borrow() != ConnectionState::Down(reason.clone()) {
            tracing::warn!(
                reason,
                host = self.options.host,
                port = self.options.port,
                "broker connection lost"
            );
            self.line.send_replace(ConnectionState::Down(reason));
        }
    }

    async fn received(&mut self, publish: Publish, stop: &CancellationToken) {
        let ack = AckGuard {
            generation: if publish.qos == QoS::AtMostOnce { 0 } else { *self.generation },
            packet: publish.pkid,
            to: self.acks.clone(),
        };
        let properties = publish.properties.clone().unwrap_or_default();
        let size = publish.payload.len();
        let message = Incoming {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: if size > REQUEST_BYTES_MAX { Err(size) } else { Ok(publish.payload.clone()) },
            retained: publish.retain,
            again: publish.dup,
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
            expiry: properties.message_expiry_interval.map(|s| Duration::from_secs(s.into())),
            properties: properties.user_properties,
            ack,
        };
        if publish.qos != QoS::AtMostOnce {
            self.owed.push_back((Publish { payload: Bytes::new(), ..publish }, false));
        }
        // QoS 1 has its own bound; whoever sends more by QoS 0 than is read is held up with the line
        tokio::select! {
            _ = self.inbox.send(message) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Acknowledges what may be, in the order of receipt.
    fn acknowledge(&mut self, generation: u64, packet: u16) {
        if generation != *self.generation {
            return;
        }
        if let Some(owed) = self.owed.iter_mut().find(|(p, done)| p.pkid == packet && !done) {
            owed.1 = true;
        }
        while let Some((publish, true)) = self.owed.front() {
            if self.client.try_ack(publish).is_err() {
                // no room now; the next ticket tries again
                return;
            }
            self.owed.pop_front();
        }
    }

    /// Says good-bye; false if there is nobody to say it to.
    fn leave(&self) -> bool {
        if *self.line.borrow() != ConnectionState::Up {
            return false;
        }
        if let Some(presence) = &self.options.presence {
            let offline = PublishOptions::new(QoS::AtLeastOnce).retained();
            let _ =
                self.client.try_publish(presence.topic.clone(), presence.offline.clone(), offline);
        }
        self.client.try_disconnect_with_timeout(RECONNECT_MIN * 5).is_ok()
    }
}

/// Runs the client; after an error it waits until it may go on.
async fn pump(
    mut events: EventLoop,
    to: mpsc::Sender<Result<Event, String>>,
    mut may_go_on: mpsc::Receiver<()>,
) {
    // ends when the other side has gone
    loop {
        let event = events.poll().await;
        let failed = event.is_err();
        if to.send(event.map_err(|e| e.to_string())).await.is_err() {
            return;
        }
        if failed && may_go_on.recv().await.is_none() {
            return;
        }
    }
}

/// Between half and all of it, so that a thousand devices don't come back at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}
