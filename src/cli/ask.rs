//! `ask`: sends a prompt by MQTT or to models in this process, prints the answer while it is
//! generated, and the decision record.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::broker;
use super::output::write_piece;
use super::{DONE, NOT_ANSWERED};
use crate::config::Config;
use crate::daemon::{Core, calm, connection_options, keep_of};
use crate::ingress::answers;
use crate::ingress::mqtt::topics::DeviceTopics;
use crate::limits::{DEADLINE_GRACE, ENGINE_LOAD_MAX, MQTT_INBOX_MAX};
use crate::model::generate::Finish;
use crate::mqtt;
use crate::mqtt::{Outgoing, Router, Subscription};
use crate::random;
use crate::request::client::Client;
use crate::request::job::{Mode, Priority, Strategy};
use crate::strategy;
use crate::wire;
use crate::wire::{AskFormat, Reply, Status};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub(super) struct AskArgs {
    /// The prompt; with a task, its template value `input`.
    #[arg(required_unless_present = "inputs")]
    prompt: Option<String>,
    /// Load the models in this process; needs no running service or broker.
    #[arg(long)]
    local: bool,
    /// Task of `mcp.json`.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Value of the task's template or rules, as JSON or text.
    #[arg(long = "input", value_name = "NAME=VALUE", value_parser = input, requires = "task")]
    inputs: Vec<(String, Value)>,
    /// Constrain the answer to this JSON Schema.
    #[arg(long, value_name = "JSON")]
    schema: Option<String>,
    /// Constrain the answer to a JSON object.
    #[arg(long = "json-answer")]
    json_answer: bool,
    /// Maximum number of tokens of the answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Sampling temperature, 0 to 2; 0 is greedy.
    #[arg(long)]
    temperature: Option<f32>,
    /// Seed of the sampling.
    #[arg(long)]
    seed: Option<u32>,
    /// The same answer each time, whatever else the model computes.
    #[arg(long)]
    deterministic: bool,
    /// Deadline of the answer in milliseconds (default: that of the task, else of the class).
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// Class of the request.
    #[arg(long, value_name = "CLASS", default_value = "interactive", value_parser = word::<Priority>)]
    class: Priority,
    /// Where the request may be answered: local-only, prefer-local, prefer-cloud or cloud-only (default: as configured).
    #[arg(long, value_parser = word::<Mode>)]
    mode: Option<Mode>,
    /// How models cooperate: single, cascade, refine or compare (default: as configured).
    #[arg(long, value_parser = word::<Strategy>)]
    strategy: Option<Strategy>,
    /// With compare: the model that selects the best answer.
    #[arg(long, value_name = "MODEL")]
    judge: Option<String>,
    /// Label that may be the answer, instead of a text; repeat it for each.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Id of the request: the same id has the same answer (default: a random one).
    #[arg(long)]
    id: Option<String>,
    /// Name of the model to use.
    #[arg(long)]
    model: Option<String>,
    /// Print the decision record after the answer.
    #[arg(long)]
    record: bool,
    /// Print the whole reply as JSON only.
    #[arg(long, conflicts_with = "record")]
    json: bool,
}

impl AskArgs {
    /// Whether the models are loaded in this process.
    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    pub(super) async fn run(self, config: Config) -> anyhow::Result<u8> {
        let ask = self.wire()?;
        let reply = if self.local {
            self.ask_local(ask, &config).await?
        } else {
            self.ask_service(ask, &config).await?
        };
        if self.json {
            print_line!("{}", serde_json::to_string_pretty(&reply)?);
        } else {
            print_line!();
            print_error!("{}", summary(&reply));
            if self.record {
                print_record(&reply)?;
            }
        }
        Ok(if reply.status == Status::Ok { DONE } else { NOT_ANSWERED })
    }

