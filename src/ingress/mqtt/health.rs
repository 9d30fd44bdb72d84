//! The MQTT health topic: a retained message, sent on each change of the pressure and periodically.

use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::device::SensorReading;
use crate::dispatch::Dispatch;
use crate::ingress::reloads::Reloads;
use crate::ingress::status::gather;
use crate::limits::HEALTH_EVERY;
use crate::mqtt::{Bus, Outgoing};
use crate::status::HealthMessage;

/// Publishes until `stop`: when the pressure's stage or cause changes, and every [`HEALTH_EVERY`].
pub async fn publish(
    bus: Bus,
    topic: String,
    dispatch: Dispatch,
    (mut reading, reloads): (watch::Receiver<SensorReading>, Reloads),
    stop: CancellationToken,
) {
    // ends with the service
    loop {
        let now = reading.borrow_and_update().clone();
        let state = (now.device_pressure.stage, now.device_pressure.cause);
        let status = gather(&dispatch, Some(&bus), &now, reloads.status());
        let payload = Bytes::from(json!(HealthMessage::from(status)).to_string());
        let message =
            Outgoing { topic: topic.clone(), payload, retain: true, ..Outgoing::default() };
        // a message without room in the outbox is superseded by the next
        let _ = bus.publish(message);
        let changed = async {
            let is_change = |reading: &SensorReading| {
                state != (reading.device_pressure.stage, reading.device_pressure.cause)
            };
            if reading.wait_for(is_change).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(HEALTH_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}
