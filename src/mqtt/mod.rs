//! The connection to the MQTT broker: bounded queues, reconnection, and no accepted message is lost
//! while the service runs.
//!
//! *Outbox*: a message waits here until the broker has answered it; after a lost connection or session
//! it is sent again. The limits that the broker states and its reason codes are obeyed (`terms`,
//! `reasons`); what it refuses is counted and reported (`report`). *Acknowledgement*: a received QoS 1 message is acknowledged by
//! [`AckGuard::ack`], in the order of receipt [MQTT-4.6.0-2], and never on a later connection,
//! because packet identifiers start again.

mod acks;
mod backoff;
mod breaker;
#[cfg(feature = "embedded-broker")]
pub mod broker;
mod loss;
mod message;
mod outbox;
mod poller;
mod reasons;
mod report;
mod resume;
mod router;
mod spool;
mod terms;
mod window;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnectProperties, LastWill, Publish, PublishProperties};
use rumqttc::{AckMode, AsyncClient, Broker, ClientError, MqttOptions, PublishOptions, Transport};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::acks::SettledMessage;
use self::backoff::{Acceptance, Backoff};
use self::loss::Loss;
use self::outbox::{Outbox, PublishesInFlight};
use self::poller::{ConnectionEnd, Identity, Poller, Subscriptions};
use self::reasons::{Pause, ReasonCode, SESSION_TAKEN_OVER};
use self::resume::EmptyHalf;
use self::spool::Spool;
use self::terms::RefusedFeatures;
use self::window::ReceiveWindow;
use crate::clock;
use crate::limits::{
    MQTT_INBOX_MAX, MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE, MQTT_PACKET_BYTES_MAX, MQTT_RECEIVE_MAX,
    MQTT_SESSION_EXPIRY, OUTBOX_BYTES_MAX, OUTBOX_MAX, SPOOL_MAX,
};

pub use self::acks::AckGuard;
pub use self::message::{Incoming, Outgoing};
pub use self::report::{BrokerReport, Undelivered};
pub use self::router::{Router, Subscription};

/// The broker's address, and the identity of this client.
#[derive(Clone)]
pub struct ConnectionOptions {
    /// Host name or address of the broker.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// TLS, if the connection is encrypted.
    pub tls: Option<Arc<ClientConfig>>,
    /// Client identifier, the same after a restart.
    pub client_id: String,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// Presence that this client publishes, if any.
    pub presence: Option<Presence>,
    /// Whether the broker keeps the session while this client is disconnected.
    pub session: Session,
    /// Folder for requests that are acknowledged before their answer; without one, none are.
    pub spool: Option<PathBuf>,
}

/// A retained message that states whether this client is connected; its offline form is the last
/// will, which the broker publishes when the connection is lost.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Topic of the message.
    pub topic: String,
    /// Payload while connected.
    pub online: Bytes,
    /// Payload while disconnected.
    pub offline: Bytes,
}

/// What the broker keeps of this client between connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Subscriptions and messages, for [`MQTT_SESSION_EXPIRY`].
    Kept,
    /// Nothing.
    Clean,
}

/// The state of the connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// Not connected, with the reason.
    Down(String),
    /// Connected and subscribed.
    Up,
}

/// The publishing end of a connection; cheap to clone.
#[derive(Clone)]
pub struct Bus {
    outbox: mpsc::Sender<Posted>,
    bytes: Arc<AtomicUsize>,
    client: watch::Receiver<Option<AsyncClient>>,
    connection: watch::Receiver<ConnectionState>,
    report: Arc<BrokerReport>,
}

struct Posted {
    message: Outgoing,
    done: oneshot::Sender<Result<(), Undeliverable>>,
    _reserved: ReservedBytes,
}

impl Posted {
    /// A message whose delivery nobody waits for.
    fn unattended(message: Outgoing) -> Posted {
        let (done, _) = oneshot::channel();
        Posted { message, done, _reserved: ReservedBytes(Arc::default(), 0) }
    }
}

