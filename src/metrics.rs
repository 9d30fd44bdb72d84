//! Counts and times for whoever watches, in the text format of Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::pressure::level::DevicePressure;
use crate::scheduler::decision::{Decision, Route};
use crate::wire::{Reply, Status};

/// All metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    replies: Family<ReplyLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    first_token: Histogram,
    total: Histogram,
    waiting: Gauge,
    running: Gauge,
    up: Family<ServerLabels, Gauge>,
    mqtt: Gauge,
    pressure: Family<PressureLabels, Gauge<f64, AtomicU64>>,
    duty: Gauge<f64, AtomicU64>,
    cost: Counter<f64, AtomicU64>,
    spent: Family<SpanLabels, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReplyLabels {
    door: String,
    status: String,
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TokenLabels {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServerLabels {
    server: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PressureLabels {
    of: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SpanLabels {
    span: String,
}

/// Seconds; from a cached first token on a fast board to a long answer on a slow one.
const BUCKETS: [f64; 12] = [0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Arc::default(),
            replies: Family::default(),
            tokens: Family::default(),
            first_token: Histogram::new(BUCKETS),
            total: Histogram::new(BUCKETS),
            waiting: Gauge::default(),
            running: Gauge::default(),
            up: Family::default(),
            mqtt: Gauge::default(),
            pressure: Family::default(),
            duty: Gauge::default(),
            cost: Counter::default(),
            spent: Family::default(),
        };
        let mut all = Registry::with_prefix("pilotlight");
        all.register("replies", "Replies given", metrics.replies.clone());
        all.register("tokens", "Tokens read and written", metrics.tokens.clone());
        all.register("first_token_seconds", "Time to first token", metrics.first_token.clone());
        all.register("reply_seconds", "Time to the complete answer", metrics.total.clone());
        all.register("waiting_jobs", "Queued jobs", metrics.waiting.clone());
        all.register("running_jobs", "Running jobs", metrics.running.clone());
        all.register("server_up", "1 if the model is available", metrics.up.clone());
        all.register("mqtt_up", "1 if connected to the broker", metrics.mqtt.clone());
        all.register("pressure", "Pressure: 0 none, 1 at the limit", metrics.pressure.clone());
        all.register("duty", "Duty cycle of the engines, 0 to 1", metrics.duty.clone());
        all.register("cost_usd", "Cost of answers in US dollars", metrics.cost.clone());
        let help = "Spent in the current hour, day and month; running calls at their highest \
                    possible cost";
        all.register("spent_usd", help, metrics.spent.clone());
        metrics.registry = Arc::new(all);
        metrics
    }
}

impl Metrics {
    /// Counts one reply.
    pub fn replied(&self, door: &str, reply: &Reply) {
        let status = match reply.status {
            Status::Ok => "ok",
            Status::Busy => "busy",
            Status::Expired => "expired",
            Status::Refused => "refused",
            Status::Conflict => "conflict",
            Status::Failed => "failed",
        };
        let route = reply.decision.as_ref().map_or(Route::None, |d| d.route);
        let labels = ReplyLabels {
            door: door.to_owned(),
            status: status.to_owned(),
            route: route.name().to_owned(),
        };
        self.replies.get_or_create(&labels).inc();
        if let Some(usage) = &reply.usage {
            let tokens = |kind: &str| {
                self.tokens.get_or_create_owned(&TokenLabels { kind: kind.to_owned() })
            };
            tokens("prompt").inc_by(usage.prompt_tokens.into());
            tokens("completion").inc_by(usage.completion_tokens.into());
        }
        self.cost.inc_by(reply.decision.as_ref().map_or(0.0, Decision::cost_usd));
        if let Some(timing) = &reply.timing {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of an answer")]
            let seconds = |ms: u64| ms as f64 / 1e3;
            self.total.observe(seconds(timing.total_ms));
            if let Some(first) = timing.first_token_ms {
                self.first_token.observe(seconds(first));
            }
        }
    }

    /// Everything as text, with what is so at this moment.
    pub fn text(
        &self,
        load: (usize, usize),
        servers: &[(String, bool)],
        mqtt: bool,
        device_pressure: &DevicePressure,
        spent: &[(&str, f64)],
    ) -> String {
        for (span, usd) in spent {
            self.spent.get_or_create(&SpanLabels { span: (*span).to_owned() }).set(*usd);
        }
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.waiting.set(gauge(load.0));
        self.running.set(gauge(load.1));
        self.mqtt.set(mqtt.into());
        for (of, share) in [
            ("heat", device_pressure.heat),
            ("memory", device_pressure.memory),
            ("disk", device_pressure.disk),
        ] {
            let labels = PressureLabels { of: of.to_owned() };
            self.pressure.get_or_create(&labels).set(share.into());
        }
        self.duty.set(device_pressure.duty.into());
        for (server, up) in servers {
            let labels = ServerLabels { server: server.clone() };
            self.up.get_or_create(&labels).set((*up).into());
        }
        let mut text = String::new();
        // writing to a string can't fail
        let _ = encode(&mut text, &self.registry);
        text
    }
}