    fn wire(&self) -> anyhow::Result<wire::Ask> {
        let schema = self.schema.as_deref().map(serde_json::from_str).transpose();
        let mut input: Map<String, Value> = self.inputs.iter().cloned().collect();
        let stated = self.prompt.as_ref().filter(|prompt| !prompt.is_empty());
        if let (false, Some(prompt)) = (input.is_empty(), stated) {
            input.insert("input".to_owned(), Value::from(prompt.clone()));
        }
        let prompt = self.prompt.clone().filter(|_| input.is_empty());
        let labels = self.labels.iter().map(|label| (label.clone(), Vec::new()));
        let id = match &self.id {
            Some(id) => id.clone(),
            // whoever could guess it could answer on the reply topic
            None => format!("cli-{}-{}", std::process::id(), random::id()?),
        };
        Ok(wire::Ask {
            id: Some(id),
            prompt,
            labels: Some(labels.collect()).filter(|_| !self.labels.is_empty()),
            strategy: self.strategy,
            judge: self.judge.clone(),
            task: self.task.clone(),
            input: Some(input).filter(|input| !input.is_empty()),
            schema: schema.context("--schema is not valid JSON")?,
            format: self.json_answer.then_some(AskFormat::Json),
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
            deterministic: self.deterministic.then_some(true),
            deadline_ms: self.deadline_ms,
            priority: Some(self.class),
            mode: self.mode,
            model: self.model.clone(),
            stream: Some(true),
            ..wire::Ask::default()
        })
    }

    /// The deadline that the service gives the request, if its configuration is this one.
    fn deadline(&self, config: &Config) -> Duration {
        let task = self.task.as_ref().and_then(|task| config.catalog.tasks.get(task));
        let stated = self.deadline_ms.or(task.and_then(|task| task.deadline_ms));
        stated.map_or(config.catalog.deadline(self.class), Duration::from_millis)
    }

    /// Answers the request with models in this process.
    async fn ask_local(&self, ask: wire::Ask, config: &Config) -> anyhow::Result<Reply> {
        let id = ask.id.clone();
        let job = ask.check(&Client::known("cli"), &config.catalog)?;
        let format = job.format.clone();
        let core = Core::start(config, calm(), keep_of(config), None);
        if tokio::time::timeout(ENGINE_LOAD_MAX, core.dispatch.ready()).await.is_err() {
            bail!("no model was ready after {ENGINE_LOAD_MAX:?}");
        }
        let mut answer = strategy::submit(&core.dispatch, job).await?;
        let mut text = String::new();
        while let Some(chunk) = answer.next().await {
            if !self.json {
                write_piece(&chunk.text)?;
            }
            text.push_str(&chunk.text);
        }
        let end = answer.end().await;
        core.stop().await;
        Ok(answers::reply(id, &format, text, end))
    }

    async fn ask_service(&self, ask: wire::Ask, config: &Config) -> anyhow::Result<Reply> {
        let Some(mqtt) = &config.mqtt else {
            bail!("no broker is configured; use --local or set pilotlight.mqtt.url");
        };
        let app = format!("cli-{}", std::process::id());
        let topics = DeviceTopics::new(&mqtt.prefix, &config.device);
        let client_id = format!("pilotlight-{app}-{}", random::id()?);
        let options = connection_options(mqtt, client_id)?;
        let mut router = Router::default();
        let filters = vec![topics.reply(&app), topics.stream(&app), topics.status()];
        let mut inbox = router.subscribe(filters, MQTT_INBOX_MAX);
        let stop = CancellationToken::new();
        let (bus, driver) = mqtt::open(options, router, stop.clone());
        let work = async {
            broker::connected(&bus, mqtt).await?;
            let id = ask.id.clone();
            let request = Outgoing {
                topic: topics.request(&app),
                payload: serde_json::to_vec(&ask)?.into(),
                correlation: id.clone().map(Bytes::from),
                ..Outgoing::default()
            };
            let sent = bus.publish(request).map_err(|_| {
                anyhow::anyhow!("the request could not be published: the outbox is full")
            })?;
            let patience = self.deadline(config) + DEADLINE_GRACE;
            let refused = async {
                // an answered publish is waited for by `read`
                if !matches!(sent.await, Ok(Err(_))) {
                    std::future::pending::<()>().await;
                }
            };
            let read = async {
                tokio::select! {
                    reply = self.read(&mut inbox, &topics, &app) => reply,
                    () = refused => bail!("{}", bus.report().problems().join("; ")),
                }
            };
            tokio::time::timeout(patience, read).await.with_context(|| {
                format!(
                    "no answer in {patience:?}; is the service running as device {:?}?",
                    config.device
                )
            })?
        };
        let reply = tokio::select! {
            reply = work => reply,
            () = driver => bail!("the connection to the broker closed"),
        };
        stop.cancel();
        reply
    }

