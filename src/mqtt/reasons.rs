//! Reason codes of MQTT 5 (section 2.4): the name of each, what follows from it, and what an operator
//! can do.
//!
//! One row is the whole policy for a code, whichever packet has it: CONNACK and DISCONNECT use its
//! pause, PUBACK, PUBREC and PUBCOMP the fate of the publish, SUBACK the fate of the subscription, and
//! DISCONNECT its suspicion against the publishes in flight. The service sends no UNSUBSCRIBE and no
//! AUTH: an UNSUBACK, an AUTH and a PUBREL without cause violate the protocol, and the connection ends.

use rumqttc::mqttbytes::v5::{ConnectReturnCode, SubscribeReasonCode};

/// Another client has connected with the same identifier.
pub(super) const SESSION_TAKEN_OVER: u8 = 0x8E;

/// The wait before a reconnection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pause {
    /// Exponential back-off from [`RECONNECT_MIN`](crate::limits::RECONNECT_MIN).
    Soon,
    /// At least [`RECONNECT_LATER`](crate::limits::RECONNECT_LATER): the broker is overloaded.
    Later,
    /// [`RECONNECT_RARELY`](crate::limits::RECONNECT_RARELY): an operator has to change something.
    Rarely,
}

/// What follows for a publish that the broker has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PublishFate {
    /// The broker has the message.
    Delivered,
    /// The message is dropped; what waits for it goes on.
    Drop,
    /// The message is sent again after a pause, a bounded number of times.
    Retry,
    /// The message is larger than the broker accepts.
    TooLarge,
}

/// What follows for a subscription that the broker has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubscribeFate {
    /// It is made.
    Granted,
    /// It is asked for again after a pause.
    Retry,
    /// The broker can't make it: it is asked for again on the next connection.
    Stop,
}

/// How likely a publish in flight was the cause of a disconnection, as the number of closed
/// connections after which it counts as the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It was not the cause.
    None,
    /// The broker says nothing: [`CLOSES_MAX`](crate::limits::CLOSES_MAX) connections.
    Possible,
    /// The broker names the message as the cause: one connection with this message alone.
    Named,
}

/// One reason code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReasonCode {
    pub(super) code: u8,
    pub(super) name: &'static str,
    pub(super) pause: Pause,
    pub(super) publish: PublishFate,
    pub(super) subscribe: SubscribeFate,
    pub(super) suspicion: Suspicion,
    /// What an operator can do; empty if nothing is to be done.
    pub(super) remedy: &'static str,
}

const NO_REMEDY: &str = "";
const ACL: &str = "check this client's login, and allow it in the broker's access rules";
const CREDENTIALS: &str = "check PILOTLIGHT_MQTT_USERNAME and PILOTLIGHT_MQTT_PASSWORD, and the \
                           broker's access rules";
const ADDRESS: &str = "set PILOTLIGHT_MQTT to the other server";
const SIZE: &str = "raise the broker's maximum packet size, or ask for shorter answers";
const IDENTITY: &str = "another client uses the same client identifier: give each device its own \
                        name with PILOTLIGHT_DEVICE";

macro_rules! reasons {
    ($($code:literal $name:literal $pause:ident $publish:ident $subscribe:ident $suspicion:ident $remedy:expr;)*) => {
        [$(ReasonCode {
            code: $code,
            name: $name,
            pause: Pause::$pause,
            publish: PublishFate::$publish,
            subscribe: SubscribeFate::$subscribe,
            suspicion: Suspicion::$suspicion,
            remedy: $remedy,
        }),*]
    };
}

/// All reason codes of the standard. Columns: code, name, pause, publish, subscribe, suspicion, remedy.
const REASONS: [ReasonCode; 45] = reasons![
    0x00 "success" Soon Delivered Granted Possible NO_REMEDY;
    0x01 "granted QoS 1" Soon Delivered Granted Possible NO_REMEDY;
    0x02 "granted QoS 2" Soon Delivered Granted Possible NO_REMEDY;
    0x04 "disconnected with will message" Soon Delivered Retry Possible NO_REMEDY;
    0x10 "no matching subscribers" Soon Delivered Granted Possible NO_REMEDY;
    0x11 "no subscription existed" Soon Delivered Granted Possible NO_REMEDY;
    0x18 "continue authentication" Rarely Drop Stop None CREDENTIALS;
    0x19 "re-authenticate" Rarely Drop Stop None CREDENTIALS;
    0x80 "unspecified error" Soon Retry Retry Possible NO_REMEDY;
    0x81 "malformed packet" Soon Drop Stop Possible NO_REMEDY;
    0x82 "protocol error" Soon Drop Stop Possible NO_REMEDY;
    0x83 "implementation specific error" Soon Retry Retry Possible NO_REMEDY;
    0x84 "unsupported protocol version" Rarely Drop Stop None "use a broker that speaks MQTT 5";
    0x85 "client identifier not valid" Rarely Drop Stop None "choose another PILOTLIGHT_DEVICE";
    0x86 "bad user name or password" Rarely Drop Stop None CREDENTIALS;
    0x87 "not authorized" Rarely Drop Retry Possible ACL;
    0x88 "server unavailable" Later Retry Retry None NO_REMEDY;
    0x89 "server busy" Later Retry Retry None NO_REMEDY;
    0x8A "banned" Rarely Drop Stop None "lift the ban at the broker";
    0x8B "server shutting down" Later Retry Retry None NO_REMEDY;
    0x8C "bad authentication method" Rarely Drop Stop None CREDENTIALS;
    0x8D "keep alive timeout" Soon Retry Retry Possible NO_REMEDY;
    0x8E "session taken over" Rarely Drop Stop None IDENTITY;
    0x8F "topic filter invalid" Soon Drop Stop Possible ACL;
    0x90 "topic name invalid" Soon Drop Stop Named ACL;
    0x91 "packet identifier in use" Soon Retry Retry Possible NO_REMEDY;
    0x92 "packet identifier not found" Soon Delivered Retry Possible NO_REMEDY;
    0x93 "receive maximum exceeded" Later Retry Retry None NO_REMEDY;
    0x94 "topic alias invalid" Soon Drop Stop Possible NO_REMEDY;
    0x95 "packet too large" Soon TooLarge Stop Named SIZE;
    0x96 "message rate too high" Later Retry Retry None "raise the broker's message rate limit";
    0x97 "quota exceeded" Later Retry Retry None "raise the broker's quota for this client";
    0x98 "administrative action" Rarely Drop Stop None "ask the broker's administrator";
    0x99 "payload format invalid" Soon Drop Stop Named NO_REMEDY;
    0x9A "retain not supported" Soon Drop Stop Possible NO_REMEDY;
    0x9B "QoS not supported" Soon Drop Stop Possible NO_REMEDY;
    0x9C "use another server" Rarely Drop Stop None ADDRESS;
    0x9D "server moved" Rarely Drop Stop None ADDRESS;
    0x9E "shared subscriptions not supported" Soon Drop Stop Possible "use a broker with shared subscriptions";
    0x9F "connection rate exceeded" Later Retry Retry None "raise the broker's connection rate limit";
    0xA0 "maximum connect time" Soon Retry Retry Possible NO_REMEDY;
    0xA1 "subscription identifiers not supported" Soon Drop Stop Possible NO_REMEDY;
    0xA2 "wildcard subscriptions not supported" Soon Drop Stop Possible "use a broker with wildcard subscriptions";
    0xFE "unknown reason" Soon Drop Retry Possible NO_REMEDY;
    0xFF "unknown reason" Soon Drop Retry Possible NO_REMEDY;
];

