//! Unacknowledged publishes: kept until the broker has answered them, sent again after a loss.
//!
//! A publish that the broker refuses follows the table of reason codes. A publish that is in flight
//! whenever the broker closes the connection is sent alone until that is certain, and then not again:
//! one message would else keep all others from the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rumqttc::{AsyncClient, ClientError, PublishNotice, PublishNoticeError};
use tokio::sync::{Notify, mpsc, watch};

use super::breaker::{Gate, TopicBreakers};
use super::loss::Loss;
use super::poller::Accepted;
use super::reasons::{PublishFate, ReasonCode, Suspicion};
use super::report::{BrokerReport, Undelivered};
use super::terms::Terms;
use super::{Outgoing, Posted, Presence, Undeliverable, publish_options, size_of};
use crate::clock;
use crate::limits::{
    CLOSES_MAX, MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE, OUTBOX_MAX, PACKET_MAX_LEARNED, PRESENCE_EVERY,
    PUBLISH_RETRIES_MAX, PUBLISH_RETRIES_WAITING_MAX, SUSPECT_ALONE_MAX,
};
use crate::model::generate::BoxFuture;

/// The answers to the publishes of one connection.
pub(super) type PublishesInFlight =
    FuturesUnordered<BoxFuture<'static, (u64, Result<(), PublishNoticeError>)>>;

/// The number of the presence message, below those of all others.
const PRESENCE: u64 = 0;

/// Messages that were taken and not yet answered by the broker, in the order of taking.
pub(super) struct Outbox {
    posted: mpsc::Receiver<Posted>,
    /// Published at the start of each connection.
    presence: Option<Presence>,
    /// Notified when the presence is to be published again.
    announce: Arc<Notify>,
    /// The presence is to be published again, from this time on.
    announce_at: Option<Instant>,
    /// When the presence was published.
    announced: Option<Instant>,
    posts: BTreeMap<u64, Post>,
    /// To be sent, for the first time or again, by closed connections and number.
    to_send: BTreeSet<(u8, u64)>,
    /// Refused for a cause that may pass.
    later: BTreeSet<(Instant, u64)>,
    /// In flight when the broker closed the connection; while there are any, one message is in flight.
    suspects: BTreeSet<u64>,
    /// The suspect in flight, and until when no other message is sent.
    alone: Option<(u64, Instant)>,
    /// Not answered on the connection that has ended.
    lost: Vec<u64>,
    next: u64,
    breakers: TopicBreakers,
    /// A packet size that the broker did not state, with the time at which it was learned.
    learned: Option<(usize, Instant)>,
    /// The largest packet that the broker has acknowledged on the present connection.
    largest: usize,
    report: Arc<BrokerReport>,
}

struct Post {
    posted: Posted,
    size: usize,
    /// Connections that the broker closed while this was the only message in flight.
    closes: u8,
    retries: u32,
}

impl Outbox {
    pub(super) fn new(
        posted: mpsc::Receiver<Posted>,
        presence: Option<Presence>,
        announce: Arc<Notify>,
        report: Arc<BrokerReport>,
    ) -> Outbox {
        Outbox {
            posted,
            presence,
            announce,
            announce_at: None,
            announced: None,
            posts: BTreeMap::new(),
            to_send: BTreeSet::new(),
            later: BTreeSet::new(),
            suspects: BTreeSet::new(),
            alone: None,
            lost: Vec::new(),
            next: PRESENCE + 1,
            breakers: TopicBreakers::default(),
            learned: None,
            largest: 0,
            report,
        }
    }

    /// Says that the presence is to be published again.
    pub(super) fn announce(&self) -> Arc<Notify> {
        Arc::clone(&self.announce)
    }

