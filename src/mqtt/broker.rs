//! An embedded MQTT broker, so that the service can be tried without a separate one.

use std::net::SocketAddr;

use anyhow::Context;
use mqtt5::broker::config::{StorageBackend, StorageConfig};
use mqtt5::broker::{BrokerConfig, MqttBroker};
use tokio_util::sync::CancellationToken;

use crate::limits::MQTT_PACKET_BYTES_MAX;

/// Clients that are connected at once.
const CLIENTS_MAX: usize = 64;

/// Listens on `addr`; returns the bound address and the task that serves until `stop`.
///
/// Clients are not authenticated, so it listens on loopback only.
///
/// # Errors
/// If the address is not loopback or is taken.
pub async fn open(
    addr: SocketAddr,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, impl Future<Output = ()> + Send + 'static)> {
    if !addr.ip().is_loopback() {
        anyhow::bail!(
            "the embedded broker has no passwords and listens on loopback only, not on {addr}; \
             for other machines use a broker such as mosquitto"
        );
    }
    let mut config = BrokerConfig::default()
        .with_bind_address(addr)
        .with_max_clients(CLIENTS_MAX)
        .with_max_packet_size(MQTT_PACKET_BYTES_MAX as usize)
        .with_sys_topics_enabled(false)
        .with_storage(
            StorageConfig::default().with_backend(StorageBackend::Memory).with_persistence(false),
        );
    config.auth_config.allow_anonymous = true;
    let mut broker = MqttBroker::with_config(config).await.with_context(|| {
        format!(
            "the embedded broker cannot listen on {addr}; if the port is in use, set \
                 PILOTLIGHT_BROKER"
        )
    })?;
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
