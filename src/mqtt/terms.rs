//! What the broker accepts from this client: the limits of its CONNACK (MQTT 5, section 3.2.2.3), and
//! what it has refused before.

use std::collections::BTreeSet;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnAck, Subscribe, SubscribeFilter};

use super::reasons::ReasonCode;

/// The terms of one connection.
///
/// The receive maximum, the server keep alive and the topic alias maximum (this client uses no alias)
/// are obeyed by the client library; the session expiry interval changes nothing for this client,
/// which subscribes on each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// Largest packet in bytes.
    pub(super) packet_max: Option<u32>,
    /// Highest quality of service for publishes; this client uses at most `QoS` 1.
    pub(super) qos: QoS,
    /// Whether retained messages are accepted; else they are sent without the flag.
    pub(super) retain: bool,
    wildcards: bool,
    shared: bool,
}

/// Features that the broker has refused, by reason code.
#[derive(Debug, Default)]
pub(super) struct RefusedFeatures {
    /// Codes of DISCONNECT: the CONNACK did not state the limit.
    disconnects: BTreeSet<u8>,
    /// Codes of a CONNACK that refused the connection because of the will message.
    will: BTreeSet<u8>,
}

const TOPIC_NAME_INVALID: u8 = 0x90;
const PACKET_TOO_LARGE: u8 = 0x95;
const PAYLOAD_FORMAT_INVALID: u8 = 0x99;
const RETAIN_NOT_SUPPORTED: u8 = 0x9A;
const QOS_NOT_SUPPORTED: u8 = 0x9B;
const SHARED_NOT_SUPPORTED: u8 = 0x9E;
const WILDCARDS_NOT_SUPPORTED: u8 = 0xA2;

impl RefusedFeatures {
    /// Notes the reason of a refused connection; true if the next attempt differs, so that it may
    /// follow at once.
    pub(super) fn refused_connection(&mut self, reason: ReasonCode) -> bool {
        let is_of_will = [
            TOPIC_NAME_INVALID,
            PACKET_TOO_LARGE,
            PAYLOAD_FORMAT_INVALID,
            RETAIN_NOT_SUPPORTED,
            QOS_NOT_SUPPORTED,
        ];
        is_of_will.contains(&reason.code) && self.will.insert(reason.code)
    }

    /// Notes the reason of a DISCONNECT.
    pub(super) fn disconnected(&mut self, reason: ReasonCode) {
        let is_feature = [
            RETAIN_NOT_SUPPORTED,
            QOS_NOT_SUPPORTED,
            SHARED_NOT_SUPPORTED,
            WILDCARDS_NOT_SUPPORTED,
        ];
        if is_feature.contains(&reason.code) {
            self.disconnects.insert(reason.code);
        }
    }

    /// A broker that states a feature after all gets the will message with it again.
    pub(super) fn connected(&mut self, terms: &Terms) {
        self.will.retain(|code| match *code {
            RETAIN_NOT_SUPPORTED => !terms.retain,
            QOS_NOT_SUPPORTED => terms.qos == QoS::AtMostOnce,
            _ => true,
        });
    }

    /// Quality of service and retain flag of the will message; none if it is refused as such.
    pub(super) fn will(&self) -> Option<(QoS, bool)> {
        let refused = |code: u8| self.will.contains(&code) || self.disconnects.contains(&code);
        if [TOPIC_NAME_INVALID, PACKET_TOO_LARGE, PAYLOAD_FORMAT_INVALID].into_iter().any(refused) {
            return None;
        }
        let qos = if refused(QOS_NOT_SUPPORTED) { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        Some((qos, !refused(RETAIN_NOT_SUPPORTED)))
    }
}

impl Terms {
    /// The terms of a connection.
    pub(super) fn of(connack: &ConnAck, refused: &RefusedFeatures) -> Terms {
        let properties = connack.properties.as_ref();
        let has = |stated: Option<u8>, code: u8| {
            stated != Some(0) && !refused.disconnects.contains(&code)
        };
        let qos = has(properties.and_then(|p| p.max_qos), QOS_NOT_SUPPORTED);
        let wildcards = properties.and_then(|p| p.wildcard_subscription_available);
        let shared = properties.and_then(|p| p.shared_subscription_available);
        Terms {
            packet_max: properties.and_then(|p| p.max_packet_size),
            qos: if qos { QoS::AtLeastOnce } else { QoS::AtMostOnce },
            retain: has(properties.and_then(|p| p.retain_available), RETAIN_NOT_SUPPORTED),
            wildcards: has(wildcards, WILDCARDS_NOT_SUPPORTED),
            shared: has(shared, SHARED_NOT_SUPPORTED),
        }
    }

    /// Whether this subscription may be asked for.
    ///
    /// # Errors
    /// The reason for which the broker would close the connection.
    pub(super) fn may_subscribe(&self, filter: &str) -> Result<(), String> {
        if !self.shared && filter.starts_with("$share/") {
            return Err(ReasonCode::of(SHARED_NOT_SUPPORTED).text());
        }
        if !self.wildcards && filter.contains(['+', '#']) {
            return Err(ReasonCode::of(WILDCARDS_NOT_SUPPORTED).text());
        }
        let asked = SubscribeFilter::new(filter.to_owned(), QoS::AtLeastOnce);
        let size = Subscribe::new(asked, None).size();
        match self.packet_max {
            Some(most) if size > most as usize => {
                Err(format!("the packet would have {size} bytes, the broker accepts {most}"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