/// Bytes of the outbox that a message takes, given back when it is dropped.
struct ReservedBytes(Arc<AtomicUsize>, usize);

impl ReservedBytes {
    fn take(bytes: &Arc<AtomicUsize>, wanted: usize) -> Result<ReservedBytes, Full> {
        let fits = |held: usize| held.checked_add(wanted).filter(|sum| *sum <= OUTBOX_BYTES_MAX);
        bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Full)?;
        Ok(ReservedBytes(Arc::clone(bytes), wanted))
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The outbox is full: the broker is disconnected or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Why the broker did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeliverable {
    /// The broker refuses it, or its topic is not valid.
    Refused,
    /// Its packet is larger than the broker accepts.
    TooLarge {
        /// Size of the packet in bytes.
        size: usize,
        /// Largest accepted size in bytes.
        most: usize,
    },
}

/// Why a message was not sent with `QoS` 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The connection is down, or its queue is full.
    Busy,
    /// The broker does not accept it: it is too large, or its topic is not valid.
    Unacceptable,
}

impl Bus {
    /// Puts a message into the outbox, from where it is sent with QoS 1. The result is ready when
    /// the broker has acknowledged it, or it is certain that the broker does not take it.
    ///
    /// # Errors
    /// [`Full`] if [`OUTBOX_MAX`] messages or [`OUTBOX_BYTES_MAX`] bytes wait already.
    pub fn publish(
        &self,
        message: Outgoing,
    ) -> Result<oneshot::Receiver<Result<(), Undeliverable>>, Full> {
        let (done, answered) = oneshot::channel();
        let reserved = ReservedBytes::take(&self.bytes, message.payload.len());
        let posted = reserved.and_then(|reserved| {
            let posted = Posted { message, done, _reserved: reserved };
            self.outbox.try_send(posted).map_err(|_| Full)
        });
        posted.map(|()| answered)
    }

    /// Publishes a message with QoS 0, if connected and with room: a lost message is not sent again.
    ///
    /// # Errors
    /// [`NotSent`] if it was not sent.
    pub fn once(&self, message: Outgoing) -> Result<(), NotSent> {
        if *self.connection.borrow() != ConnectionState::Up {
            return Err(NotSent::Busy);
        }
        let size = size_of(&message, QoS::AtMostOnce);
        if size > self.packet_max() {
            let why = format!("{size} bytes, the broker accepts {}", self.packet_max());
            self.report.undelivered(Undelivered::TooLarge, &message.topic, &why);
            return Err(NotSent::Unacceptable);
        }
        let client = self.client.borrow().clone().ok_or(NotSent::Busy)?;
        let options = publish_options(QoS::AtMostOnce, &message);
        client.try_publish(message.topic, message.payload, options).map_err(|error| match error {
            ClientError::InvalidRequest(_) => NotSent::Unacceptable,
            ClientError::RequestChannelFull(_)
            | ClientError::RequestChannelDisconnected(_)
            | ClientError::TrackingUnavailable
            | _ => NotSent::Busy,
        })
    }

    /// Largest packet in bytes that the broker accepts.
    pub fn packet_max(&self) -> usize {
        self.report.packet_max()
    }

    /// What the broker refused and what could not be delivered.
    pub fn report(&self) -> &BrokerReport {
        &self.report
    }

    /// The state of the connection.
    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.connection.clone()
    }
}

/// Makes a connection: its publishing end, and the task that keeps it connected until `stop` and
/// delivers received messages by `router`.
pub fn open(
    options: ConnectionOptions,
    router: Router,
    stop: CancellationToken,
) -> (Bus, impl Future<Output = ()> + Send + 'static) {
    let (outbox, posted) = mpsc::channel(OUTBOX_MAX);
    let (state, connection) = watch::channel(ConnectionState::Down("not connected yet".to_owned()));
    let (client_out, client) = watch::channel(None);
    let (acks, settled) = mpsc::channel(4 * MQTT_RECEIVE_MAX as usize + 2 * SPOOL_MAX);
    let spool = options.spool.as_deref().and_then(open_spool);
    let report = Arc::new(BrokerReport::default());
    let presence = options.presence.as_ref().map(|presence| Outgoing {
        topic: presence.topic.clone(),
        payload: presence.online.clone(),
        retain: true,
        ..Outgoing::default()
    });
    let driver = Driver {
        options,
        router,
        outbox: Outbox::new(posted, presence, Arc::clone(&report)),
        state,
        client: client_out,
        acks,
        settled,
        window: ReceiveWindow::new(spool),
        refused: RefusedFeatures::default(),
        closes: 0,
        report: Arc::clone(&report),
    };
    (Bus { outbox, bytes: Arc::default(), client, connection, report }, driver.run(stop))
}

