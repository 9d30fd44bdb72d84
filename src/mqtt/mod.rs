//! The one line to the MQTT broker: bounded, reconnecting, and nothing that was taken is lost
//! while the service runs.
//!
//! *Outbox*: what shall be published waits here until the broker has acknowledged it; after a
//! lost connection or session it is offered again. *Ticket*: a request that was received and not
//! yet acknowledged; tickets are acknowledged in the order of receipt [MQTT-4.6.0-2], and those
//! of an earlier connection never, because packet identifiers start again.

#[cfg(feature = "embedded-broker")]
pub mod broker;
mod outbox;
mod poller;
mod resume;

use std::collections::VecDeque;
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

use self::outbox::{Unacked, send_all};
use self::poller::Poller;
use self::resume::EmptyHalf;
use crate::limits::{
    MQTT_INBOX_MAX, MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE, MQTT_PACKET_BYTES_MAX, MQTT_RECEIVE_MAX,
    MQTT_SESSION_EXPIRY, OUTBOX_BYTES_MAX, OUTBOX_MAX,
};

/// Where the broker is and who we are.
#[derive(Clone)]
pub struct ConnectionOptions {
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outgoing {
    /// Where to.
    pub topic: String,
    /// What.
    pub payload: Bytes,
    /// The asker's mark, handed back.
    pub correlation: Option<Bytes>,
    /// The broker keeps it for later subscribers.
    pub retain: bool,
    /// Where an answer is wanted.
    pub response_topic: Option<String>,
    /// How long it is of use; whole seconds on the wire, rounded up.
    pub expiry: Option<Duration>,
    /// Names and values of our own.
    pub properties: Vec<(String, String)>,
}

/// A message that came.
#[derive(Debug)]
pub struct Incoming {
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
    /// Names and values of the sender's own.
    pub properties: Vec<(String, String)>,
    /// Dropped when the request has had its answer.
    pub ack: AckGuard,
}

/// The duty to acknowledge one message. Dropping it does so, in order, if its connection lives.
#[derive(Debug)]
pub struct AckGuard {
    generation: u64,
    packet: u16,
    to: mpsc::Sender<(u64, u16)>,
}

/// A generation that no connection has.
const NEVER: u64 = u64::MAX;

impl AckGuard {
    /// Does not acknowledge it: the broker hands the message to whoever comes next.
    pub fn leave(mut self) {
        self.generation = NEVER;
    }
}

impl Drop for AckGuard {
    fn drop(&mut self) {
        // the line is as long as all tickets of two connections
        let _ = self.to.try_send((self.generation, self.packet));
    }
}

/// The state of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
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
    line: watch::Receiver<ConnectionState>,
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

    /// Publishes a message if the line is there and has room. It is sent once at most: what is lost
    /// is not offered again.
    ///
    /// # Errors
    /// [`Full`] if it was not sent.
    pub fn once(&self, message: Outgoing) -> Result<(), Full> {
        if *self.line.borrow() != ConnectionState::Up {
            return Err(Full);
        }
        let client = self.pieces.borrow().clone().ok_or(Full)?;
        let options = publish_options(QoS::AtMostOnce, &message);
        client.try_publish(message.topic, message.payload, options).map_err(|_| Full)
    }

    /// The state of the line.
    pub fn line(&self) -> watch::Receiver<ConnectionState> {
        self.line.clone()
    }
}

/// Makes the line, its inbox, and the task that keeps it until `stop`.
pub fn open(
    options: ConnectionOptions,
    stop: CancellationToken,
) -> (Bus, mpsc::Receiver<Incoming>, impl Future<Output = ()> + Send + 'static) {
    let (outbox, posted) = mpsc::channel(OUTBOX_MAX);
    let (inbox, messages) = mpsc::channel(MQTT_INBOX_MAX);
    let (line_out, line) = watch::channel(ConnectionState::Down("not connected yet".to_owned()));
    let (pieces_out, pieces) = watch::channel(None);
    let (acks, handed_back) = mpsc::channel(4 * MQTT_RECEIVE_MAX as usize);
    let driver = Driver {
        options,
        posted,
        held: Unacked::default(),
        inbox,
        line: line_out,
        pieces: pieces_out,
        acks,
        handed_back,
        generation: 0,
    };
    (Bus { outbox, bytes: Arc::default(), pieces, line }, messages, driver.run(stop))
}

fn publish_options(qos: QoS, message: &Outgoing) -> PublishOptions {
    let whole = |time: Duration| u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    PublishOptions::new(qos).retain(message.retain).properties(PublishProperties {
        correlation_data: message.correlation.clone(),
        response_topic: message.response_topic.clone(),
        message_expiry_interval: message.expiry.map(whole),
        user_properties: message.properties.clone(),
        ..PublishProperties::default()
    })
}

struct Driver {
    options: ConnectionOptions,
    posted: mpsc::Receiver<Posted>,
    held: Unacked,
    inbox: mpsc::Sender<Incoming>,
    line: watch::Sender<ConnectionState>,
    pieces: watch::Sender<Option<AsyncClient>>,
    acks: mpsc::Sender<(u64, u16)>,
    handed_back: mpsc::Receiver<(u64, u16)>,
    generation: u64,
}

/// Why a client was given up.
#[derive(Debug, PartialEq, Eq)]
enum DriverInput {
    Stopped,
    /// Nothing went out for two keep-alive intervals although something was owed.
    Stuck,
}

impl Driver {
    async fn run(mut self, stop: CancellationToken) {
        // ends with the service; a stuck client is replaced
        while self.with_client(&stop).await == DriverInput::Stuck {
            tracing::warn!("MQTT client restarted: no progress");
        }
        self.line.send_replace(ConnectionState::Down("stopped".to_owned()));
    }

    async fn with_client(&mut self, stop: &CancellationToken) -> DriverInput {
        let (client, events) =
            AsyncClient::builder(mqtt_options(&self.options)).capacity(MQTT_INBOX_MAX).build();
        self.pieces.send_replace(Some(client.clone()));
        let line = self.line.subscribe();
        let mut poller = Poller {
            options: &self.options,
            client: client.clone(),
            inbox: &self.inbox,
            line: &self.line,
            acks: &self.acks,
            handed_back: &mut self.handed_back,
            generation: &mut self.generation,
            owed: VecDeque::new(),
        };
        let given = tokio::select! {
            () = send_all(client, &mut self.posted, &mut self.held, line) => DriverInput::Stuck,
            () = poller.poll(events, stop) => DriverInput::Stopped,
        };
        self.pieces.send_replace(None);
        given
    }
}

fn mqtt_options(options: &ConnectionOptions) -> MqttOptions {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_that_is_left_acknowledges_nothing() {
        let (to, mut handed_back) = mpsc::channel(2);
        let ack = || AckGuard { generation: 3, packet: 7, to: to.clone() };
        drop(ack());
        assert_eq!(handed_back.try_recv(), Ok((3, 7)));
        ack().leave();
        assert_ne!(handed_back.try_recv().map(|(generation, _)| generation), Ok(3));
    }
}
