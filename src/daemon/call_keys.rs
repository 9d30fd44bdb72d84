//! The keys of calls over MQTT: from the configuration, else from the state folder, where they are
//! generated at the first start.

use anyhow::Context;

use super::state_folder;
use crate::catalog::public_key::{KEY_BYTES, SecretKind};
use crate::catalog::secret::Secret;
use crate::config::Config;
use crate::mcp::over_mqtt::ServiceTopics;
use crate::mcp::over_mqtt::identity::WorkerIdentity;
use crate::mcp::over_mqtt::keys::{CallerPair, ServicePair};
use crate::mcp::over_mqtt::worker;
use crate::store::{private_key, start_number};

/// The private key; generated if there is none.
///
/// # Errors
/// If there is no place for it, or its file is not usable.
fn secret(config: &Config, kind: SecretKind) -> anyhow::Result<Secret<[u8; KEY_BYTES]>> {
    let named = config.mqtt.as_ref().map(|mqtt| &mqtt.secrets).and_then(|named| match kind {
        SecretKind::Service => named.service.clone(),
        SecretKind::Caller => named.caller.clone(),
    });
    if let Some(secret) = named {
        return Ok(secret);
    }
    let folder = state_folder(config).context("there is no state folder; set PILOTLIGHT_STATE")?;
    private_key::read_or_generate(folder, kind)
        .with_context(|| private_key::path(folder, kind).display().to_string())
}

/// The key pair of this device as a caller, if a server has a pinned key.
///
/// # Errors
/// If it is not usable.
pub(super) fn caller(config: &Config) -> anyhow::Result<Option<CallerPair>> {
    if config.catalog.services().all(|(_, key)| key.is_none()) {
        return Ok(None);
    }
    caller_pair(config).map(Some)
}

/// The same, whether it is needed or not.
///
/// # Errors
/// If it is not usable.
pub(crate) fn caller_pair(config: &Config) -> anyhow::Result<CallerPair> {
    CallerPair::new(&secret(config, SecretKind::Caller)?).context("it is no X25519 key")
}

/// The key pair of the service that this process serves.
///
/// # Errors
/// If it is not usable.
pub(crate) fn service_pair(config: &Config) -> anyhow::Result<ServicePair> {
    ServicePair::new(&secret(config, SecretKind::Service)?).context("it is no Ed25519 key")
}

/// The identity of this worker, if it has callers with keys.
///
/// # Errors
/// If the service's key is not usable.
pub(super) fn worker(
    config: &Config,
    topics: &ServiceTopics,
) -> anyhow::Result<Option<WorkerIdentity>> {
    let Some(callers) = config.catalog.mqtt.callers.clone() else { return Ok(None) };
    let service = service_pair(config)?;
    let start = start_number::next(state_folder(config));
    tracing::info!(service_key = %service.public(), callers = callers.len(), "accepts encrypted calls only");
    let topic = worker::presence_topic(topics, &config.device);
    Ok(Some(WorkerIdentity::new(service, (topic, config.device.clone()), callers, start)))
}
