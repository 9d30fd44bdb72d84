//! The connections of one client, one after the other, with the pauses between them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnectProperties, LastWill};
use rumqttc::{AckMode, AsyncClient, Broker, MqttOptions, Transport};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::acks::{AckGuard, SettledMessage};
use super::backoff::{Acceptance, Backoff};
use super::loss::Loss;
use super::outbox::{Outbox, PublishesInFlight};
use super::poller::{ConnectionEnd, Identity, Poller, Subscriptions};
use super::reasons::{Pause, ReasonCode, SESSION_TAKEN_OVER};
use super::report::BrokerReport;
use super::resume::EmptyHalf;
use super::router::Router;
use super::spool::Spool;
use super::terms::RefusedFeatures;
use super::window::ReceiveWindow;
use super::{ConnectionOptions, ConnectionState, Login, Presence, Session};
use crate::clock;
use crate::limits::{
    MQTT_INBOX_MAX, MQTT_INFLIGHT_MAX, MQTT_KEEP_ALIVE, MQTT_PACKET_BYTES_MAX, MQTT_RECEIVE_MAX,
    MQTT_SESSION_EXPIRY, RECONNECT_EVERY, SPOOL_MAX,
};

/// Keeps a client connected to the broker.
pub(super) struct Driver {
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
    /// The last loss in the log, and how many since then are not in it.
    loss_logged: Option<Instant>,
    losses_left_out: u32,
    report: Arc<BrokerReport>,
    login: watch::Receiver<Option<Login>>,
}

impl Driver {
    pub(super) fn new(
        options: ConnectionOptions,
        router: Router,
        login: watch::Receiver<Option<Login>>,
        outbox: Outbox,
        state: watch::Sender<ConnectionState>,
        client: watch::Sender<Option<AsyncClient>>,
        report: Arc<BrokerReport>,
    ) -> Driver {
        let (acks, settled) = mpsc::channel(4 * MQTT_RECEIVE_MAX as usize + 2 * SPOOL_MAX);
        let window = ReceiveWindow::new(options.spool.as_deref().and_then(open_spool));
        Driver {
            options,
            router,
            outbox,
            state,
            client,
            acks,
            settled,
            window,
            refused: RefusedFeatures::default(),
            closes: 0,
            loss_logged: None,
            losses_left_out: 0,
            report,
            login,
        }
    }

    /// Connects, and connects again after each loss, until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(clock::now());
        self.restore(&stop).await;
        // ends with the service
        while let (ConnectionEnd::Lost(loss), attempt) = self.connect(&stop).await {
            let pause = self.lost(&loss);
            if loss == Loss::Renewed {
                continue;
            }
            let wait = backoff.after(attempt, pause, clock::now());
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
        if let Some(Login { tls, credentials }) = self.login.borrow_and_update().clone() {
            (self.options.tls, self.options.credentials) = (tls, credentials);
        }
        let presence = self.options.presence.as_ref();
        if let Some(presence) = presence {
            presence.messages.begin();
        }
        let is_asserted = presence.is_some_and(|presence| presence.is_asserted);
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
            is_logged: self.losses_left_out == 0,
            // not each time: a broker may close the connection for this subscription
            identity: if (self.closes % 2 == 1) == is_asserted {
                Identity::Assumed
            } else {
                Identity::Watched
            },
            announce: self.outbox.announce(),
            login: &mut self.login,
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
            self.log_loss(&reason);
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
            | Loss::Renewed
            | Loss::Other(_) => loss.pause(),
        }
    }

    /// Writes a lost connection to the log; of those in quick succession only the first.
    fn log_loss(&mut self, reason: &str) {
        let now = clock::now();
        let is_recent = |at: Instant| now.duration_since(at) < RECONNECT_EVERY;
        if self.loss_logged.is_some_and(is_recent) {
            self.losses_left_out += 1;
            return;
        }
        let (host, port) = (&self.options.host, self.options.port);
        let left_out = std::mem::take(&mut self.losses_left_out);
        tracing::warn!(reason, left_out, host, port, "broker connection lost");
        self.loss_logged = Some(now);
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
                // it may be what the broker has refused
                Ok(()) = self.login.changed() => return true,
                () = stop.cancelled() => return false,
            }
        }
    }
}

/// Without its folder the service works: requests that take long then keep others at the broker.
fn open_spool(folder: &Path) -> Option<Spool> {
    let opened = Spool::open(folder);
    if let Err(error) = &opened {
        tracing::warn!(path = %folder.display(), %error, "the spool cannot be opened");
    }
    opened.ok()
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
    if let (Some(Presence { topic, messages, .. }), Some((qos, retain))) = (&options.presence, will)
    {
        let will = LastWill::new(topic.clone(), messages.offline(), qos, retain, None);
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
