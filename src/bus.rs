//! The one line to the MQTT broker: bounded, reconnecting, and nothing that was taken is lost
//! while the service runs.
//!
//! *Outbox*: what shall be published waits here until the broker has acknowledged it; after a
//! lost connection or session it is offered again. *Ticket*: a request that was received and not
//! yet acknowledged; tickets are acknowledged in the order of receipt [MQTT-4.6.0-2], and those
//! of an earlier connection never, because packet identifiers start again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{
    ConnectProperties, LastWill, Packet, Publish, PublishProperties, SubscribeReasonCode,
};
use rumqttc::{
    AckMode, AsyncClient, Broker, BrokerSessionResumePolicy, Event, EventLoop, MqttOptions,
    PublishNotice, PublishNoticeError, PublishOptions, SubscribeFilter, Transport,
};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::limits::{
    MQTT_INBOX_MAX, MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE, MQTT_PACKET_BYTES_MAX, MQTT_RECEIVE_MAX,
    MQTT_SESSION_EXPIRY, OUTBOX_BYTES_MAX, OUTBOX_MAX, RECONNECT_MAX, RECONNECT_MIN, REQUEST_BYTES_MAX,
};

/// Where the broker is and who we are.
#[derive(Clone)]
pub struct Options {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Encryption.
    pub tls: Option<Arc<ClientConfig>>,
    /// Our name at the broker, the same after a restart.
    pub client_id: String,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// What we listen to.
    pub filters: Vec<String>,
    /// What we say of ourselves, if anything.
    pub presence: Option<Presence>,
    /// Whether the broker keeps what comes while we are away.
    pub session: Session,
}

/// A retained word on whether we are there; the broker says it for us when we are gone.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Where.
    pub topic: String,
    /// What we say when we are there.
    pub online: Bytes,
    /// What is said when we are gone.
    pub offline: Bytes,
}

/// What the broker remembers of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Subscriptions and messages, for [`MQTT_SESSION_EXPIRY`].
    Kept,
    /// Nothing.
    Clean,
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: String,
    /// What.
    pub payload: Bytes,
    /// The asker's mark, handed back.
    pub correlation: Option<Bytes>,
    /// The broker keeps it for later subscribers.
    pub retain: bool,
}

/// A message that came.
#[derive(Debug)]
pub struct Message {
    /// Where it was published.
    pub topic: String,
    /// What; or how many bytes it had, if these were too many.
    pub payload: Result<Bytes, usize>,
    /// The broker had kept it for us.
    pub retained: bool,
    /// The broker has sent it before.
    pub again: bool,
    /// Where the asker wants the answer.
    pub response_topic: Option<String>,
    /// The asker's mark.
    pub correlation: Option<Bytes>,
    /// How long it is of use.
    pub expiry: Option<Duration>,
    /// Dropped when the request has had its answer.
    pub ticket: Ticket,
}

/// The duty to acknowledge one message. Dropping it does so, in order, if its connection lives.
#[derive(Debug)]
pub struct Ticket {
    generation: u64,
    packet: u16,
    to: mpsc::Sender<(u64, u16)>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // the line is as long as all tickets of two connections
        let _ = self.to.try_send((self.generation, self.packet));
    }
}

/// The state of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Not there, and why.
    Down(String),
    /// Connected and subscribed.
    Up,
}

/// What the doors hold.
#[derive(Clone)]
pub struct Bus {
    outbox: mpsc::Sender<Posted>,
    bytes: Arc<AtomicUsize>,
    pieces: watch::Receiver<Option<AsyncClient>>,
    line: watch::Receiver<Line>,
}

struct Posted {
    message: Outgoing,
    done: oneshot::Sender<()>,
    _room: Room,
}

/// The bytes that a message takes of the outbox, given back when it is dropped.
struct Room(Arc<AtomicUsize>, usize);

