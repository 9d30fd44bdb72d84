//! The connection to the MQTT broker: bounded queues, reconnection, and no accepted message is lost
//! while the service runs.
//!
//! *Outbox*: a message waits here until the broker has acknowledged it; after a lost connection or
//! session it is sent again. *Acknowledgement*: a received QoS 1 message is acknowledged by
//! [`AckGuard::ack`], in the order of receipt [MQTT-4.6.0-2], and never on a later connection,
//! because packet identifiers start again.

mod acks;
#[cfg(feature = "embedded-broker")]
pub mod broker;
mod outbox;
mod poller;
mod resume;
mod router;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnectProperties, LastWill, PublishProperties};
use rumqttc::{AckMode, AsyncClient, Broker, MqttOptions, PublishOptions, Transport};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::acks::{SettledMessage, Unsettled};
use self::outbox::{Unacked, send_all};
use self::poller::Poller;
use self::resume::EmptyHalf;
use crate::limits::{
    MQTT_INBOX_MAX, MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE, MQTT_PACKET_BYTES_MAX, MQTT_RECEIVE_MAX,
    MQTT_SESSION_EXPIRY, OUTBOX_BYTES_MAX, OUTBOX_MAX,
};

pub use self::acks::AckGuard;
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

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outgoing {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Correlation data of the client's request, returned to it.
    pub correlation: Option<Bytes>,
    /// The broker keeps the message for later subscribers.
    pub retain: bool,
    /// Topic for the answer, if one is wanted.
    pub response_topic: Option<String>,
    /// Message expiry interval; whole seconds on the wire, rounded up.
    pub expiry: Option<Duration>,
    /// User properties.
    pub properties: Vec<(String, String)>,
}

/// A received message.
#[derive(Debug)]
pub struct Incoming {
    /// Topic.
    pub topic: String,
    /// Payload; or its length in bytes, if that is more than a request may have.
    pub payload: Result<Bytes, usize>,
    /// The broker had retained it.
    pub retained: bool,
    /// The broker has delivered it before (the DUP flag).
    pub again: bool,
    /// Topic for the answer.
    pub response_topic: Option<String>,
    /// Correlation data.
    pub correlation: Option<Bytes>,
    /// Message expiry interval.
    pub expiry: Option<Duration>,
    /// User properties.
    pub properties: Vec<(String, String)>,
    /// Acknowledges the message when the request has its answer.
    pub ack: AckGuard,
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
}

struct Posted {
    message: Outgoing,
    done: oneshot::Sender<()>,
    _reserved: ReservedBytes,
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

impl Bus {
    /// Puts a message into the outbox, from where it is sent with QoS 1. The result is ready when
    /// the broker has acknowledged it.
    ///
    /// # Errors
    /// [`Full`] if [`OUTBOX_MAX`] messages or [`OUTBOX_BYTES_MAX`] bytes wait already.
    pub fn publish(&self, message: Outgoing) -> Result<oneshot::Receiver<()>, Full> {
        let (done, acknowledged) = oneshot::channel();
        let reserved = ReservedBytes::take(&self.bytes, message.payload.len())?;
        self.outbox.try_send(Posted { message, done, _reserved: reserved }).map_err(|_| Full)?;
        Ok(acknowledged)
    }

    /// Publishes a message with QoS 0, if connected and with room: a lost message is not sent again.
    ///
    /// # Errors
    /// [`Full`] if it was not sent.
    pub fn once(&self, message: Outgoing) -> Result<(), Full> {
        if *self.connection.borrow() != ConnectionState::Up {
            return Err(Full);
        }
        let client = self.client.borrow().clone().ok_or(Full)?;
        let options = publish_options(QoS::AtMostOnce, &message);
        client.try_publish(message.topic, message.payload, options).map_err(|_| Full)
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
    let (acks, settled) = mpsc::channel(4 * MQTT_RECEIVE_MAX as usize);
    let driver = Driver {
        options,
        router,
        posted,
        unacked: Unacked::default(),
        state,
        client: client_out,
        acks,
        settled,
        generation: 0,
    };
    (Bus { outbox, bytes: Arc::default(), client, connection }, driver.run(stop))
}

fn publish_options(qos: QoS, message: &Outgoing) -> PublishOptions {
    let seconds =
        |time: Duration| u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    PublishOptions::new(qos).retain(message.retain).properties(PublishProperties {
        correlation_data: message.correlation.clone(),
        response_topic: message.response_topic.clone(),
        message_expiry_interval: message.expiry.map(seconds),
        user_properties: message.properties.clone(),
        ..PublishProperties::default()
    })
}

struct Driver {
    options: ConnectionOptions,
    router: Router,
    posted: mpsc::Receiver<Posted>,
    unacked: Unacked,
    state: watch::Sender<ConnectionState>,
    client: watch::Sender<Option<AsyncClient>>,
    acks: mpsc::Sender<SettledMessage>,
    settled: mpsc::Receiver<SettledMessage>,
    generation: u64,
}

/// Why the present client has ended.
#[derive(Debug, PartialEq, Eq)]
enum DriverInput {
    Stopped,
    /// No publish completed for two keep-alive intervals although some were in flight.
    Stuck,
}

impl Driver {
    async fn run(mut self, stop: CancellationToken) {
        // ends with the service; a stuck client is replaced
        while self.with_client(&stop).await == DriverInput::Stuck {
            tracing::warn!("MQTT client restarted: no progress");
        }
        self.state.send_replace(ConnectionState::Down("stopped".to_owned()));
    }

    async fn with_client(&mut self, stop: &CancellationToken) -> DriverInput {
        let (client, events) =
            AsyncClient::builder(mqtt_options(&self.options)).capacity(MQTT_INBOX_MAX).build();
        self.client.send_replace(Some(client.clone()));
        let connection = self.state.subscribe();
        let mut poller = Poller {
            options: &self.options,
            client: client.clone(),
            router: &self.router,
            state: &self.state,
            acks: &self.acks,
            settled: &mut self.settled,
            generation: &mut self.generation,
            unsettled: Unsettled::default(),
        };
        let ended = tokio::select! {
            () = send_all(client, &mut self.posted, &mut self.unacked, connection) => DriverInput::Stuck,
            () = poller.poll(events, stop) => DriverInput::Stopped,
        };
        self.client.send_replace(None);
        ended
    }
}

fn mqtt_options(options: &ConnectionOptions) -> MqttOptions {
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
