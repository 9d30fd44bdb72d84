//! Status of the service as one type: `/readyz`, the MQTT health topic, `pilotlight status` and the
//! metrics are views of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use crate::fleet::update::UpdateState;
use crate::model::context::{Locality, ModelContext};
use crate::model::health::Health;
use crate::money::Span;
use crate::pressure::level::{PressureCause, PressureStage};

/// The state of the service at one moment. As JSON it is the body of `/readyz`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Whether at least one backend is ready.
    pub ready: bool,
    /// Version of the program.
    pub version: String,
    /// Every configured backend.
    pub servers: Vec<BackendStatus>,
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs that run.
    pub running: usize,
    /// Money spent.
    pub spent_usd: Spending,
    /// How the clock disagrees with the ledger of spending, and what to do; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// The configuration in force, and the last one that was offered.
    #[serde(default)]
    pub config: ConfigStatus,
    /// Connection to the MQTT broker, if one is configured.
    pub mqtt: Option<BrokerStatus>,
    /// Sensors of the device, and the pressure that follows from them.
    pub device: DeviceStatus,
}

/// The state of one backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name in `mcp.json`.
    pub server: String,
    /// Where it runs: on the device, on a peer, in the cloud.
    #[serde(rename = "where")]
    pub locality: Locality,
    /// Whether it can be used.
    pub health: Health,
    /// The model's description of itself, while it is ready.
    #[serde(rename = "model")]
    pub context: Option<ModelContext>,
}

/// The state of the configuration. As JSON it is the payload of the MQTT topic `config/reported`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// What became of the configuration that was offered last, by its file or as a signed update.
    pub state: UpdateState,
    /// Where the configuration in force comes from.
    pub source: ConfigOrigin,
    /// The version of the configuration in force; 0 if none is stated.
    pub version: u64,
    /// The SHA-256 digest of the text in force, `sha256:` and 64 digits.
    pub digest: String,
    /// Since when it is in force, in seconds since 1970.
    pub since: u64,
    /// The fleet of this device, if it has a trust policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<String>,
    /// The group of this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The version of the signed update that was offered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<u64>,
    /// The digest of the signed bytes of that update, also if they were refused and have no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_digest: Option<String>,
    /// The code of a refusal of a signed update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why a signed update was refused or rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why the configuration that was offered last is refused; empty if it is in force. At most
    /// [`REPORTED_MISTAKES_MAX`](crate::limits::reload::REPORTED_MISTAKES_MAX).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<String>,
    /// The digest of a file that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_digest: Option<String>,
    /// Settings of the configuration in force that count only after a restart of the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_required: Vec<String>,
}

impl ConfigStatus {
    /// Whether the local file has mistakes, so that the configuration before stays in force.
    pub fn is_refused(&self) -> bool {
        self.refused_digest.is_some()
    }
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigOrigin {
    /// The file of this device.
    #[default]
    File,
    /// A signed update.
    Update,
}

/// Money spent in the present calendar spans (UTC), in US dollars: running calls count with the most
/// that they can cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spending {
    /// Since the start of the hour.
    pub hour: f64,
    /// Since midnight.
    pub day: f64,
    /// Since the first of the month.
    pub month: f64,
}

/// The connection to the MQTT broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Whether it is connected.
    #[serde(flatten)]
    pub state: BrokerState,
    /// What the broker refuses, each in one sentence with the remedy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Messages that were not delivered since the start, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub undelivered: BTreeMap<String, u64>,
}

/// The state of the connection to the MQTT broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum BrokerState {
    /// Connected and subscribed.
    Up,
    /// Not connected.
    Down {
        /// Why.
        reason: String,
    },
}

/// Readings of the sensors, and the device pressure that follows from them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// The hottest thermal zone that counts, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Distance to each limit.
    pub headroom: Headroom,
    /// Memory that is available, in MiB.
    pub memory_available_mb: Option<u64>,
    /// Space left on the disk of the service, in MiB.
    pub disk_available_mb: Option<u64>,
    /// Share of all processors' time that any program had, 0 to 1.
    #[serde(serialize_with = "rounded_option")]
    pub processor_busy: Option<f64>,
    /// Share of the time that the engines may compute, 0 to 1.
    #[serde(serialize_with = "rounded")]
    pub duty: f64,
    /// Measures against the pressure.
    pub stage: PressureStage,
    /// The resource under the highest pressure.
    pub cause: PressureCause,
}

/// Distance to the limit of each resource: 1 is far, 0 is at the limit. JSON has two decimals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Headroom {
    /// Temperature.
    #[serde(serialize_with = "rounded")]
    pub heat: f64,
    /// Memory.
    #[serde(serialize_with = "rounded")]
    pub memory: f64,
    /// Disk.
    #[serde(serialize_with = "rounded")]
    pub disk: f64,
}