    /// Publishes the messages on one connection, once the broker has answered its subscriptions. Ends only if no
    /// publish is answered for two keep-alive intervals although some are in flight.
    pub(super) async fn send_all(
        &mut self,
        client: &AsyncClient,
        mut accepted: watch::Receiver<Option<Accepted>>,
        in_flight: &mut PublishesInFlight,
    ) {
        // the presence states that requests are received
        let is_subscribed = |a: &Option<Accepted>| a.as_ref().is_some_and(|a| a.is_subscribed);
        let terms = accepted.wait_for(is_subscribed).await.ok().and_then(|a| a.clone());
        let Some(Accepted { terms, .. }) = terms else { return std::future::pending().await };
        self.begin();
        let announce = Arc::clone(&self.announce);
        // ends with the connection
        loop {
            let now = clock::now();
            self.wake(now);
            // one at a time: the last one that is published is the one that is kept
            let is_announced = self.posts.contains_key(&PRESENCE);
            if !is_announced && self.announce_at.take_if(|at| *at <= now).is_some() {
                self.put_presence(now);
                self.to_send.insert((0, PRESENCE));
            }
            if let Some((number, _)) = self.alone.take_if(|(_, until)| *until <= now) {
                // the broker neither answers nor ends the connection: the others go on
                self.suspects.remove(&number);
            }
            self.report.set_packet_max(self.packet_max(&terms, now));
            let window = if self.suspects.is_empty() { usize::from(MQTT_INFLIGHT_MAX) } else { 1 };
            if in_flight.len() < window
                && let Some((_, number)) = self.to_send.pop_first()
            {
                if let Some(notice) = self.send(number, client, &terms, now).await {
                    let is_alone = self.suspects.contains(&number);
                    self.alone = is_alone.then(|| (number, now + SUSPECT_ALONE_MAX));
                    in_flight.push(Box::pin(async move {
                        (number, notice.wait_completion_async().await)
                    }));
                }
                continue;
            }
            let has_room = self.to_send.is_empty() && self.posts.len() < OUTBOX_MAX;
            let is_waiting = !in_flight.is_empty();
            let later = self.later.first().map(|(at, _)| *at);
            let announce_at = self.announce_at.filter(|_| !is_announced);
            let alone = self.alone.map(|(_, until)| until);
            let wake_at = [later, alone, announce_at].into_iter().flatten().min();
            let wake_at = wake_at.map(tokio::time::Instant::from);
            tokio::select! {
                Some((number, result)) = in_flight.next(), if is_waiting => {
                    self.answered(number, result, clock::now());
                }
                Some(posted) = self.posted.recv(), if has_room => self.take(posted),
                () = announce.notified() => {
                    let next = self.announced.map(|at| at + PRESENCE_EVERY);
                    let next = next.map_or(now, |at| at.max(now));
                    self.announce_at.get_or_insert(next);
                }
                () = tokio::time::sleep_until(wake_at.unwrap_or(now.into())), if wake_at.is_some() => {}
                () = tokio::time::sleep(MQTT_KEEP_ALIVE * 2), if is_waiting => return,
                else => return std::future::pending().await,
            }
        }
    }

    /// Notes the end of a connection, and which messages it left unanswered.
    pub(super) async fn disconnected(&mut self, mut in_flight: PublishesInFlight, loss: &Loss) {
        let now = clock::now();
        // bounded: the client is gone, so each has its answer or none
        while let Some((number, result)) = in_flight.next().await {
            self.answered(number, result, now);
        }
        self.breakers.disconnected();
        let unanswered = std::mem::take(&mut self.lost);
        let needed = match loss.suspicion() {
            Suspicion::None => return,
            Suspicion::Possible => CLOSES_MAX,
            Suspicion::Named => 1,
        };
        if let [number] = unanswered[..]
            && let Some(post) = self.posts.get_mut(&number)
        {
            post.closes += 1;
            if post.closes >= needed {
                return self.is_cause(number, loss.reason(), now);
            }
        }
        self.suspects.extend(unanswered);
    }

    /// Whether a message is suspected to end the connection.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Begins a connection: all messages are to be sent, for a new client knows none of them.
    fn begin(&mut self) {
        self.largest = 0;
        self.alone = None;
        self.announce_at = None;
        // that of an earlier connection may say something else
        self.put_presence(clock::now());
        let waiting: BTreeSet<u64> = self.later.iter().map(|(_, number)| *number).collect();
        let to_send = self.posts.iter().filter(|(number, _)| !waiting.contains(number));
        self.to_send = to_send.map(|(number, post)| (post.closes, *number)).collect();
    }

