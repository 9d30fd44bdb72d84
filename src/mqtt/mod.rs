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
mod driver;
mod loss;
mod message;
mod outbox;
mod poller;
mod presence;
mod reasons;
mod report;
mod resume;
mod router;
mod spool;
mod terms;
mod window;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Publish, PublishProperties};
use rumqttc::{AsyncClient, ClientError, PublishOptions};
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::driver::Driver;
use self::outbox::Outbox;
use crate::limits::{OUTBOX_BYTES_MAX, OUTBOX_MAX};

pub use self::acks::AckGuard;
pub use self::message::{Incoming, Outgoing};
pub use self::presence::{FixedPresence, Presence, PresenceMessages};
pub use self::report::{BrokerReport, Undelivered};
pub use self::router::{Router, Subscription, SubscriptionFilters};

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

/// What a client proves itself by: its certificates, and its user name and password.
#[derive(Clone)]
pub struct Login {
    /// As in [`ConnectionOptions`].
    pub tls: Option<Arc<ClientConfig>>,
    /// As in [`ConnectionOptions`].
    pub credentials: Option<(String, String)>,
}

/// What the broker keeps of this client between connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Subscriptions and messages, for [`MQTT_SESSION_EXPIRY`](crate::limits::MQTT_SESSION_EXPIRY).
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
    announce: Arc<Notify>,
    login: Arc<watch::Sender<Option<Login>>>,
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

    /// Publishes the presence again soon: it has changed.
    pub fn announce(&self) {
        self.announce.notify_one();
    }

    /// Connects again with another login. Messages that wait or are in flight are sent afterwards.
    pub fn log_in(&self, login: Login) {
        self.login.send_replace(Some(login));
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
    let report = Arc::new(BrokerReport::default());
    let announce = Arc::new(Notify::new());
    let presence = options.presence.clone();
    let waiting = Outbox::new(posted, presence, Arc::clone(&announce), Arc::clone(&report));
    let (login_out, login) = watch::channel(None);
    let driver =
        Driver::new(options, router, login, waiting, state, client_out, Arc::clone(&report));
    let login = Arc::new(login_out);
    let bus = Bus { outbox, bytes: Arc::default(), client, connection, report, announce, login };
    (bus, driver.run(stop))
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