/// The payload of the MQTT health topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthMessage {
    #[serde(flatten)]
    device: DeviceStatus,
    waiting: usize,
    running: usize,
    tokens_per_s: Option<f64>,
    spent_usd: Spending,
}

impl Default for Headroom {
    fn default() -> Headroom {
        Headroom { heat: 1.0, memory: 1.0, disk: 1.0 }
    }
}

impl Spending {
    /// The amount of each span, by the span's name in JSON and metrics.
    pub fn by_span(&self) -> [(&'static str, f64); 3] {
        [(Span::Hour, self.hour), (Span::Day, self.day), (Span::Month, self.month)]
            .map(|(span, usd)| (span.name(), usd))
    }
}

impl From<ServiceStatus> for HealthMessage {
    /// `tokens_per_s` is the highest decode rate of the engines on this device, measured at start.
    fn from(status: ServiceStatus) -> HealthMessage {
        let engines = status.servers.iter().filter(|server| server.locality == Locality::Device);
        let rates =
            engines.filter_map(|engine| engine.context.as_ref()?.runtime.decode_tokens_per_s);
        HealthMessage {
            tokens_per_s: rates.reduce(f64::max),
            waiting: status.waiting,
            running: status.running,
            spent_usd: status.spent_usd,
            device: status.device,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn rounded<S: Serializer>(share: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((share * 100.0).round() / 100.0)
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn rounded_option<S: Serializer>(share: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    share.map(|share| (share * 100.0).round() / 100.0).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> ServiceStatus {
        let mut context = ModelContext::default();
        context.runtime.decode_tokens_per_s = Some(7.5);
        let server = |server: &str, locality, health, context| BackendStatus {
            server: server.to_owned(),
            locality,
            health,
            context,
        };
        let failed = Health::Unavailable { reason: "no answer".to_owned() };
        ServiceStatus {
            ready: true,
            version: "1.2.3".to_owned(),
            servers: vec![
                server("local", Locality::Device, Health::Ready, Some(context)),
                server("big", Locality::Cloud, failed, None),
            ],
            waiting: 1,
            running: 2,
            spent_usd: Spending { hour: 0.5, day: 1.0, month: 2.0 },
            clock: None,
            config: ConfigStatus {
                state: UpdateState::Kept,
                version: 3,
                digest: "sha256:00".to_owned(),
                since: 1_000,
                ..ConfigStatus::default()
            },
            mqtt: Some(BrokerStatus {
                state: BrokerState::Down { reason: "refused".to_owned() },
                problems: vec!["a topic is refused".to_owned()],
                undelivered: BTreeMap::from([("refused".to_owned(), 3)]),
            }),
            device: DeviceStatus {
                temperature_c: Some(51.25),
                headroom: Headroom { heat: 0.987_654, memory: 1.0, disk: 0.5 },
                processor_busy: Some(0.123),
                duty: 1.0,
                ..DeviceStatus::default()
            },
        }
    }

    #[test]
    fn the_public_keys_stay_as_they_are() {
        let device = json!({
            "temperature_c": 51.25,
            "headroom": {"heat": 0.99, "memory": 1.0, "disk": 0.5},
            "memory_available_mb": null,
            "disk_available_mb": null,
            "processor_busy": 0.12,
            "duty": 1.0,
            "stage": "calm",
            "cause": "load",
        });
        let spent = json!({"hour": 0.5, "day": 1.0, "month": 2.0});
        let expected = json!({
            "ready": true,
            "version": "1.2.3",
            "servers": [
                {
                    "server": "local",
                    "where": "device",
                    "health": {"state": "ready"},
                    "model": status().servers[0].context,
                },
                {
                    "server": "big",
                    "where": "cloud",
                    "health": {"state": "resting", "reason": "no answer"},
                    "model": null,
                },
            ],
            "waiting": 1,
            "running": 2,
            "spent_usd": spent,
            "config": {"state": "kept", "source": "file", "version": 3, "digest": "sha256:00", "since": 1000},
            "mqtt": {
                "state": "down",
                "reason": "refused",
                "problems": ["a topic is refused"],
                "undelivered": {"refused": 3},
            },
            "device": device,
        });
        assert_eq!(json!(status()).to_string(), expected.to_string());
        let mut expected = device;
        expected["waiting"] = json!(1);
        expected["running"] = json!(2);
        expected["tokens_per_s"] = json!(7.5);
        expected["spent_usd"] = spent;
        assert_eq!(json!(HealthMessage::from(status())).to_string(), expected.to_string());
    }

    #[test]
    fn a_client_reads_what_the_service_writes() {
        let written = json!(status());
        let read: ServiceStatus = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(json!(read), written);
        let no_broker = ServiceStatus { mqtt: None, ..status() };
        assert_eq!(json!(no_broker)["mqtt"], serde_json::Value::Null);
    }
}