impl Room {
    fn take(bytes: &Arc<AtomicUsize>, wanted: usize) -> Result<Room, Full> {
        let fits = |held: usize| held.checked_add(wanted).filter(|sum| *sum <= OUTBOX_BYTES_MAX);
        bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Full)?;
        Ok(Room(Arc::clone(bytes), wanted))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The outbox is full: the broker is away or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Bus {
    /// Puts a message into the outbox; the result ends when the broker has acknowledged it.
    ///
    /// # Errors
    /// [`Full`] if too much waits already.
    pub fn publish(&self, message: Outgoing) -> Result<oneshot::Receiver<()>, Full> {
        let (done, acknowledged) = oneshot::channel();
        let room = Room::take(&self.bytes, message.payload.len())?;
        self.outbox.try_send(Posted { message, done, _room: room }).map_err(|_| Full)?;
        Ok(acknowledged)
    }

    /// Publishes a piece of a stream if the line is there and has room; it is not offered again.
    pub fn piece(&self, topic: &str, payload: Vec<u8>) {
        if let Some(client) = self.pieces.borrow().as_ref() {
            let _ = client.try_publish(topic, payload, PublishOptions::new(QoS::AtMostOnce));
        }
    }

    /// The state of the line.
    pub fn line(&self) -> watch::Receiver<Line> {
        self.line.clone()
    }
}

/// Makes the line, its inbox, and the task that keeps it until `stop`.
pub fn open(
    options: Options,
    stop: CancellationToken,
) -> (Bus, mpsc::Receiver<Message>, impl Future<Output = ()> + Send + 'static) {
    let (outbox, posted) = mpsc::channel(OUTBOX_MAX);
    let (inbox, messages) = mpsc::channel(MQTT_INBOX_MAX);
    let (line_out, line) = watch::channel(Line::Down("not connected yet".to_owned()));
    let (pieces_out, pieces) = watch::channel(None);
    let (tickets, handed_back) = mpsc::channel(4 * MQTT_RECEIVE_MAX as usize);
    let driver = Driver {
        options,
        posted,
        held: Held::default(),
        inbox,
        line: line_out,
        pieces: pieces_out,
        tickets,
        handed_back,
        generation: 0,
    };
    (Bus { outbox, bytes: Arc::default(), pieces, line }, messages, driver.run(stop))
}

struct Driver {
    options: Options,
    posted: mpsc::Receiver<Posted>,
    held: Held,
    inbox: mpsc::Sender<Message>,
    line: watch::Sender<Line>,
    pieces: watch::Sender<Option<AsyncClient>>,
    tickets: mpsc::Sender<(u64, u16)>,
    handed_back: mpsc::Receiver<(u64, u16)>,
    generation: u64,
}

/// Why a client was given up.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    Stopped,
    /// Nothing went out for two keep-alive intervals although something was owed.
    Stuck,
}

impl Driver {
    async fn run(mut self, stop: CancellationToken) {
        // ends with the service; a stuck client is replaced
        while self.with_client(&stop).await == Given::Stuck {
            tracing::warn!("the MQTT client made no progress and is made anew");
        }
        self.line.send_replace(Line::Down("stopped".to_owned()));
    }

    async fn with_client(&mut self, stop: &CancellationToken) -> Given {
        let (client, events) =
            AsyncClient::builder(mqtt_options(&self.options)).capacity(MQTT_INBOX_MAX).build();
        self.pieces.send_replace(Some(client.clone()));
        let line = self.line.subscribe();
        let mut poller = Poller {
            options: &self.options,
            client: client.clone(),
            inbox: &self.inbox,
            line: &self.line,
            tickets: &self.tickets,
            handed_back: &mut self.handed_back,
            generation: &mut self.generation,
            owed: VecDeque::new(),
        };
        let given = tokio::select! {
            () = send_all(client, &mut self.posted, &mut self.held, line) => Given::Stuck,
            () = poller.poll(events, stop) => Given::Stopped,
        };
        self.pieces.send_replace(None);
        given
    }
}

/// What was taken from the doors and is not acknowledged, in the order in which it was taken.
#[derive(Default)]
struct Held {
    posts: BTreeMap<u64, Posted>,
    /// To be offered, again or for the first time.
    offers: VecDeque<u64>,
    next: u64,
}

impl Held {
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
                tracing::debug!(%error, "a publish was lost with its session; offered again");
                self.offers.push_back(number);
            }
        }
    }
}

/// Publishes what is in the outbox and holds on to it until it is acknowledged. Ends only if the
/// client makes no progress although the line stands.
async fn send_all(
    client: AsyncClient,
    posted: &mut mpsc::Receiver<Posted>,
    held: &mut Held,
    line: watch::Receiver<Line>,
) {
    held.offer_all_again();
    let mut flying = FuturesUnordered::new();
    // ends when the client is given up
    loop {
        let room = flying.len() < usize::from(MQTT_INFLIGHT_MAX);
        if room && let Some(number) = held.offers.pop_front() {
            let Some(posted) = held.posts.get(&number) else { continue };
            match offer(&client, &posted.message).await {
                Some(notice) => flying.push(async move {
                    (number, notice.wait_completion_async().await)
                }),
                None => drop(held.posts.remove(&number)),
            }
            continue;
        }
        let owed = !flying.is_empty();
        tokio::select! {
            Some((number, result)) = flying.next(), if owed => held.landed(number, result),
            Some(posted) = posted.recv(), if room => held.take(posted),
            () = tokio::time::sleep(MQTT_KEEP_ALIVE * 2), if owed => {
                if *line.borrow() == Line::Up {
                    return;
                }
            }
            else => return std::future::pending().await,
        }
    }
}

async fn offer(client: &AsyncClient, message: &Outgoing) -> Option<PublishNotice> {
    let options = PublishOptions::new(QoS::AtLeastOnce).retain(message.retain).properties(
        PublishProperties {
            correlation_data: message.correlation.clone(),
            ..PublishProperties::default()
        },
    );
    let topic = message.topic.clone();
    client
        .publish_tracked(topic, message.payload.clone(), options)
        .await
        .inspect_err(|error| tracing::error!(%error, topic = message.topic, "this can't be published"))
        .ok()
}

