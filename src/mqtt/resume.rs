//! Session resumption after a restart of this program.
//!
//! The client library resumes the broker's session only if it is given the client's half of it. An
//! empty half is correct: unacknowledged publishes ended with the earlier process, and the broker
//! delivers again each message that was not acknowledged.

use rumqttc::{
    PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey,
};

use crate::limits::{MQTT_INFLIGHT_MAX, MQTT_SESSION_EXPIRY};
use crate::model::generate::BoxFuture;

/// The library's version of the stored form of a session.
const FORMAT: u16 = 1;

/// A session store whose client half is always empty, and that stores nothing.
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