    fn put_presence(&mut self, now: Instant) {
        let Some(Presence { topic, messages, .. }) = &self.presence else { return };
        let (topic, payload) = (topic.clone(), messages.online());
        let message = Outgoing { topic, payload, retain: true, ..Outgoing::default() };
        let closes = self.posts.get(&PRESENCE).map_or(0, |post| post.closes);
        self.posts.insert(PRESENCE, Post { closes, ..Post::new(Posted::unattended(message)) });
        self.announced = Some(now);
    }

    fn take(&mut self, posted: Posted) {
        self.posts.insert(self.next, Post::new(posted));
        self.to_send.insert((0, self.next));
        self.next += 1;
    }

    /// Moves the messages whose pause is over.
    fn wake(&mut self, now: Instant) {
        while let Some((_, number)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.later.pop_first();
            let closes = self.posts.get(&number).map_or(0, |post| post.closes);
            self.to_send.insert((closes, number));
        }
    }

    /// Hands a message to the client, if it may be published.
    async fn send(
        &mut self,
        number: u64,
        client: &AsyncClient,
        terms: &Terms,
        now: Instant,
    ) -> Option<PublishNotice> {
        let most = self.packet_max(terms, now);
        let post = self.posts.get_mut(&number)?;
        let message = &post.posted.message;
        let retain = message.retain && terms.retain;
        post.size = size_of(message, terms.qos);
        let size = post.size;
        if let Some(most) = most.map(|most| most as usize).filter(|most| size > *most) {
            self.too_large(number, most);
            return None;
        }
        match self.breakers.gate(&message.topic, size, now) {
            Gate::Open => {}
            Gate::Refused(reason) => {
                self.drop_refused(number, reason);
                return None;
            }
            Gate::Wait(until) => {
                self.retry_at(number, until, None);
                return None;
            }
            Gate::Closes(0) => {
                let why =
                    "the broker ends the connection when a message is published to this topic";
                self.finish(number, Err(Undeliverable::Refused), Undelivered::Refused, why);
                return None;
            }
            Gate::Closes(closed_at) => {
                self.too_large(number, closed_at.saturating_sub(1));
                return None;
            }
        }
        let options = publish_options(terms.qos, message).retain(retain);
        let (topic, payload) = (message.topic.clone(), message.payload.clone());
        match client.publish_tracked(topic, payload, options).await {
            Ok(notice) => Some(notice),
            Err(ClientError::InvalidRequest(_)) => {
                let why = "the topic is not valid";
                self.finish(number, Err(Undeliverable::Refused), Undelivered::Invalid, why);
                None
            }
            // the client has ended; the next one gets the message
            Err(_) => {
                self.lost.push(number);
                None
            }
        }
    }

    fn answered(&mut self, number: u64, result: Result<(), PublishNoticeError>, now: Instant) {
        let code = match result {
            Ok(()) => return self.delivered(number, now),
            Err(PublishNoticeError::V5PubAck(code)) => code as u8,
            Err(PublishNoticeError::V5PubRec(code)) => code as u8,
            Err(PublishNoticeError::V5PubComp(code)) => code as u8,
            Err(error) => {
                tracing::debug!(%error, "a publish is repeated on the next connection");
                return self.lost.push(number);
            }
        };
        self.suspects.remove(&number);
        let reason = ReasonCode::of(code);
        let Some(post) = self.posts.get(&number) else { return };
        match reason.publish {
            PublishFate::Delivered => self.delivered(number, now),
            PublishFate::Drop => {
                self.breakers.refused(&post.posted.message.topic, reason, now);
                self.drop_refused(number, reason);
            }
            PublishFate::Retry => {
                let until = self.breakers.refused(&post.posted.message.topic, reason, now);
                self.retry_at(number, until, Some(reason));
            }
            PublishFate::TooLarge => {
                self.breakers.closes(&post.posted.message.topic, post.size, now);
                self.too_large(number, post.size.saturating_sub(1));
            }
        }
    }