impl ReasonCode {
    /// The row of a code; a code that the standard does not have gets the last row.
    pub(super) fn of(code: u8) -> ReasonCode {
        let last = REASONS[REASONS.len() - 1];
        let row = REASONS.iter().find(|reason| reason.code == code);
        row.copied().unwrap_or(ReasonCode { code, ..last })
    }

    /// Name and code, and the remedy if there is one.
    pub(super) fn text(self) -> String {
        let ReasonCode { code, name, remedy, .. } = self;
        let text = format!("{name} (0x{code:02X})");
        if remedy.is_empty() { text } else { format!("{text}; {remedy}") }
    }
}

/// The code of a refused connection. The codes of MQTT 3.1.1 get those that MQTT 5 has for the same.
pub(super) fn of_connack(code: ConnectReturnCode) -> ReasonCode {
    use ConnectReturnCode as Code;
    ReasonCode::of(match code {
        Code::Success => 0x00,
        Code::UnspecifiedError => 0x80,
        Code::MalformedPacket => 0x81,
        Code::ProtocolError => 0x82,
        Code::ImplementationSpecificError => 0x83,
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => 0x84,
        Code::BadClientId | Code::ClientIdentifierNotValid => 0x85,
        Code::BadUserNamePassword => 0x86,
        Code::NotAuthorized => 0x87,
        Code::ServiceUnavailable | Code::ServerUnavailable => 0x88,
        Code::ServerBusy => 0x89,
        Code::Banned => 0x8A,
        Code::BadAuthenticationMethod => 0x8C,
        Code::TopicNameInvalid => 0x90,
        Code::PacketTooLarge => 0x95,
        Code::QuotaExceeded => 0x97,
        Code::PayloadFormatInvalid => 0x99,
        Code::RetainNotSupported => 0x9A,
        Code::QoSNotSupported => 0x9B,
        Code::UseAnotherServer => 0x9C,
        Code::ServerMoved => 0x9D,
        Code::ConnectionRateExceeded => 0x9F,
    })
}

/// The code of an answered subscription.
pub(super) fn of_suback(code: SubscribeReasonCode) -> ReasonCode {
    use SubscribeReasonCode as Code;
    ReasonCode::of(match code {
        Code::Success(qos) => qos as u8,
        Code::Failure | Code::Unspecified => 0x80,
        Code::ImplementationSpecific => 0x83,
        Code::NotAuthorized => 0x87,
        Code::TopicFilterInvalid => 0x8F,
        Code::PkidInUse => 0x91,
        Code::QuotaExceeded => 0x97,
        Code::SharedSubscriptionsNotSupported => 0x9E,
        Code::SubscriptionIdNotSupported => 0xA1,
        Code::WildcardSubscriptionsNotSupported => 0xA2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_row_and_a_refusal_is_no_delivery() {
        for code in 0..=u8::MAX {
            let rows = REASONS.iter().filter(|reason| reason.code == code).count();
            assert!(rows <= 1, "0x{code:02X}");
            let reason = ReasonCode::of(code);
            assert_eq!(reason.code, code);
            // 0x92 answers a PUBREL: the message itself was delivered
            if code >= 0x80 && code != 0x92 {
                assert_ne!(reason.publish, PublishFate::Delivered, "0x{code:02X}");
            }
            if code >= 0x80 {
                assert_ne!(reason.subscribe, SubscribeFate::Granted, "0x{code:02X}");
            }
        }
        assert_eq!(ReasonCode::of(0x87).text(), format!("not authorized (0x87); {ACL}"));
        assert_eq!(ReasonCode::of(0x42).text(), "unknown reason (0x42)");
    }
}