struct Poller<'d> {
    options: &'d Options,
    client: AsyncClient,
    inbox: &'d mpsc::Sender<Message>,
    line: &'d watch::Sender<Line>,
    tickets: &'d mpsc::Sender<(u64, u16)>,
    handed_back: &'d mut mpsc::Receiver<(u64, u16)>,
    generation: &'d mut u64,
    /// Messages of this connection in order of receipt, and whether each may be acknowledged.
    owed: VecDeque<(Publish, bool)>,
}

impl Poller<'_> {
    /// `poll` is never abandoned half-way: it runs in a task of its own and hands its events over.
    async fn poll(&mut self, events: EventLoop, stop: &CancellationToken) {
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
                        if self.on(event) {
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
    fn on(&mut self, event: Event) -> bool {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                *self.generation += 1;
                self.owed.clear();
                self.greet();
                true
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let refused = ack.return_codes.iter().any(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                if refused {
                    tracing::error!(codes = ?ack.return_codes, "the broker refuses our subscriptions");
                    self.line.send_replace(Line::Down("the broker refuses our subscriptions".to_owned()));
                } else {
                    self.line.send_replace(Line::Up);
                }
                false
            }
            Event::Incoming(Packet::Publish(publish)) => {
                self.received(publish);
                false
            }
            Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_) => false,
        }
    }

    /// Subscribes again, whatever the broker remembers, and says that we are there.
    fn greet(&mut self) {
        let filters = self.options.filters.iter().map(|f| SubscribeFilter::new(f.clone(), QoS::AtLeastOnce));
        if self.client.try_subscribe_many(filters).is_err() {
            tracing::error!("no room to subscribe");
        }
        if let Some(presence) = &self.options.presence {
            let online = PublishOptions::new(QoS::AtLeastOnce).retained();
            let _ = self.client.try_publish(presence.topic.clone(), presence.online.clone(), online);
        }
        tracing::info!(host = self.options.host, port = self.options.port, "connected to the broker");
    }

    fn lost(&mut self, error: &str) {
        self.owed.clear();
        let reason = error.to_owned();
        if *self.line.borrow() != Line::Down(reason.clone()) {
            tracing::warn!(reason, host = self.options.host, port = self.options.port, "the line to the broker is down");
            self.line.send_replace(Line::Down(reason));
        }
    }

    fn received(&mut self, publish: Publish) {
        let ticket = Ticket {
            generation: if publish.qos == QoS::AtMostOnce { 0 } else { *self.generation },
            packet: publish.pkid,
            to: self.tickets.clone(),
        };
        let properties = publish.properties.clone().unwrap_or_default();
        let size = publish.payload.len();
        let message = Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: if size > REQUEST_BYTES_MAX { Err(size) } else { Ok(publish.payload.clone()) },
            retained: publish.retain,
            again: publish.dup,
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
            expiry: properties.message_expiry_interval.map(|s| Duration::from_secs(s.into())),
            ticket,
        };
        if publish.qos != QoS::AtMostOnce {
            self.owed.push_back((Publish { payload: Bytes::new(), ..publish }, false));
        }
        if self.inbox.try_send(message).is_err() {
            tracing::warn!("more QoS 0 messages than can be taken; one was dropped");
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
        if *self.line.borrow() != Line::Up {
            return false;
        }
        if let Some(presence) = &self.options.presence {
            let offline = PublishOptions::new(QoS::AtLeastOnce).retained();
            let _ = self.client.try_publish(presence.topic.clone(), presence.offline.clone(), offline);
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

fn mqtt_options(options: &Options) -> MqttOptions {
    let broker = Broker::tcp(options.host.clone(), options.port);
    let mut mqtt = MqttOptions::new(options.client_id.clone(), broker);
    mqtt.set_keep_alive(u16::try_from(MQTT_KEEP_ALIVE.as_secs()).unwrap_or(20));
    // one struct, set first: later setters would be overwritten by it
    mqtt.set_connect_properties(ConnectProperties {
        session_expiry_interval: match options.session {
            Session::Kept => u32::try_from(MQTT_SESSION_EXPIRY.as_secs()).ok(),
            Session::Clean => Some(0),
        },
        receive_maximum: Some(MQTT_RECEIVE_MAX),
        max_packet_size: Some(MQTT_PACKET_BYTES_MAX),
        ..ConnectProperties::new()
    });
    mqtt.set_clean_start(options.session == Session::Clean);
    // after a restart we know nothing of what was in flight: the broker's queue is still wanted
    mqtt.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
    mqtt.set_ack_mode(AckMode::Manual);
    mqtt.set_outgoing_inflight_upper_limit(MQTT_INFLIGHT_MAX);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(10);
    mqtt.set_network_options(network);
    if let Some(Presence { topic, offline, .. }) = &options.presence {
        let will = LastWill::new(topic.clone(), offline.clone(), QoS::AtLeastOnce, true, None);
        mqtt.set_last_will(will);
    }
    if let Some((user, password)) = &options.credentials {
        mqtt.set_credentials(user.clone(), password.clone());
    }
    if let Some(tls) = &options.tls {
        let tls = rumqttc::TlsConfiguration::Rustls(Arc::clone(tls));
        mqtt.set_transport(Transport::tls_with_config(tls));
    }
    mqtt
}
