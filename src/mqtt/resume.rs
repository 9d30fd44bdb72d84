//! Goes on with the session that the broker kept, after a restart of this program.
//!
//! The client library takes the broker's session only if it is given its own half of it. Our half
//! is empty and that is right: whatever we had not been told the broker has, our outbox offers
//! anew, and what the broker has not been told we have, it sends again.

use rumqttc::{
    PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey,
};

use crate::limits::{MQTT_INFLIGHT_MAX, MQTT_SESSION_EXPIRY};
use crate::model::generate::BoxFuture;

/// The library's number for this shape of a session.
const FORMAT: u16 = 1;

/// A store that always holds an empty half and keeps nothing.
#[derive(Debug)]
pub(super) struct EmptyHalf;

impl SessionStore for EmptyHalf {
    fn load<'a>(
        &'a self,
        key: &'a SessionStoreKey,
    ) -> BoxFuture<'a, Result<Option<PersistedSession>, SessionStoreError>> {
        let session = PersistedSession {
            format_version: FORMAT,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: u32::try_from(MQTT_SESSION_EXPIRY.as_secs()).ok(),
            outgoing_inflight_upper_limit: Some(MQTT_INFLIGHT_MAX),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(async move { Ok(Some(session)) })
    }

    fn save<'a>(
        &'a self,
        _key: &'a SessionStoreKey,
        _session: &'a PersistedSession,
    ) -> BoxFuture<'a, Result<(), SessionStoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(
        &'a self,
        _key: &'a SessionStoreKey,
    ) -> BoxFuture<'a, Result<(), SessionStoreError>> {
        Box::pin(async { Ok(()) })
    }
}
