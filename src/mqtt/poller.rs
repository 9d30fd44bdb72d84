//! One client of the MQTT library: handles its events, subscribes, acknowledges, reconnects.

use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use rumqttc::{AsyncClient, Event, EventLoop, PublishOptions, SubscribeFilter};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::acks::{AckGuard, SettledMessage, Unsettled};
use super::router::Router;
use super::{ConnectionOptions, ConnectionState, Incoming};
use crate::limits::{MQTT_INBOX_MAX, RECONNECT_MAX, RECONNECT_MIN, REQUEST_BYTES_MAX};

pub(super) struct Poller<'d> {
    pub(super) options: &'d ConnectionOptions,
    pub(super) client: AsyncClient,
    pub(super) router: &'d Router,
    pub(super) state: &'d watch::Sender<ConnectionState>,
    /// Given to the guard of each message.
    pub(super) acks: &'d mpsc::Sender<SettledMessage>,
    pub(super) settled: &'d mut mpsc::Receiver<SettledMessage>,
    /// Number of the present connection.
    pub(super) generation: &'d mut u64,
    pub(super) unsettled: Unsettled,
}

impl Poller<'_> {
    /// Handles events until `stop` and the end of the connection. The library's `poll` must not be
    /// cancelled, so it runs in a task of its own and sends its events.
    pub(super) async fn poll(&mut self, events: EventLoop, stop: &CancellationToken) {
        let (to, mut from) = mpsc::channel(MQTT_INBOX_MAX);
        let (go_on, may_go_on) = mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(pump(events, to, may_go_on));
        let mut wait = RECONNECT_MIN;
        let mut is_leaving = false;
        // ends with the connection after `stop`
        loop {
            tokio::select! {
                event = from.recv() => match event {
                    Some(Ok(event)) => {
                        if self.on(event, stop).await {
                            wait = RECONNECT_MIN;
                        }
                    }
                    Some(Err(_)) if is_leaving => return,
                    Some(Err(error)) => {
                        self.lost(&error);
                        tokio::time::sleep(jittered(wait)).await;
                        wait = (wait * 2).min(RECONNECT_MAX);
                        let _ = go_on.send(()).await;
                    }
                    None => return,
                },
                Some(settled) = self.settled.recv() => self.settle(settled),
                () = stop.cancelled(), if !is_leaving => {
                    is_leaving = true;
                    if !self.disconnect() {
                        return;
                    }
                }
            }
        }
    }

    /// Handles one event; true if a connection was made.
    async fn on(&mut self, event: Event, stop: &CancellationToken) -> bool {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                *self.generation += 1;
                self.unsettled.clear();
                self.subscribe();
                true
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let refused = ack
                    .return_codes
                    .iter()
                    .any(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                if refused {
                    tracing::error!(codes = ?ack.return_codes, "the broker rejected the subscriptions");
                    self.state.send_replace(ConnectionState::Down(
                        "the broker rejected the subscriptions".to_owned(),
                    ));
                } else {
                    self.state.send_replace(ConnectionState::Up);
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

    /// Subscribes, also to a session that the broker has resumed, and publishes the presence.
    fn subscribe(&mut self) {
        let filters =
            self.router.filters().map(|f| SubscribeFilter::new(f.to_owned(), QoS::AtLeastOnce));
        if self.client.try_subscribe_many(filters).is_err() {
            tracing::error!("the subscriptions were not sent: the client's queue is full");
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
        self.unsettled.clear();
        let reason = error.to_owned();
        if *self.state.borrow() != ConnectionState::Down(reason.clone()) {
            tracing::warn!(
                reason,
                host = self.options.host,
                port = self.options.port,
                "broker connection lost"
            );
            self.state.send_replace(ConnectionState::Down(reason));
        }
    }

    async fn received(&mut self, publish: Publish, stop: &CancellationToken) {
        let owed = (publish.qos != QoS::AtMostOnce).then_some((*self.generation, publish.pkid));
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
            ack: AckGuard::new(owed, self.acks.clone()),
        };
        if owed.is_some() {
            self.unsettled.received(publish);
        }
        // QoS 1 is bounded by the receive maximum; QoS 0 is bounded by reading no further
        self.router.deliver(message, stop).await;
    }

    /// Notes the outcome of a message, and acknowledges in order.
    fn settle(&mut self, SettledMessage { generation, packet, outcome }: SettledMessage) {
        if generation != *self.generation {
            return;
        }
        self.unsettled.settle(packet, outcome);
        self.unsettled.acknowledge(|publish| self.client.try_ack(publish).is_ok());
    }

    /// Publishes the offline presence and disconnects; false if not connected.
    fn disconnect(&self) -> bool {
        if *self.state.borrow() != ConnectionState::Up {
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

/// Runs the library's event loop; after an error it waits for the permission to reconnect.
async fn pump(
    mut events: EventLoop,
    to: mpsc::Sender<Result<Event, String>>,
    mut may_go_on: mpsc::Receiver<()>,
) {
    // ends with the receiver
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

/// Between half and all of `wait`, so that many devices do not reconnect at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}
