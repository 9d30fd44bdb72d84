//! The keys of calls over MQTT: the private ones that the file names, and what is missing.

use std::net::IpAddr;
use std::path::Path;

use super::{Mqtt, SettingsReader};
use crate::catalog::catalog::{Catalog, MqttPart};
use crate::catalog::mistake::Mistake;
use crate::catalog::public_key::{KEY_BYTES, SecretKind};
use crate::catalog::secret::Secret;
use crate::catalog::server::Endpoint;

/// Private keys for encrypted calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallSecrets {
    /// Of the service that this process serves.
    pub service: Option<Secret<[u8; KEY_BYTES]>>,
    /// Of this device as a caller.
    pub caller: Option<Secret<[u8; KEY_BYTES]>>,
}

impl SettingsReader<'_> {
    /// The private keys that the file names.
    pub(super) fn call_secrets(&mut self, written: &MqttPart) -> CallSecrets {
        let service = (SecretKind::Service, "pilotlight.mqtt.service_secret");
        let caller = (SecretKind::Caller, "pilotlight.mqtt.caller_secret");
        CallSecrets {
            service: self.call_secret(service, written.service_secret.as_ref()),
            caller: self.call_secret(caller, written.caller_secret.as_ref()),
        }
    }

    fn call_secret(
        &mut self,
        (kind, path): (SecretKind, &str),
        written: Option<&Secret<String>>,
    ) -> Option<Secret<[u8; KEY_BYTES]>> {
        let text = self.secret(path, written.map(|text| text.0.clone()))?;
        match kind.parse(&text) {
            Ok(key) => Some(Secret(key)),
            Err(message) => {
                self.mistake(path, message);
                None
            }
        }
    }

    /// A key needs a place; calls without a key are warned of, unless only this machine can see them.
    pub(super) fn check_proof(
        &mut self,
        catalog: &Catalog,
        mqtt: Option<&Mqtt>,
        state: Option<&Path>,
        warnings: &mut Vec<Mistake>,
    ) {
        let Some(mqtt) = mqtt else { return };
        let place = &mqtt.host;
        let has_place = |secret: bool| secret || state.is_some();
        let is_pinned = catalog.services().any(|(_, key)| key.is_some());
        if is_pinned && !has_place(mqtt.secrets.caller.is_some()) {
            let message = "a server with service_key needs this device's own key: set PILOTLIGHT_STATE, \
                           where it is generated, or caller_secret";
            self.mistake("pilotlight.mqtt.caller_secret", message);
        }
        if catalog.mqtt.callers.is_some() && !has_place(mqtt.secrets.service.is_some()) {
            let message = "callers needs the key of the service: set PILOTLIGHT_STATE, where it is \
                           generated, or service_secret";
            self.mistake("pilotlight.mqtt.service_secret", message);
        }
        if is_loopback(place) {
            return;
        }
        let mut warn = |path: String, message: String| warnings.push(Mistake::new(path, message));
        for server in &catalog.servers {
            if let Endpoint::Mqtt { service_key: None, .. } = &server.endpoint {
                let name = &server.name;
                let message = format!(
                    "is missing: whoever may use the broker {place} can read the calls of {name} and answer \
                     them; set it to the public key that `pilotlight key` prints on a worker"
                );
                warn(format!("pilotlight.servers.{name}.service_key"), message);
            }
        }
        if catalog.mqtt.serve.is_some() && catalog.mqtt.callers.is_none() {
            let message = format!(
                "is missing: whoever may use the broker {place} can call this worker, and read and answer \
                 calls of others; write the names of the callers with the public keys that `pilotlight key` \
                 prints there"
            );
            warn("pilotlight.mqtt.callers".to_owned(), message);
        }
    }
}

/// Whether this is the address of this machine on itself.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
