//! Says on a retained topic how hard pressed the device is: when that changes, and now and then.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::device::SensorReading;
use crate::dispatch::Dispatch;
use crate::limits::HEALTH_EVERY;
use crate::model::context::Locality;
use crate::mqtt::{Bus, Outgoing};

/// Publishes until `stop`.
pub async fn tell(
    bus: Bus,
    topic: String,
    dispatch: Dispatch,
    mut reading: watch::Receiver<SensorReading>,
    stop: CancellationToken,
) {
    let mut last = None;
    // ends with the service
    loop {
        let now = reading.borrow_and_update().clone();
        let state = (now.device_pressure.stage, now.device_pressure.cause);
        let payload = Bytes::from(health(&now, &dispatch).to_string());
        let message =
            Outgoing { topic: topic.clone(), payload, retain: true, ..Outgoing::default() };
        // one that finds no room is followed by the next
        let _ = bus.publish(message);
        last.replace(state);
        let changed = async {
            let is_news = |reading: &SensorReading| {
                last != Some((reading.device_pressure.stage, reading.device_pressure.cause))
            };
            if reading.wait_for(is_news).await.is_err() {
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

/// What the device bears, and what it does.
fn health(reading: &SensorReading, dispatch: &Dispatch) -> Value {
    let mut value = reading.told();
    let (waiting, running) = dispatch.load();
    let here = dispatch.backends().into_iter().filter(|seen| seen.locality == Locality::Device);
    let rate = here.filter_map(|seen| seen.context?.runtime.decode_tokens_per_s).reduce(f64::max);
    value["waiting"] = json!(waiting);
    value["running"] = json!(running);
    value["tokens_per_s"] = json!(rate);
    value["spent_usd"] = json!(dispatch.spending());
    value
}
