//! The presence of a client: what it says of itself in a retained message.

use std::sync::Arc;

use bytes::Bytes;

/// A retained message that states whether this client is connected; its offline form is the last
/// will, which the broker publishes when the connection is lost.
#[derive(Clone)]
pub struct Presence {
    /// Topic of the message.
    pub topic: String,
    /// The payloads.
    pub messages: Arc<dyn PresenceMessages>,
    /// Whether the message is published again when another client has written to its topic.
    pub is_asserted: bool,
}

/// The payloads of a presence topic.
pub trait PresenceMessages: Send + Sync {
    /// A new connection is made: both payloads are read after this.
    fn begin(&self);
    /// Payload while connected.
    fn online(&self) -> Bytes;
    /// Payload while disconnected.
    fn offline(&self) -> Bytes;
}

/// The same payloads on every connection.
#[derive(Debug, Clone)]
pub struct FixedPresence {
    /// Payload while connected.
    pub online: Bytes,
    /// Payload while disconnected.
    pub offline: Bytes,
}

impl PresenceMessages for FixedPresence {
    fn begin(&self) {}

    fn online(&self) -> Bytes {
        self.online.clone()
    }

    fn offline(&self) -> Bytes {
        self.offline.clone()
    }
}