/// Without its folder the service works: requests that take long then keep others at the broker.
fn open_spool(folder: &Path) -> Option<Spool> {
    let opened = Spool::open(folder);
    if let Err(error) = &opened {
        tracing::warn!(path = %folder.display(), %error, "the spool cannot be opened");
    }
    opened.ok()
}

fn publish_options(qos: QoS, message: &Outgoing) -> PublishOptions {
    PublishOptions::new(qos).retain(message.retain).properties(properties_of(message))
}

fn properties_of(message: &Outgoing) -> PublishProperties {
    let seconds =
        |time: Duration| u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    PublishProperties {
        correlation_data: message.correlation.clone(),
        response_topic: message.response_topic.clone(),
        message_expiry_interval: message.expiry.map(seconds),
        user_properties: message.properties.clone(),
        ..PublishProperties::default()
    }
}

/// The size of the packet that publishes this message.
fn size_of(message: &Outgoing, qos: QoS) -> usize {
    let properties = Some(properties_of(message));
    let (topic, payload) = (message.topic.clone(), message.payload.clone());
    // any packet identifier has two bytes
    Publish { pkid: 1, ..Publish::new(topic, qos, payload, properties) }.size()
}

struct Driver {
    options: ConnectionOptions,
    router: Router,
    outbox: Outbox,
    state: watch::Sender<ConnectionState>,
    client: watch::Sender<Option<AsyncClient>>,
    acks: mpsc::Sender<SettledMessage>,
    settled: mpsc::Receiver<SettledMessage>,
    window: ReceiveWindow,
    refused: RefusedFeatures,
    /// Connections in succession that the broker accepted and closed without a reason.
    closes: u32,
    report: Arc<BrokerReport>,
}

