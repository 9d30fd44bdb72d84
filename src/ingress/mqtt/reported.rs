//! The MQTT topic `config/reported`: the state of the configuration, as a retained message.

use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::mqtt::{Bus, Outgoing};
use crate::status::ConfigStatus;

/// Publishes the state at first and after each change, until `stop`.
pub async fn publish(
    bus: Bus,
    topic: String,
    mut status: watch::Receiver<ConfigStatus>,
    stop: CancellationToken,
) {
    let mut published = None;
    // ends with the service
    loop {
        let present = status.borrow_and_update().clone();
        if published.as_ref() != Some(&present) {
            let payload = Bytes::from(json!(present).to_string());
            let message =
                Outgoing { topic: topic.clone(), payload, retain: true, ..Outgoing::default() };
            // a state without room in the outbox is superseded by the next
            let _ = bus.publish(message);
            published = Some(present);
        }
        tokio::select! {
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = stop.cancelled() => return,
        }
    }
}