    fn delivered(&mut self, number: u64, now: Instant) {
        self.suspects.remove(&number);
        let Some(Post { posted, size, .. }) = self.posts.remove(&number) else { return };
        self.largest = self.largest.max(size);
        self.report.delivered(&posted.message.topic);
        if let Some(closed_at) = self.breakers.delivered(&posted.message.topic)
            && self.learned.is_none_or(|(most, _)| most >= closed_at)
        {
            self.learn(closed_at, now);
        }
        let _ = posted.done.send(Ok(()));
    }

    /// The broker ends the connection for this message.
    fn is_cause(&mut self, number: u64, reason: Option<ReasonCode>, now: Instant) {
        let Some(post) = self.posts.get(&number) else { return };
        let (topic, size) = (&post.posted.message.topic, post.size);
        match reason.filter(|reason| reason.publish != PublishFate::TooLarge) {
            Some(reason) if reason.suspicion == Suspicion::Named => {
                self.breakers.refused(topic, reason, now);
                self.drop_refused(number, reason);
            }
            // whether its size or its topic is the cause is known when a shorter one has been tried
            Some(_) | None => {
                self.breakers.closes(topic, size, now);
                self.too_large(number, size.saturating_sub(1));
            }
        }
    }

    /// Learns a packet size that the broker does not accept. The size to keep to is half of that, so
    /// that a few failures find any limit, or what the broker has accepted.
    fn learn(&mut self, size: usize, now: Instant) {
        let most = (size / 2).max(self.largest.min(size.saturating_sub(1)));
        self.learned = Some((most, now));
        let text = format!(
            "the broker does not accept a packet of {size} bytes and stated no limit: packets of more \
             than {most} bytes are not published for an hour"
        );
        self.report.problem("packet size", &text);
    }

    /// The largest packet that the broker accepts, stated or learned.
    fn packet_max(&self, terms: &Terms, now: Instant) -> Option<u32> {
        let learned =
            self.learned.filter(|(_, since)| now.duration_since(*since) < PACKET_MAX_LEARNED);
        let learned = learned.and_then(|(most, _)| u32::try_from(most).ok());
        [terms.packet_max, learned].into_iter().flatten().min()
    }

    fn retry_at(&mut self, number: u64, until: Instant, refused: Option<ReasonCode>) {
        let Some(post) = self.posts.get_mut(&number) else { return };
        post.retries += u32::from(refused.is_some());
        let may_wait = self.later.len() < PUBLISH_RETRIES_WAITING_MAX;
        if post.retries <= PUBLISH_RETRIES_MAX && may_wait {
            self.later.insert((until, number));
        } else {
            let why = refused.map_or_else(|| "earlier refusals".to_owned(), ReasonCode::text);
            let why = format!("refused by the broker: {why}");
            self.finish(number, Err(Undeliverable::Refused), Undelivered::Refused, &why);
        }
    }

    fn drop_refused(&mut self, number: u64, reason: ReasonCode) {
        let why = format!("refused by the broker: {}", reason.text());
        self.finish(number, Err(Undeliverable::Refused), Undelivered::Refused, &why);
    }

    fn too_large(&mut self, number: u64, most: usize) {
        let size = self.posts.get(&number).map_or(0, |post| post.size);
        let why = format!("the packet has {size} bytes, the broker accepts {most}");
        let result = Err(Undeliverable::TooLarge { size, most });
        self.finish(number, result, Undelivered::TooLarge, &why);
    }

    /// Ends a message that is not delivered.
    fn finish(
        &mut self,
        number: u64,
        result: Result<(), Undeliverable>,
        kind: Undelivered,
        why: &str,
    ) {
        self.suspects.remove(&number);
        if let Some(Post { posted, .. }) = self.posts.remove(&number) {
            self.report.undelivered(kind, &posted.message.topic, why);
            let _ = posted.done.send(result);
        }
    }
}

impl Post {
    fn new(posted: Posted) -> Post {
        Post { posted, size: 0, closes: 0, retries: 0 }
    }
}