impl Driver {
    async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(clock::now());
        self.restore(&stop).await;
        // ends with the service
        while let (ConnectionEnd::Lost(loss), attempt) = self.connect(&stop).await {
            let wait = backoff.after(attempt, self.lost(&loss), clock::now());
            if !self.wait(wait, &stop).await {
                break;
            }
        }
        self.state.send_replace(ConnectionState::Down("stopped".to_owned()));
    }

    /// Delivers the requests that an earlier process acknowledged and did not finish.
    async fn restore(&mut self, stop: &CancellationToken) {
        let left = self.window.restore();
        if !left.is_empty() {
            tracing::info!(requests = left.len(), "requests of the last start are taken up again");
        }
        for (number, message) in left {
            let ack = AckGuard::new(Some(number), self.acks.clone());
            let Some(incoming) = message.incoming(ack) else { continue };
            self.router.deliver(incoming, stop).await;
        }
    }

    /// Serves one connection; returns its end, and whether the broker accepted it. Each has a client of the library
    /// of its own, which publishes nothing before the limits of the broker are known.
    async fn connect(&mut self, stop: &CancellationToken) -> (ConnectionEnd, Acceptance) {
        let mqtt = mqtt_options(&self.options, self.refused.will());
        let (client, events) = AsyncClient::builder(mqtt).capacity(MQTT_INBOX_MAX).build();
        self.client.send_replace(Some(client.clone()));
        let (accepted, acceptance) = watch::channel(None);
        let (mut in_flight, mut tasks) = (PublishesInFlight::default(), JoinSet::new());
        let mut poller = Poller {
            options: &self.options,
            client: client.clone(),
            router: &self.router,
            state: &self.state,
            accepted,
            refused: &mut self.refused,
            report: &self.report,
            acks: &self.acks,
            settled: &mut self.settled,
            window: &mut self.window,
            subscriptions: Subscriptions::default(),
            // not each time: a broker may close the connection for this subscription
            identity: if self.closes % 2 == 1 { Identity::Watched } else { Identity::Assumed },
        };
        let mut end = tokio::select! {
            () = self.outbox.send_all(&client, acceptance.clone(), &mut in_flight) => {
                ConnectionEnd::Lost(Loss::Other("the broker answers no publish".to_owned()))
            }
            end = poller.poll(events, &mut tasks, stop) => end,
        };
        let is_shared = poller.identity == Identity::Shared;
        drop(poller);
        self.window.disconnected();
        self.client.send_replace(None);
        drop(client);
        tasks.shutdown().await;
        let is_accepted = acceptance.borrow().is_some();
        let is_closed = is_accepted && end == ConnectionEnd::Lost(Loss::Closed);
        self.closes = if is_closed { self.closes + 1 } else { 0 };
        if is_closed && is_shared {
            end = ConnectionEnd::Lost(Loss::Disconnected(ReasonCode::of(SESSION_TAKEN_OVER), None));
        }
        if let ConnectionEnd::Lost(loss) = &end {
            self.outbox.disconnected(in_flight, loss).await;
        }
        (end, if is_accepted { Acceptance::Accepted } else { Acceptance::Failed })
    }

    /// Notes a lost connection; returns how soon the next may be made.
    fn lost(&mut self, loss: &Loss) -> Pause {
        let reason = loss.text();
        if *self.state.borrow() != ConnectionState::Down(reason.clone()) {
            let (host, port) = (&self.options.host, self.options.port);
            tracing::warn!(reason, host, port, "broker connection lost");
            self.state.send_replace(ConnectionState::Down(reason.clone()));
        }
        match loss {
            Loss::Refused(refused) if self.refused.refused_connection(*refused) => Pause::Soon,
            Loss::Disconnected(reason, _) => {
                self.refused.disconnected(*reason);
                if reason.pause == Pause::Rarely {
                    self.report.problem("connection", &loss.text());
                }
                // a message may be the cause: it is found by further connections
                if self.outbox.has_suspects() { Pause::Soon } else { loss.pause() }
            }
            Loss::Refused(_)
            | Loss::UndefinedCode(_)
            | Loss::Closed
            | Loss::Violation(_)
            | Loss::Other(_) => loss.pause(),
        }
    }

    /// Waits, and notes the ends of messages meanwhile; returns false if the
    /// service stops.
    async fn wait(&mut self, wait: Duration, stop: &CancellationToken) -> bool {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        // bounded by the wait
        loop {
            tokio::select! {
                () = &mut over => return true,
                Some(settled) = self.settled.recv() => self.window.settle(settled),
                () = self.window.written() => {}
                () = stop.cancelled() => return false,
            }
        }
    }
}

/// The options of one connection; `will` is the quality of service and retain flag of the will message.
fn mqtt_options(options: &ConnectionOptions, will: Option<(QoS, bool)>) -> MqttOptions {
    let broker = Broker::tcp(options.host.clone(), options.port);
    let mut mqtt = MqttOptions::new(options.client_id.clone(), broker);
    mqtt.set_keep_alive(u16::try_from(MQTT_KEEP_ALIVE.as_secs()).unwrap_or(20));
    // set first: it overwrites what single setters have set
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
    if options.session == Session::Kept {
        mqtt.set_session_store(EmptyHalf);
    }
    mqtt.set_ack_mode(AckMode::Manual);
    mqtt.set_outgoing_inflight_upper_limit(MQTT_INFLIGHT_MAX);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(10);
    mqtt.set_network_options(network);
    if let (Some(Presence { topic, offline, .. }), Some((qos, retain))) = (&options.presence, will)
    {
        let will = LastWill::new(topic.clone(), offline.clone(), qos, retain, None);
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
