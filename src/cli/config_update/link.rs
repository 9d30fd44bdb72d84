//! The connection of a manager to the broker: the reports and the presence of all devices.

use std::pin::pin;
use std::time::Instant;

use anyhow::bail;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::{broker, print_mistakes};
use crate::clock;
use crate::config::{Mqtt, source};
use crate::daemon::connection_options;
use crate::limits::MQTT_INBOX_MAX;
use crate::limits::rollout::{ASKED_AGAIN_MAX, DISCOVERY_MAX, DISCOVERY_QUIET};
use crate::mqtt;
use crate::mqtt::{Bus, Incoming, Router, Subscription};
use crate::net::tls;
use crate::random;
use crate::rollout::devices::Devices;
use crate::time::Time;

/// The connection while a command uses it.
pub(super) struct Link {
    pub(super) bus: Bus,
    pub(super) prefix: String,
    inbox: Subscription,
    filters: Vec<String>,
    /// Reports of single devices are subscribed to besides.
    is_asking: bool,
    began: Instant,
    signals: [Signal; 2],
    /// The reports that came before the broker had answered the subscriptions.
    early: Devices,
}

/// The settings of the connection; none after their mistakes were printed.
///
/// # Errors
/// If the connection is switched off.
pub(super) fn settings(path: Option<&std::path::Path>) -> anyhow::Result<Option<Mqtt>> {
    match source::broker_of(path) {
        Ok(Some(mqtt)) => Ok(Some(mqtt)),
        Ok(None) => bail!("no broker is configured; set PILOTLIGHT_MQTT or pilotlight.mqtt.url"),
        Err(mistakes) => {
            print_mistakes("error", &mistakes);
            Ok(None)
        }
    }
}

/// Connects, does the work and disconnects.
///
/// # Errors
/// If the broker is not reachable or refuses the connection, and those of the work.
pub(super) async fn with<T>(
    mqtt: &Mqtt,
    reads_reports: bool,
    work: impl AsyncFnOnce(&mut Link) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    tls::install_provider();
    let options = connection_options(mqtt, format!("pilotlight-manager-{}", random::id()?))?;
    let prefix = mqtt.prefix.clone();
    let mut router = Router::default();
    let filters = ["config/reported", "status"].map(|topic| format!("{prefix}/+/{topic}"));
    let filters = if reads_reports { filters.to_vec() } else { Vec::new() };
    let inbox = router.watch(filters.clone(), MQTT_INBOX_MAX);
    let stop = CancellationToken::new();
    let (bus, driver) = mqtt::open(options, router, stop.clone());
    let mut driver = pin!(driver);
    let signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    let early = Devices::default();
    let (is_asking, began) = (false, clock::now());
    let mut link = Link { bus, prefix, inbox, filters, is_asking, began, signals, early };
    let working = async {
        link.connect(mqtt).await?;
        work(&mut link).await
    };
    let result = tokio::select! {
        result = working => result,
        () = &mut driver => bail!("the connection to the broker closed"),
    };
    stop.cancel();
    // bounded by the library's limit of a disconnection
    driver.await;
    result
}

impl Link {
    /// Waits until the connection is up. The broker may send what it retains before it answers the
    /// subscriptions, and more than the inbox holds.
    async fn connect(&mut self, mqtt: &Mqtt) -> anyhow::Result<()> {
        let bus = self.bus.clone();
        let mut connected = pin!(broker::connected(&bus, mqtt));
        // bounded by the time limit of the connection
        loop {
            tokio::select! {
                result = &mut connected => return result,
                Some(message) = self.inbox.recv() => {
                    take(message, &self.prefix, &mut self.early);
                }
            }
        }
    }

    /// The time since the connection was opened.
    pub(super) fn now(&self) -> Time {
        Time::default() + self.began.elapsed()
    }

    /// The same time on the clock of the runtime.
    pub(super) fn at(&self, time: Time) -> tokio::time::Instant {
        tokio::time::Instant::from(self.began) + time.since(Time::default())
    }

    /// Subscribes to the reports of these devices for some time, at every second call: the broker sends
    /// what it retains to a new subscription only.
    pub(super) fn ask_again<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        self.is_asking = !self.is_asking;
        let prefix = &self.prefix;
        let topics = names.map(|name| format!("{prefix}/{name}/config/reported"));
        let topics = topics.take(if self.is_asking { ASKED_AGAIN_MAX } else { 0 });
        self.inbox.filters().replace(self.filters.iter().cloned().chain(topics).collect());
    }

    /// Takes the retained reports, until none has come for a while. None if somebody interrupts it.
    ///
    /// # Errors
    /// If the connection ends.
    pub(super) async fn discover(&mut self) -> anyhow::Result<Option<Devices>> {
        let mut devices = std::mem::take(&mut self.early);
        let prefix = self.prefix.clone();
        let now = || tokio::time::Instant::from(clock::now());
        let end = now() + DISCOVERY_MAX;
        let mut quiet = now() + DISCOVERY_QUIET;
        // bounded by the end
        loop {
            let event = tokio::select! {
                event = self.next() => event?,
                () = tokio::time::sleep_until(quiet.min(end)) => return Ok(Some(devices)),
            };
            match event {
                LinkEvent::Interrupted => return Ok(None),
                LinkEvent::Message(message) => {
                    if message.retained {
                        quiet = now() + DISCOVERY_QUIET;
                    }
                    take(message, &prefix, &mut devices);
                }
            }
        }
    }

    /// What comes next: a message, or somebody who interrupts.
    ///
    /// # Errors
    /// If the connection ends.
    pub(super) async fn next(&mut self) -> anyhow::Result<LinkEvent> {
        tokio::select! {
            message = self.inbox.recv() => match message {
                Some(message) => Ok(LinkEvent::Message(message)),
                None => bail!("the connection to the broker closed"),
            },
            () = interrupted(&mut self.signals) => Ok(LinkEvent::Interrupted),
        }
    }
}

/// What a command waits for.
pub(super) enum LinkEvent {
    Message(Incoming),
    Interrupted,
}

/// Takes a message of a device; returns its name if something of it has changed.
pub(super) fn take(message: Incoming, prefix: &str, devices: &mut Devices) -> Option<String> {
    message.ack.ack();
    let rest = message.topic.strip_prefix(prefix)?.strip_prefix('/')?;
    let (name, topic) = rest.split_once('/')?;
    let payload = message.payload.as_deref().map_err(|bytes| *bytes);
    let is_changed = match topic {
        "config/reported" => devices.report(name, payload),
        "status" => devices.presence(name, payload),
        _ => false,
    };
    is_changed.then(|| name.to_owned())
}

/// SIGINT or SIGTERM.
async fn interrupted(signals: &mut [Signal; 2]) {
    let [one, other] = signals;
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