    async fn read(
        &self,
        inbox: &mut Subscription,
        topics: &DeviceTopics,
        app: &str,
    ) -> anyhow::Result<Reply> {
        let mut shown = Shown::default();
        while let Some(message) = inbox.recv().await {
            message.ack.ack();
            let payload = message.payload.unwrap_or_default();
            if message.topic == topics.reply(app) {
                let reply: Reply = serde_json::from_slice(&payload)
                    .context("invalid reply: not the expected JSON")?;
                if !self.json {
                    write_piece(&shown.rest(reply.text.as_deref().unwrap_or_default()))?;
                }
                return Ok(reply);
            }
            let value: Value = serde_json::from_slice(&payload).unwrap_or_default();
            if message.topic == topics.status() && value["state"] == "offline" {
                bail!("the service is offline; start it with: pilotlight serve");
            }
            if message.topic == topics.stream(app) && !self.json {
                write_piece(shown.add(&value))?;
            }
        }
        bail!("the connection to the broker closed")
    }
}

/// The printed part of an answer. Its pieces are published once, with `QoS` 0, on a topic of their
/// own: some may be lost, and MQTT keeps no order between two topics, so that the reply may arrive
/// first. The reply has the whole text.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    pieces: u64,
    /// A piece is missing; the pieces after it are printed with the reply.
    gap: bool,
}

impl Shown {
    /// The part of this piece that can be printed.
    fn add<'v>(&mut self, piece: &'v Value) -> &'v str {
        self.gap |= piece["n"] != self.pieces;
        self.pieces += 1;
        if self.gap {
            return "";
        }
        let text = piece["text"].as_str().unwrap_or_default();
        self.text.push_str(text);
        text
    }

    /// The part of the whole answer that is not printed yet.
    fn rest(&self, whole: &str) -> String {
        match whole.strip_prefix(&self.text) {
            Some(rest) => rest.to_owned(),
            None if whole.is_empty() => String::new(),
            None => format!("\n{whole}"),
        }
    }
}

/// Parses a word as requests have it.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(text)).map_err(|error| error.to_string())
}

/// Parses `NAME=VALUE`; a value that is not JSON is text.
fn input(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}

/// The answer in one line: model, tokens, seconds, route and reason; or why there is none.
fn summary(reply: &Reply) -> String {
    let mut parts = Vec::new();
    if let Some(error) = &reply.error {
        let field = error.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
        let wait =
            reply.retry_after_ms.map_or_else(String::new, |ms| format!("; try again in {ms} ms"));
        parts.push(format!("{}: {field}{}{wait}", error.code, error.message));
    }
    if let Some(source) = &reply.source {
        parts.push(format!("{} {}", source.server, source.model));
    }
    if let Some(usage) = &reply.usage {
        parts.push(format!("{} tokens", usage.completion_tokens));
    }
    if reply.finish == Some(Finish::Length) {
        parts.push("cut off by the maximum of tokens".to_owned());
    }
    if let Some(timing) = &reply.timing {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a request")]
        let seconds = timing.total_ms as f64 / 1e3;
        parts.push(format!("{seconds:.1} s"));
    }
    if let Some(decision) = &reply.decision {
        parts.push(decision.reason.name().to_owned());
    }
    parts.join(", ")
}

fn print_record(reply: &Reply) -> anyhow::Result<()> {
    let mut record = serde_json::json!({
        "status": reply.status,
        "finish": reply.finish,
        "source": reply.source,
        "decision": reply.decision,
        "usage": reply.usage,
        "timing": reply.timing,
    });
    if let Some(confidence) = reply.confidence {
        record["confidence"] = serde_json::json!(confidence);
        record["scores"] = serde_json::json!(reply.scores);
    }
    print_line!("decision record: {}", serde_json::to_string_pretty(&record)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_whole_answer_is_printed_whichever_pieces_are_lost() {
        let pieces = [
            json!({"n": 0, "text": "one "}),
            json!({"n": 1, "text": "two "}),
            json!({"n": 2, "text": "three"}),
            json!({"n": 3, "done": true, "count": 3}),
        ];
        // each set of pieces that may arrive, as the bits of a number
        for arrived in 0..1_u8 << pieces.len() {
            let mut shown = Shown::default();
            let mut printed = String::new();
            for (at, piece) in pieces.iter().enumerate() {
                if arrived & (1 << at) != 0 {
                    printed.push_str(shown.add(piece));
                }
            }
            printed.push_str(&shown.rest("one two three"));
            assert_eq!(printed, "one two three", "{arrived:b}");
        }
        let mut other = Shown::default();
        other.add(&json!({"n": 0, "text": "half an"}));
        assert_eq!(other.rest("whole"), "\nwhole", "another model answered after all");
    }
}
