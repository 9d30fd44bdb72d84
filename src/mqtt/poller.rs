//! One connection of the MQTT library: handles its events, subscribes, acknowledges.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Packet, Publish};
use rumqttc::{AsyncClient, Event, EventLoop, PublishOptions, SubscribeFilter, SubscribeNotice};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::acks::{AckGuard, SettledMessage};
use super::loss::Loss;
use super::reasons::{ReasonCode, SESSION_TAKEN_OVER, SubscribeFate, of_suback};
use super::report::BrokerReport;
use super::router::Router;
use super::terms::{RefusedFeatures, Terms};
use super::window::ReceiveWindow;
use super::{ConnectionOptions, ConnectionState, Incoming, Login, Outgoing, size_of};
use crate::clock;
use crate::limits::{
    MQTT_INBOX_MAX, MQTT_KEEP_ALIVE, RECONNECT_MIN, REQUEST_BYTES_MAX, SUBSCRIBE_EVERY,
};
use crate::model::generate::BoxFuture;

/// A connection that the broker has accepted.
#[derive(Debug, Clone)]
pub(super) struct Accepted {
    pub(super) terms: Terms,
    /// The broker has answered every subscription.
    pub(super) is_subscribed: bool,
}

/// Why a connection has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    Stopped,
    Lost(Loss),
}

pub(super) struct Poller<'d> {
    pub(super) options: &'d ConnectionOptions,
    pub(super) client: AsyncClient,
    pub(super) router: &'d Router,
    pub(super) state: &'d watch::Sender<ConnectionState>,
    pub(super) accepted: watch::Sender<Option<Accepted>>,
    pub(super) refused: &'d mut RefusedFeatures,
    pub(super) report: &'d BrokerReport,
    /// Given to the guard of each message.
    pub(super) acks: &'d mpsc::Sender<SettledMessage>,
    pub(super) settled: &'d mut mpsc::Receiver<SettledMessage>,
    pub(super) window: &'d mut ReceiveWindow,
    pub(super) subscriptions: Subscriptions,
    pub(super) identity: Identity,
    /// Whether the log has the loss of the connection before.
    pub(super) is_logged: bool,
    /// Says that the presence is to be published again.
    pub(super) announce: Arc<Notify>,
    /// Another login for this client.
    pub(super) login: &'d mut watch::Receiver<Option<Login>>,
}

/// Whether another client uses the identifier of this one.
///
/// A broker such as mosquitto 2.0 closes the connection of the one when the other connects, and gives
/// no reason. The presence topic then has a message that this client has not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// There is no reason to look.
    Assumed,
    /// The presence topic is subscribed to.
    Watched,
    /// The presence topic has the message of another client.
    Shared,
}

/// The subscriptions of one connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    /// The filters of the router that the broker was asked for, or that it refuses.
    known: BTreeSet<String>,
    /// Asked for and not answered.
    asked: FuturesUnordered<BoxFuture<'static, (String, Option<ReasonCode>)>>,
    granted: usize,
    /// The first refusal; the status has it if nothing is granted.
    refusal: Option<String>,
    /// Refused for a cause that may pass.
    again: Vec<String>,
    again_at: Option<Instant>,
}

