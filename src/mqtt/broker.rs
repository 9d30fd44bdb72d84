//! An embedded MQTT broker, so that the service can be used without a separate one.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::config::{StorageBackend, StorageConfig};
use mqtt5::broker::resource_monitor::ResourceLimits;
use mqtt5::broker::{BrokerConfig, MqttBroker};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::catalog::secret::Secret;
use crate::clock;
use crate::limits::{
    BROKER_ALIASES_MAX, BROKER_CHANNEL_MAX, BROKER_CLIENTS_MAX, BROKER_CONNECTS_A_SECOND_MAX,
    BROKER_PACKET_BYTES_MAX, BROKER_QUEUED_BYTES_MAX, BROKER_QUEUED_MAX, BROKER_RECEIVE_MAX,
    BROKER_RETAINED_BYTES_MAX, BROKER_RETAINED_MAX, BROKER_SESSION_EXPIRY, BROKER_SESSIONS_MAX,
    BROKER_SUBSCRIPTIONS_MAX,
};

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerAccess {
    /// Every program of this machine, for a try-out.
    Anonymous,
    /// Clients with this user name and password.
    Login(String, Secret<String>),
}

/// Listens on `addr`; returns the bound address and the task that serves until `stop`.
///
/// # Errors
/// If the address is not loopback or is taken.
pub async fn open(
    addr: SocketAddr,
    access: BrokerAccess,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, impl Future<Output = ()> + Send + 'static)> {
    if !addr.ip().is_loopback() {
        anyhow::bail!(
            "the embedded broker has no encryption and listens on loopback only, not on {addr}; for \
             other machines use a broker such as mosquitto"
        );
    }
    let storage = StorageConfig::default()
        .with_backend(StorageBackend::Memory)
        .with_persistence(false)
        .with_max_queued_messages_per_client(BROKER_QUEUED_MAX)
        .with_max_queued_bytes_per_client(BROKER_QUEUED_BYTES_MAX);
    let mut config = BrokerConfig::default()
        .with_bind_address(addr)
        .with_max_clients(BROKER_CLIENTS_MAX)
        .with_max_packet_size(BROKER_PACKET_BYTES_MAX)
        .with_max_retained_messages(BROKER_RETAINED_MAX)
        .with_max_retained_message_size(BROKER_RETAINED_BYTES_MAX)
        .with_max_subscriptions_per_client(BROKER_SUBSCRIPTIONS_MAX)
        .with_client_channel_capacity(BROKER_CHANNEL_MAX)
        .with_session_expiry(BROKER_SESSION_EXPIRY)
        .with_sys_topics_enabled(false)
        .with_storage(storage);
    config.topic_alias_maximum = BROKER_ALIASES_MAX;
    config.server_receive_maximum = Some(BROKER_RECEIVE_MAX);
    // replaced by the provider below
    config.auth_config.allow_anonymous = true;
    let broker = MqttBroker::with_config(config).await.with_context(|| {
        format!(
            "the embedded broker cannot listen on {addr}; if the port is in use, set \
                 PILOTLIGHT_BROKER"
        )
    })?;
    let mut broker = broker.with_auth_provider(Arc::new(Clients::new(access)));
    // by default one address may open any number of connections a second
    broker.resource_monitor().update_limits(ResourceLimits {
        max_connections: BROKER_CLIENTS_MAX,
        max_connections_per_ip: BROKER_CLIENTS_MAX,
        max_message_rate_per_client: 0,
        max_bandwidth_per_client: 0,
        max_connection_rate: BROKER_CONNECTS_A_SECOND_MAX,
        rate_limit_window: std::time::Duration::from_secs(1),
    });
    let addr = broker.local_addr().unwrap_or(addr);
    let handle = broker.shutdown_handle();
    let serve = async move {
        tokio::select! {
            ended = broker.run() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the embedded broker ended");
                }
            }
            () = stop.cancelled() => handle.shutdown(),
        }
    };
    Ok((addr, serve))
}

/// Admits clients: by their login, and as many sessions and retained wills as the broker may keep.
struct Clients {
    access: BrokerAccess,
    kept: Mutex<Kept>,
}

/// What the broker keeps of clients beyond their connections.
#[derive(Default)]
struct Kept {
    /// The clients with a session, and when they last connected.
    sessions: BTreeMap<String, Instant>,
    /// The topics of retained wills, which the broker does not count as retained messages.
    wills: BTreeSet<String>,
}

impl Clients {
    fn new(access: BrokerAccess) -> Clients {
        Clients { access, kept: Mutex::default() }
    }

    fn knows(&self, connect: &ConnectPacket) -> bool {
        let BrokerAccess::Login(user, password) = &self.access else { return true };
        let given = connect.password.as_deref().unwrap_or_default();
        // compared in constant time for passwords of the same length
        let is_password: bool = given.ct_eq(password.0.as_bytes()).into();
        is_password && connect.username.as_deref() == Some(user)
    }

    fn admit(&self, connect: &ConnectPacket) -> AuthResult {
        if !self.knows(connect) {
            return AuthResult::fail(ReasonCode::BadUsernameOrPassword);
        }
        let now = clock::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(reason) = kept.take(connect, now) {
            tracing::warn!(
                client = connect.client_id,
                reason,
                "the embedded broker refused a client"
            );
            return AuthResult::fail_with_reason(ReasonCode::QuotaExceeded, reason);
        }
        AuthResult::success()
    }
}

impl Kept {
    /// Counts what this client leaves behind.
    fn take(&mut self, connect: &ConnectPacket, now: Instant) -> Result<(), &'static str> {
        let has_session = match connect.protocol_version {
            4 => !connect.clean_start,
            _ => connect.properties.get_session_expiry_interval().unwrap_or(0) > 0,
        };
        let will = connect.will.as_ref().filter(|will| will.retain);
        let will = will.filter(|will| !self.wills.contains(&will.topic));
        if will.is_some() && self.wills.len() >= BROKER_RETAINED_MAX {
            return Err("too many topics of retained wills");
        }
        if !has_session {
            self.sessions.remove(&connect.client_id);
        } else if !self.sessions.contains_key(&connect.client_id)
            && self.sessions.len() >= BROKER_SESSIONS_MAX
        {
            let is_kept = |at: &Instant| now.saturating_duration_since(*at) < BROKER_SESSION_EXPIRY;
            self.sessions.retain(|_, at| is_kept(at));
            if self.sessions.len() >= BROKER_SESSIONS_MAX {
                return Err("too many sessions");
            }
        }
        if has_session {
            self.sessions.insert(connect.client_id.clone(), now);
        }
        self.wills.extend(will.map(|will| will.topic.clone()));
        Ok(())
    }
}

type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl AuthProvider for Clients {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        _client: SocketAddr,
    ) -> Promise<'a, mqtt5::Result<AuthResult>> {
        Box::pin(ready(Ok(self.admit(connect))))
    }

    fn authorize_publish<'a>(
        &'a self,
        _client: &str,
        _user: Option<&'a str>,
        _topic: &'a str,
    ) -> Promise<'a, bool> {
        Box::pin(ready(true))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client: &str,
        _user: Option<&'a str>,
        _filter: &'a str,
    ) -> Promise<'a, bool> {
        Box::pin(ready(true))
    }
}
