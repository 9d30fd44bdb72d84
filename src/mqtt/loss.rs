//! Why a connection to the broker ended.

use std::io::ErrorKind;

use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{ConnectionError, StateError};

use super::reasons;
use super::reasons::{Pause, ReasonCode, Suspicion};

/// The cause of the end of a connection, or of an attempt to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// The broker refused the connection (CONNACK).
    Refused(ReasonCode),
    /// The broker sent a DISCONNECT, with its text if it has one.
    Disconnected(ReasonCode, Option<String>),
    /// The broker answered with a reason code that its packet does not have. mosquitto does so for a
    /// publish beyond its `message_size_limit`.
    UndefinedCode(ReasonCode),
    /// The broker closed the connection and gave no reason.
    Closed,
    /// The broker sent a packet that is malformed or out of place, and this client ended the connection.
    Violation(String),
    /// This client ended the connection, to log in anew.
    Renewed,
    /// Everything else: not reachable, no answer in time, TLS.
    Other(String),
}

impl Loss {
    /// The cause in a form for the log and the status.
    pub(super) fn text(&self) -> String {
        match self {
            Loss::Refused(reason) => {
                format!("the broker refused the connection: {}", reason.text())
            }
            Loss::Disconnected(reason, said) => {
                let said =
                    said.as_ref().map(|said| format!(" ({})", cut(said))).unwrap_or_default();
                format!("the broker ended the connection{said}: {}", reason.text())
            }
            Loss::UndefinedCode(reason) => {
                format!("the broker answered with a reason code out of place: {}", reason.text())
            }
            Loss::Closed => "the broker closed the connection and gave no reason".to_owned(),
            Loss::Violation(text) => format!("the broker violates the protocol: {text}"),
            Loss::Renewed => "the login has changed; connecting again".to_owned(),
            Loss::Other(text) => text.clone(),
        }
    }

    /// The wait before a reconnection.
    pub(super) fn pause(&self) -> Pause {
        match self {
            Loss::Refused(reason) | Loss::Disconnected(reason, _) => reason.pause,
            Loss::UndefinedCode(_)
            | Loss::Closed
            | Loss::Violation(_)
            | Loss::Renewed
            | Loss::Other(_) => Pause::Soon,
        }
    }

    /// How likely a publish in flight was the cause.
    pub(super) fn suspicion(&self) -> Suspicion {
        match self {
            Loss::Disconnected(reason, _) => reason.suspicion,
            Loss::UndefinedCode(_) => Suspicion::Named,
            Loss::Closed | Loss::Violation(_) => Suspicion::Possible,
            Loss::Refused(_) | Loss::Renewed | Loss::Other(_) => Suspicion::None,
        }
    }

    /// The reason that the broker gave for the end of a connection.
    pub(super) fn reason(&self) -> Option<ReasonCode> {
        match self {
            Loss::Disconnected(reason, _) | Loss::UndefinedCode(reason) => Some(*reason),
            Loss::Refused(_)
            | Loss::Closed
            | Loss::Violation(_)
            | Loss::Renewed
            | Loss::Other(_) => None,
        }
    }
}

impl From<&ConnectionError> for Loss {
    #[expect(clippy::wildcard_enum_match_arm, reason = "most causes are only told")]
    fn from(error: &ConnectionError) -> Loss {
        match error {
            ConnectionError::ConnectionRefused(code) => Loss::Refused(reasons::of_connack(*code)),
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code,
                reason_string,
            }) => Loss::Disconnected(ReasonCode::of(*reason_code as u8), reason_string.clone()),
            ConnectionError::MqttState(StateError::ConnectionAborted) => Loss::Closed,
            ConnectionError::MqttState(StateError::Deserialization(
                PacketError::InvalidConnectReturnCode(code)
                | PacketError::InvalidReason(code)
                | PacketError::InvalidSubscribeReasonCode(code),
            )) => Loss::UndefinedCode(ReasonCode::of(*code)),
            ConnectionError::Io(io)
            | ConnectionError::MqttState(
                StateError::Io(io) | StateError::Deserialization(PacketError::Io(io)),
            ) if is_close(io.kind()) => Loss::Closed,
            ConnectionError::MqttState(
                state @ (StateError::Unsolicited(_)
                | StateError::Deserialization(_)
                | StateError::ProtocolViolation(_)),
            ) => Loss::Violation(state.to_string()),
            error => Loss::Other(error.to_string()),
        }
    }
}

/// Whether the other end closed the connection; a connection that was never made is not among these.
fn is_close(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

/// The start of a text that the broker chose.
fn cut(text: &str) -> String {
    const SHOWN: usize = 128;
    text.chars().take(SHOWN).collect::<String>().escape_debug().to_string()
}
