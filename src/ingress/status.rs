//! Gathers the status of the service from its modules.

use crate::device::SensorReading;
use crate::dispatch::Dispatch;
use crate::model::health::Health;
use crate::money::account::ClockState;
use crate::mqtt::{Bus, ConnectionState};
use crate::status::{
    BrokerState, BrokerStatus, ConfigStatus, DeviceStatus, Headroom, ServiceStatus,
};

/// The present status; `broker` is the connection to the MQTT broker, if one is configured.
pub(super) fn gather(
    dispatch: &Dispatch,
    broker: Option<&Bus>,
    reading: &SensorReading,
    config: ConfigStatus,
) -> ServiceStatus {
    let (waiting, running) = dispatch.load();
    let servers = dispatch.backends();
    ServiceStatus {
        ready: servers.iter().any(|server| server.health == Health::Ready),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        servers,
        waiting,
        running,
        spent_usd: dispatch.spending(),
        clock: clock_note(dispatch.clock_state()),
        config,
        mqtt: broker.map(BrokerStatus::from),
        device: DeviceStatus::from(reading),
    }
}

fn clock_note(state: ClockState) -> Option<String> {
    (state != ClockState::Agrees).then(|| state.to_string())
}

impl From<&Bus> for BrokerStatus {
    fn from(bus: &Bus) -> BrokerStatus {
        let state = match &*bus.connection().borrow() {
            ConnectionState::Up => BrokerState::Up,
            ConnectionState::Down(reason) => BrokerState::Down { reason: reason.clone() },
        };
        let (problems, undelivered) = (bus.report().problems(), bus.report().counts());
        BrokerStatus { state, problems, undelivered }
    }
}

impl From<&SensorReading> for DeviceStatus {
    fn from(reading: &SensorReading) -> DeviceStatus {
        let SensorReading { sample, device_pressure: pressure, hottest_c } = reading;
        let left = |share: f32| f64::from(1.0 - share);
        DeviceStatus {
            temperature_c: *hottest_c,
            headroom: Headroom {
                heat: left(pressure.heat),
                memory: left(pressure.memory),
                disk: left(pressure.disk),
            },
            memory_available_mb: sample.memory.map(|memory| memory.available >> 20),
            disk_available_mb: sample.disk.map(|disk| disk.available >> 20),
            processor_busy: sample.busy,
            duty: pressure.duty.into(),
            stage: pressure.stage,
            cause: pressure.cause,
        }
    }
}
