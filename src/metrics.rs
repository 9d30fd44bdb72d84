//! Metrics in the text format of Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::model::health::Health;
use crate::scheduler::decision::{Decision, Route};
use crate::status::{BrokerState, ServiceStatus};
use crate::wire::Reply;

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
    undelivered: Family<UndeliveredLabels, Counter>,
    pressure: Family<PressureLabels, Gauge<f64, AtomicU64>>,
    duty: Gauge<f64, AtomicU64>,
    cost: Counter<f64, AtomicU64>,
    spent: Family<SpanLabels, Gauge<f64, AtomicU64>>,
    implausible: Family<ServerLabels, Counter>,
}

/// The interface has the public label `door`.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct ReplyLabels {
    interface: &'static str,
    status: &'static str,
    route: String,
}

impl EncodeLabelSet for ReplyLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        let labels =
            [("door", self.interface), ("status", self.status), ("route", self.route.as_str())];
        labels.encode(encoder)
    }
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
struct UndeliveredLabels {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PressureLabels {
    of: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SpanLabels {
    span: String,
}

/// Upper bounds in seconds, from a cached first token on a fast board to a long answer on a slow one.
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
            undelivered: Family::default(),
            pressure: Family::default(),
            duty: Gauge::default(),
            cost: Counter::default(),
            spent: Family::default(),
            implausible: Family::default(),
        };
        let mut all = Registry::with_prefix("pilotlight");
        all.register("replies", "Replies sent", metrics.replies.clone());
        all.register("tokens", "Tokens of prompts and answers", metrics.tokens.clone());
        all.register("first_token_seconds", "Time to first token", metrics.first_token.clone());
        all.register("reply_seconds", "Time to the complete answer", metrics.total.clone());
        all.register("waiting_jobs", "Queued jobs", metrics.waiting.clone());
        all.register("running_jobs", "Running jobs", metrics.running.clone());
        all.register("server_up", "1 if the model is available", metrics.up.clone());
        all.register("mqtt_up", "1 if connected to the broker", metrics.mqtt.clone());
        let help = "MQTT messages that were not delivered";
        all.register("mqtt_undelivered", help, metrics.undelivered.clone());
        all.register("pressure", "Pressure: 0 none, 1 at the limit", metrics.pressure.clone());
        all.register("duty", "Duty cycle of the engines, 0 to 1", metrics.duty.clone());
        all.register("cost_usd", "Cost of answers in US dollars", metrics.cost.clone());
        let help = "Spent in the current hour, day and month; running calls at their highest \
                    possible cost";
        all.register("spent_usd", help, metrics.spent.clone());
        let help = "Answers with figures that cannot be true";
        all.register("implausible_answers", help, metrics.implausible.clone());
        metrics.registry = Arc::new(all);
        metrics
    }
}

impl Metrics {
    /// Counts one reply of this interface.
    pub fn replied(&self, interface: &'static str, reply: &Reply) {
        let route = reply.decision.as_ref().map_or(Route::None, |d| d.route);
        let status = reply.status.name();
        let labels = ReplyLabels { interface, status, route: route.name().to_owned() };
        self.replies.get_or_create(&labels).inc();
        if let Some(usage) = &reply.usage {
            let tokens = |kind: &str| {
                self.tokens.get_or_create_owned(&TokenLabels { kind: kind.to_owned() })
            };
            tokens("prompt").inc_by(usage.prompt_tokens.into());
            tokens("completion").inc_by(usage.completion_tokens.into());
        }
        let attempts = reply.decision.iter().flat_map(|decision| &decision.attempts);
        for attempt in attempts.filter(|attempt| attempt.implausible) {
            let server = attempt.server.clone();
            self.implausible.get_or_create_owned(&ServerLabels { server }).inc();
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

    /// All metrics as text, the gauges from this status.
    pub fn text(&self, status: &ServiceStatus) -> String {
        for (span, usd) in status.spent_usd.by_span() {
            self.spent.get_or_create(&SpanLabels { span: span.to_owned() }).set(usd);
        }
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.waiting.set(gauge(status.waiting));
        self.running.set(gauge(status.running));
        let broker = status.mqtt.as_ref();
        self.mqtt.set(broker.is_some_and(|broker| broker.state == BrokerState::Up).into());
        for (kind, count) in broker.iter().flat_map(|broker| &broker.undelivered) {
            let labels = UndeliveredLabels { kind: kind.clone() };
            self.undelivered.get_or_create(&labels).inner().store(*count, Ordering::Relaxed);
        }
        let left = status.device.headroom;
        for (of, left) in [("heat", left.heat), ("memory", left.memory), ("disk", left.disk)] {
            let labels = PressureLabels { of: of.to_owned() };
            self.pressure.get_or_create(&labels).set(1.0 - left);
        }
        self.duty.set(status.device.duty);
        for server in &status.servers {
            let labels = ServerLabels { server: server.server.clone() };
            self.up.get_or_create(&labels).set((server.health == Health::Ready).into());
        }
        let mut text = String::new();
        // writing to a string can't fail
        let _ = encode(&mut text, &self.registry);
        text
    }
}
