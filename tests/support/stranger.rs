//! A client of the broker that is nobody: it hears everything, and sends what it can make of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use pilotlight::catalog::secret::Secret;
use pilotlight::mcp::over_mqtt::identity::WorkerIdentity;
use pilotlight::mcp::over_mqtt::keys::ServicePair;
use pilotlight::mqtt::PresenceMessages;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Publish, PublishProperties};
use rumqttc::{AsyncClient, PublishOptions};
use serde_json::json;
use tokio::task::JoinHandle;

use super::mqtt::App;

/// The property by which it knows its own messages.
const MINE: &str = "stranger";

/// What it has heard of others.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Publish>>>);

impl Heard {
    pub fn all(&self) -> Vec<Publish> {
        self.0.lock().unwrap().clone()
    }

    /// The topics of these messages.
    pub fn topics(&self) -> BTreeSet<String> {
        self.all().iter().map(topic).collect()
    }

    /// Whether a payload or property has this text.
    pub fn has(&self, text: &str) -> bool {
        self.all().iter().any(|publish| {
            let bytes = format!("{:?}", publish.properties).into_bytes();
            [bytes, publish.payload.to_vec()]
                .iter()
                .any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
        })
    }
}

pub fn topic(publish: &Publish) -> String {
    String::from_utf8(publish.topic.to_vec()).unwrap()
}

pub struct Stranger {
    pub heard: Heard,
    task: JoinHandle<()>,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stranger {
    /// Hears all messages of the service, takes its share of the calls, and answers everything with
    /// forged, repeated and changed messages.
    pub async fn attack(port: u16, base: &'static str, login: Option<(&str, &str)>) -> Stranger {
        let group = base.rsplit('/').next().unwrap();
        let share = format!("$share/{group}/{base}/call");
        let all = format!("{base}/#");
        let mut app = App::log_in(port, "stranger", &[&all, &share], login).await;
        let heard = Heard::default();
        let notes = heard.clone();
        let task = tokio::spawn(async move {
            let own = forged_presence(&format!("{base}/worker/w1"));
            while let Some(publish) = app.inbox.recv().await {
                let said = publish.properties.clone().unwrap_or_default();
                if said.user_properties.iter().any(|(name, _)| name == MINE) {
                    continue;
                }
                notes.0.lock().unwrap().push(publish.clone());
                for (topic, payload, properties, retain) in made_of(&publish, base, &own) {
                    send(&app.client, &topic, payload, properties, retain).await;
                }
            }
        });
        Stranger { heard, task }
    }

    /// Hears all messages of the service, and sends nothing.
    pub async fn listen(port: u16, base: &str) -> Stranger {
        let mut app = App::connect(port, "listener", &[&format!("{base}/#")]).await;
        let heard = Heard::default();
        let notes = heard.clone();
        let task = tokio::spawn(async move {
            while let Some(publish) = app.inbox.recv().await {
                notes.0.lock().unwrap().push(publish);
            }
        });
        Stranger { heard, task }
    }
}

/// Presence that is signed in the right form with a key of its own.
fn forged_presence(topic: &str) -> WorkerIdentity {
    let service = ServicePair::new(&Secret([66; 32])).unwrap();
    let name = topic.rsplit('/').next().unwrap().to_owned();
    WorkerIdentity::new(service, (topic.to_owned(), name), [].into(), u64::from(u32::MAX) << 16)
}

pub async fn send(
    client: &AsyncClient,
    topic: &str,
    payload: Vec<u8>,
    mut properties: PublishProperties,
    retain: bool,
) {
    properties.user_properties.push((MINE.to_owned(), "1".to_owned()));
    let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties).retain(retain);
    client.publish(topic, payload, options).await.unwrap();
}

type Sent = (String, Vec<u8>, PublishProperties, bool);

/// What can be made of a message without a key.
fn made_of(publish: &Publish, base: &str, own: &WorkerIdentity) -> Vec<Sent> {
    let (topic, payload) = (topic(publish), publish.payload.to_vec());
    let said = publish.properties.clone().unwrap_or_default();
    let mark = said.correlation_data.clone();
    let with = |number: u64, more: bool| {
        let mut told = vec![
            ("mcp-seq".to_owned(), number.to_string()),
            ("mcp-worker".to_owned(), "w1".to_owned()),
        ];
        told.extend(more.then(|| ("mcp-more".to_owned(), "1".to_owned())));
        let correlation_data = mark.clone();
        PublishProperties { correlation_data, user_properties: told, ..Default::default() }
    };
    let rest = topic.strip_prefix(base).unwrap_or_default();
    let mut sent: Vec<Sent> = Vec::new();
    if rest.starts_with("/call") {
        // the call again, also to others, for other answers and under other marks
        let other = |name: &str| format!("{base}/call{name}");
        for to in [topic.clone(), other(""), other("/w1"), other("/w2")] {
            sent.push((to, payload.clone(), said.clone(), false));
        }
        let elsewhere = Some(format!("{base}/answer/stranger"));
        let changed = PublishProperties { response_topic: elsewhere, ..said.clone() };
        sent.push((topic.clone(), payload.clone(), changed, false));
        let changed = PublishProperties { correlation_data: Some("x".into()), ..said.clone() };
        sent.push((topic.clone(), payload.clone(), changed, false));
        // its end
        let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
                               "params": {"requestId": 1}});
        for end in [cancelled.to_string().into_bytes(), Vec::new(), vec![0; 32]] {
            sent.push((format!("{base}/tell"), end, with(0, false), false));
        }
        // its answer, or an error of it
        let to = said.response_topic.clone().unwrap_or_default();
        sent.push((to.clone(), Vec::new(), with(0, false), false));
        for id in 0..6 {
            let text = json!({"jsonrpc": "2.0", "id": id, "result": {
                "content": [{"type": "text", "text": "forged"}],
                "structuredContent": {"text": "forged"}, "isError": false,
            }});
            sent.push((to.clone(), text.to_string().into(), with(1, false), false));
        }
        let error =
            json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32090, "message": "forged"}});
        sent.push((to.clone(), error.to_string().into(), with(1, false), false));
        // more than the caller takes of one message
        sent.push((to, vec![b'x'; 1024 * 1024 + 1], with(0, false), false));
    } else if rest.starts_with("/answer/") {
        let number = said.user_properties.iter().find(|(name, _)| name == "mcp-seq");
        let number: u64 = number.map_or(0, |(_, number)| number.parse().unwrap());
        // the message in another place, changed, cut off, twice
        for (place, more) in [(number + 1, false), (number + 1, true), (number, true), (999, false)]
        {
            sent.push((topic.clone(), payload.clone(), with(place, more), false));
        }
        let mut changed = payload.clone();
        changed.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        sent.push((topic.clone(), changed, with(number + 1, false), false));
        sent.push((
            topic.clone(),
            payload.into_iter().skip(1).collect(),
            with(number + 1, false),
            false,
        ));
        sent.push((topic, publish.payload.to_vec(), said, false));
    } else if rest.starts_with("/worker/") && !publish.retain {
        let plain = |state: &str| json!({"state": state}).to_string().into_bytes();
        let presence = PublishProperties::default;
        own.begin();
        for said in [own.online().to_vec(), own.offline().to_vec(), plain("offline")] {
            sent.push((format!("{base}/worker/w1"), said, presence(), true));
        }
        // one that is not there
        sent.push((format!("{base}/worker/evil"), plain("online"), presence(), true));
    }
    sent
}
