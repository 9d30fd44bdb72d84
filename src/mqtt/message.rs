//! Messages to and from the broker.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::AckGuard;

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
    /// When this process, or an earlier one, received it.
    pub arrived: Instant,
    /// Acknowledges the message when the request has its answer.
    pub ack: AckGuard,
}
