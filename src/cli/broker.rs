//! Commands that are clients of the broker: they wait until the connection is up, and say why it is not.

use std::time::Duration;

use anyhow::bail;

use crate::config::Mqtt;
use crate::mqtt::{Bus, ConnectionState};

/// Time limit of the connection to the broker.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Waits until the broker has accepted the connection and its subscriptions.
///
/// # Errors
/// If it does not, with the reason and what to do.
pub(super) async fn connected(bus: &Bus, mqtt: &Mqtt) -> anyhow::Result<()> {
    let Mqtt { host, port, .. } = mqtt;
    let mut state = bus.connection();
    let up = state.wait_for(|state| *state == ConnectionState::Up);
    if matches!(tokio::time::timeout(CONNECT_MAX, up).await, Ok(Ok(_))) {
        return Ok(());
    }
    let why = match &*bus.connection().borrow() {
        ConnectionState::Down(why) => why.clone(),
        ConnectionState::Up => String::new(),
    };
    let is_login = ["(0x86)", "(0x87)"].iter().any(|code| why.contains(code));
    if is_login {
        bail!(
            "broker {host}:{port} refused the login ({why}); set PILOTLIGHT_MQTT_USERNAME and \
             PILOTLIGHT_MQTT_PASSWORD, or for the embedded broker PILOTLIGHT_STATE to the state \
             folder of the service"
        );
    }
    bail!("broker {host}:{port} is not reachable ({why}); is the service running?")
}