impl Poller<'_> {
    /// Handles events until the connection ends, after `stop` or by a loss. The library's `poll` must
    /// not be cancelled, so it runs in a task of its own and sends its events.
    pub(super) async fn poll(
        &mut self,
        events: EventLoop,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> ConnectionEnd {
        let (to, mut from) = mpsc::channel(MQTT_INBOX_MAX);
        tasks.spawn(pump(events, to));
        let mut leaving = None;
        // ends with the connection
        loop {
            let again_at = self.subscriptions.again_at.map(tokio::time::Instant::from);
            let is_asking = !self.subscriptions.asked.is_empty();
            tokio::select! {
                event = from.recv() => match event {
                    Some(Ok(event)) => self.on(event, stop).await,
                    Some(Err(loss)) => return leaving.unwrap_or(ConnectionEnd::Lost(loss)),
                    None => return leaving.unwrap_or(ConnectionEnd::Stopped),
                },
                Some(settled) = self.settled.recv() => {
                    self.window.settle(settled);
                    self.acknowledge();
                }
                () = self.window.written() => self.acknowledge(),
                Some((filter, answer)) = self.subscriptions.asked.next(), if is_asking => {
                    self.subscribed(filter, answer);
                }
                () = sleep_until(again_at), if again_at.is_some() => {
                    self.subscriptions.again_at = None;
                    let filters = std::mem::take(&mut self.subscriptions.again);
                    self.subscribe(filters.into_iter());
                }
                () = self.router.changed() => self.change_filters(),
                Ok(()) = self.login.changed(), if leaving.is_none() => {
                    leaving = Some(ConnectionEnd::Lost(Loss::Renewed));
                    if !self.disconnect() {
                        return ConnectionEnd::Lost(Loss::Renewed);
                    }
                }
                () = stop.cancelled(), if leaving != Some(ConnectionEnd::Stopped) => {
                    leaving = Some(ConnectionEnd::Stopped);
                    if !self.disconnect() {
                        return ConnectionEnd::Stopped;
                    }
                }
            }
        }
    }

    async fn on(&mut self, event: Event, stop: &CancellationToken) {
        match event {
            Event::Incoming(Packet::ConnAck(connack)) => {
                let terms = Terms::of(&connack, self.refused);
                self.refused.connected(&terms);
                let (host, port) = (&self.options.host, self.options.port);
                let packet_max = terms.packet_max;
                if self.is_logged {
                    tracing::info!(host, port, packet_max, "connected to the broker");
                }
                self.report.set_packet_max(packet_max);
                let now = Accepted { terms, is_subscribed: false };
                self.accepted.send_replace(Some(now.clone()));
                self.watch_presence();
                self.subscriptions.known = self.router.filters();
                self.subscribe(self.subscriptions.known.clone().into_iter());
            }
            Event::Incoming(Packet::Publish(publish)) if self.is_presence(&publish) => {
                let _ = self.client.try_ack(&publish);
            }
            Event::Incoming(Packet::Publish(publish)) => self.received(publish, stop).await,
            Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_) => {}
        }
    }

    /// Subscribes to the own presence topic, if another client may write to it. A refusal is no problem.
    fn watch_presence(&mut self) {
        let Some(presence) = self.options.presence.as_ref() else { return };
        let filter = SubscribeFilter {
            nolocal: true,
            ..SubscribeFilter::new(&presence.topic, QoS::AtMostOnce)
        };
        let terms = self.accepted.borrow().as_ref().map(|accepted| accepted.terms.clone());
        let may_ask = terms.is_some_and(|terms| terms.may_subscribe(&presence.topic).is_ok());
        if self.identity != Identity::Assumed && may_ask {
            let _ = self.client.try_subscribe_many([filter]);
        }
    }

    /// Whether this is a message on the own presence topic. What another client has written there is
    /// replaced by the presence, or is a sign that it uses the identifier of this one.
    fn is_presence(&mut self, publish: &Publish) -> bool {
        let presence = self.options.presence.as_ref();
        let Some(presence) = presence.filter(|presence| presence.topic.as_bytes() == publish.topic)
        else {
            return false;
        };
        let topic = &presence.topic;
        if presence.is_asserted {
            // a retained one was there before this connection has published its own
            if !publish.retain && publish.payload != presence.messages.online() {
                let text = format!(
                    "another client of the broker has written to {topic}, this worker's presence; it is \
                     published again. Allow nobody else to write there (access rules of the broker)"
                );
                self.report.problem(&format!("presence {topic}"), &text);
                self.announce.notify_one();
            }
        } else if publish.payload != presence.messages.online()
            && publish.payload != presence.messages.offline()
        {
            self.identity = Identity::Shared;
            let remedy = ReasonCode::of(SESSION_TAKEN_OVER).remedy;
            let text = format!("{topic} has a message that this service has not written; {remedy}");
            self.report.problem("identity", &text);
        }
        true
    }

    /// Subscribes, also to a session that the broker has resumed: one packet for each filter, so that
    /// none is too large and a refused filter does not concern the others.
    fn subscribe(&mut self, filters: impl Iterator<Item = String>) {
        let terms = self.accepted.borrow().as_ref().map(|accepted| accepted.terms.clone());
        for filter in filters {
            if let Some(Err(why)) = terms.as_ref().map(|terms| terms.may_subscribe(&filter)) {
                self.refused_subscription(&filter, &why);
                continue;
            }
            let qos = self.router.qos_of(&filter);
            match self.client.try_subscribe_tracked(filter.clone(), qos) {
                Ok(notice) => {
                    self.subscriptions.asked.push(Box::pin(answer_of(filter, notice)));
                }
                Err(error) => self.refused_subscription(&filter, &error.to_string()),
            }
        }
        self.update();
    }

    /// Subscribes to added filters of the router, and gives up removed ones.
    fn change_filters(&mut self) {
        if self.accepted.borrow().is_none() {
            // all are subscribed to once the broker has accepted the connection
            return;
        }
        let wanted = self.router.filters();
        for filter in self.subscriptions.known.difference(&wanted) {
            // a message that still comes has no subscriber, and is acknowledged
            let _ = self.client.try_unsubscribe(filter.clone());
            self.report.solved(&format!("subscription {filter}"));
        }
        let added: Vec<String> = wanted.difference(&self.subscriptions.known).cloned().collect();
        self.subscriptions.again.retain(|filter| wanted.contains(filter));
        self.subscriptions.known = wanted;
        self.subscribe(added.into_iter());
    }

    /// Notes the answer to a subscription; none if the connection has ended before.
    fn subscribed(&mut self, filter: String, answer: Option<ReasonCode>) {
        let Some(reason) = answer else { return };
        match reason.subscribe {
            SubscribeFate::Granted => {
                self.subscriptions.granted += 1;
                self.report.solved(&format!("subscription {filter}"));
            }
            SubscribeFate::Retry => {
                self.refused_subscription(&filter, &reason.text());
                self.subscriptions.again.push(filter);
                self.subscriptions.again_at = Some(clock::now() + SUBSCRIBE_EVERY);
            }
            SubscribeFate::Stop => self.refused_subscription(&filter, &reason.text()),
        }
        self.update();
    }

    fn refused_subscription(&mut self, filter: &str, why: &str) {
        let text = format!("the broker refuses the subscription to {filter}: {why}");
        self.report.problem(&format!("subscription {filter}"), &text);
        self.subscriptions.refusal.get_or_insert(text);
    }

    /// The connection is up when every subscription is answered and one is granted.
    fn update(&mut self) {
        if !self.subscriptions.asked.is_empty() {
            return;
        }
        self.accepted.send_if_modified(|accepted| {
            accepted.as_mut().is_some_and(|a| !std::mem::replace(&mut a.is_subscribed, true))
        });
        let state = match &self.subscriptions.refusal {
            Some(why) if self.subscriptions.granted == 0 => ConnectionState::Down(why.clone()),
            Some(_) | None => ConnectionState::Up,
        };
        self.state.send_if_modified(|old| {
            let differs = *old != state;
            *old = state;
            differs
        });
    }

    async fn received(&mut self, publish: Publish, stop: &CancellationToken) {
        let owed = (publish.qos != QoS::AtMostOnce).then(|| self.window.received(publish.clone()));
        let properties = publish.properties.clone().unwrap_or_default();
        let size = publish.payload.len();
        let message = Incoming {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: if size > REQUEST_BYTES_MAX { Err(size) } else { Ok(publish.payload) },
            retained: publish.retain,
            again: publish.dup,
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
            expiry: properties.message_expiry_interval.map(|s| Duration::from_secs(s.into())),
            properties: properties.user_properties,
            arrived: clock::now(),
            ack: AckGuard::new(owed, self.acks.clone()),
        };
        self.window.relieve();
        // QoS 1 is bounded by the receive maximum; QoS 0 is bounded by reading no further
        self.router.deliver(message, stop).await;
    }

    fn acknowledge(&mut self) {
        self.window.acknowledge(|publish| self.client.try_ack(publish).is_ok());
    }

    /// Publishes the offline presence and disconnects; false if not connected.
    fn disconnect(&self) -> bool {
        let Some(Accepted { terms, .. }) = self.accepted.borrow().clone() else { return false };
        if let Some(presence) = &self.options.presence {
            let (topic, payload) = (presence.topic.clone(), presence.messages.offline());
            let message = Outgoing { topic, payload, ..Outgoing::default() };
            if size_of(&message, terms.qos) <= self.report.packet_max() {
                let options = PublishOptions::new(terms.qos).retain(terms.retain);
                let _ = self.client.try_publish(message.topic, message.payload, options);
            }
        }
        self.client.try_disconnect_with_timeout(RECONNECT_MIN * 5).is_ok()
    }
}

async fn answer_of(filter: String, notice: SubscribeNotice) -> (String, Option<ReasonCode>) {
    let answer = notice.wait_async().await.ok();
    (filter, answer.and_then(|suback| suback.return_codes.first().copied()).map(of_suback))
}

async fn sleep_until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Runs the library's event loop until its connection ends.
async fn pump(mut events: EventLoop, to: mpsc::Sender<Result<Event, Loss>>) {
    // ends with the connection, or with the receiver
    loop {
        let event = events.poll().await;
        if matches!(event, Ok(Event::Incoming(Packet::ConnAck(_)))) {
            keep_alive(&mut events);
        }
        let has_failed = event.is_err();
        if to.send(event.map_err(|error| Loss::from(&error))).await.is_err() || has_failed {
            return;
        }
    }
}

/// Sends a sign of life at least as often as the broker asks, and no more seldom than this client
/// wants to notice a lost connection: a broker may ask for none, or for one in 18 hours.
fn keep_alive(events: &mut EventLoop) {
    let asked = events.options.keep_alive();
    if asked.is_zero() || asked > MQTT_KEEP_ALIVE {
        let seconds = u16::try_from(MQTT_KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX);
        events.options.set_keep_alive(seconds);
    }
}
