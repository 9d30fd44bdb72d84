//! A broker that answers as a script says: real bytes on a real socket, and every packet is noted.
//!
//! It keeps the session of its one client as the standard says: a request without acknowledgement is
//! delivered again, with the DUP flag, when the client comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Connect, LastWill, Packet, Publish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::SOON;

/// What the broker does instead of what is usual.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes; `PP` stands for the packet identifier of the packet that is answered.
    Send(Vec<u8>),
    /// The same, and closes the connection.
    SendAndClose(Vec<u8>),
    Close,
    Nothing,
}

/// Which publishes a rule is about.
#[derive(Clone, Debug)]
pub enum Which {
    All,
    /// Topics with this text.
    Topic(&'static str),
    /// Packets of more bytes.
    Over(usize),
    Retained,
}

/// Whether a will is refused.
pub type IsRefused = fn(&LastWill) -> bool;

#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Code and properties of CONNACK.
    pub connack: (u8, Vec<u8>),
    /// Instead of CONNACK.
    pub connect: Option<Act>,
    /// CONNACK with this code for a CONNECT whose will is as the function says.
    pub will: Option<(u8, IsRefused)>,
    /// Code of SUBACK, for filters with this text.
    pub suback: Option<(u8, &'static str)>,
    /// Instead of SUBACK.
    pub subscribe: Option<Act>,
    /// When all is subscribed to.
    pub subscribed: Option<Act>,
    /// Instead of PUBACK.
    pub publish: Option<(Which, Act)>,
    /// Instead of PINGRESP.
    pub ping: Option<Act>,
}

#[derive(Clone, Debug)]
pub struct Published {
    pub at: Instant,
    pub topic: String,
    pub payload: Vec<u8>,
    pub size: usize,
    pub qos: QoS,
    pub retain: bool,
    /// The broker took it: it was answered as usual.
    pub is_taken: bool,
}

#[derive(Default, Debug)]
pub struct Seen {
    pub connects: Vec<(Instant, Connect, Option<LastWill>)>,
    pub publishes: Vec<Published>,
    pub filters: Vec<String>,
    pub pings: usize,
    /// Requests without acknowledgement, by packet identifier.
    pub open: BTreeMap<u16, Publish>,
    next: u16,
}

pub struct ScriptedBroker {
    pub port: u16,
    pub seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
    requests: broadcast::Sender<Publish>,
    _tasks: JoinSet<()>,
}

impl ScriptedBroker {
    pub async fn start(script: Script) -> ScriptedBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, changed) = (Arc::<Mutex<Seen>>::default(), Arc::new(Notify::new()));
        let (requests, _) = broadcast::channel(64);
        let mut tasks = JoinSet::new();
        let (all, told, to) = (Arc::clone(&seen), Arc::clone(&changed), requests.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let connection = Connection {
                    stream,
                    script: script.clone(),
                    seen: Arc::clone(&all),
                    changed: Arc::clone(&told),
                    sent: BTreeSet::new(),
                };
                connections.spawn(connection.run(to.subscribe()));
            }
        });
        ScriptedBroker { port, seen, changed, requests, _tasks: tasks }
    }

    /// Delivers a request to the client, now or when it has connected.
    pub fn request(&self, topic: &str, payload: &str) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload.as_bytes().to_vec(), None);
        let mut seen = self.seen.lock().unwrap();
        seen.next += 1;
        publish.pkid = seen.next;
        seen.open.insert(publish.pkid, publish.clone());
        drop(seen);
        let _ = self.requests.send(publish);
    }

    /// Waits until what was seen is as wanted.
    pub async fn until<T>(&self, what: &str, wanted: impl Fn(&Seen) -> Option<T>) -> T {
        match self.until_within(SOON, wanted).await {
            Some(found) => found,
            None => panic!("not {what}: {:?}", self.seen.lock().unwrap()),
        }
    }

    /// The same for so long; none if it does not come.
    pub async fn until_within<T>(
        &self,
        time: Duration,
        wanted: impl Fn(&Seen) -> Option<T>,
    ) -> Option<T> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = wanted(&self.seen.lock().unwrap()) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(time, wait).await.ok()
    }

    /// Waits for a publish that the broker has taken.
    pub async fn taken(&self, topic: &str, count: usize) -> Vec<Published> {
        self.until(&format!("{count} taken on {topic}"), |seen| {
            let all: Vec<Published> = seen.taken(topic);
            (all.len() >= count).then_some(all)
        })
        .await
    }
}

impl Seen {
    pub fn taken(&self, topic: &str) -> Vec<Published> {
        let all = self.publishes.iter().filter(|publish| publish.is_taken);
        all.filter(|publish| publish.topic.contains(topic)).cloned().collect()
    }
}

struct Connection {
    stream: TcpStream,
    script: Script,
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
    /// Requests that were delivered on this connection.
    sent: BTreeSet<u16>,
}

impl Connection {
    async fn run(mut self, mut requests: broadcast::Receiver<Publish>) {
        self.stream.set_nodelay(true).unwrap();
        let mut buffer = BytesMut::new();
        let mut is_up = false;
        loop {
            while let Some((packet, size)) = next(&mut buffer) {
                is_up |= matches!(packet, Packet::Subscribe(_));
                let goes_on = self.on(packet, size).await;
                self.changed.notify_waiters();
                if goes_on.is_none() {
                    return;
                }
            }
            tokio::select! {
                read = self.stream.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                Ok(request) = requests.recv(), if is_up => {
                    if self.deliver(request).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Delivers a request, once on each connection.
    async fn deliver(&mut self, request: Publish) -> Option<()> {
        if !self.sent.insert(request.pkid) {
            return Some(());
        }
        self.stream.write_all(&bytes_of(&request)).await.ok()
    }

    /// Answers a packet; none if the connection is closed.
    async fn on(&mut self, packet: Packet, size: usize) -> Option<()> {
        let script = self.script.clone();
        match packet {
            Packet::Connect(connect, will, _) => {
                let refused = script
                    .will
                    .filter(|(_, is)| will.as_ref().is_some_and(is))
                    .map(|(code, _)| code);
                let is_resumed = {
                    let mut seen = self.seen.lock().unwrap();
                    let is_first = seen.connects.is_empty();
                    let is_clean = connect.clean_start;
                    seen.connects.push((Instant::now(), connect, will));
                    !is_first && !is_clean
                };
                if let Some(act) = &script.connect {
                    return self.act(act, 0).await;
                }
                let (code, properties) = script.connack;
                let code = refused.unwrap_or(code);
                let is_resumed = is_resumed && code == 0;
                let length = u8::try_from(properties.len()).unwrap();
                let mut bytes = vec![0x20, 3 + length, u8::from(is_resumed), code, length];
                bytes.extend(properties);
                self.stream.write_all(&bytes).await.ok()?;
                (code == 0).then_some(())
            }
            Packet::Subscribe(subscribe) => {
                let filters: Vec<String> =
                    subscribe.filters.iter().map(|filter| filter.path.clone()).collect();
                let is_resumed = {
                    let mut seen = self.seen.lock().unwrap();
                    seen.filters.extend(filters.iter().cloned());
                    seen.connects.len() > 1
                };
                if let Some(act) = &script.subscribe {
                    return self.act(act, subscribe.pkid).await;
                }
                let code = |filter: &String| match script.suback {
                    Some((code, text)) if filter.contains(text) => code,
                    _ => 1,
                };
                let codes: Vec<u8> = filters.iter().map(code).collect();
                let [high, low] = subscribe.pkid.to_be_bytes();
                let length = 3 + u8::try_from(codes.len()).unwrap();
                let mut bytes = vec![0x90, length, high, low, 0];
                bytes.extend(codes);
                self.stream.write_all(&bytes).await.ok()?;
                if let Some(act) = &script.subscribed {
                    return self.act(act, subscribe.pkid).await;
                }
                // what was not acknowledged is delivered, again if it was before
                let open: Vec<Publish> = self.seen.lock().unwrap().open.values().cloned().collect();
                for publish in open {
                    self.deliver(Publish { dup: is_resumed, ..publish }).await?;
                }
                Some(())
            }
            Packet::Publish(publish) => self.published(publish, size, &script).await,
            Packet::PubAck(ack) => {
                self.seen.lock().unwrap().open.remove(&ack.pkid);
                Some(())
            }
            Packet::PubRel(release) => {
                let [high, low] = release.pkid.to_be_bytes();
                self.stream.write_all(&[0x70, 2, high, low]).await.ok()
            }
            Packet::PingReq => {
                self.seen.lock().unwrap().pings += 1;
                match &script.ping {
                    Some(act) => self.act(act, 0).await,
                    None => self.stream.write_all(&[0xD0, 0]).await.ok(),
                }
            }
            Packet::Disconnect(_) => None,
            // the answer to a PUBREL without cause
            Packet::PubComp(_) => Some(()),
            other @ (Packet::Auth(_)
            | Packet::ConnAck(_)
            | Packet::PingResp
            | Packet::SubAck(_)
            | Packet::PubRec(_)
            | Packet::Unsubscribe(_)
            | Packet::UnsubAck(_)) => panic!("the service sends no {other:?}"),
        }
    }

    async fn published(&mut self, publish: Publish, size: usize, script: &Script) -> Option<()> {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let act = script.publish.as_ref().filter(|(which, _)| match which {
            Which::All => true,
            Which::Topic(text) => topic.contains(text),
            Which::Over(most) => size > *most,
            Which::Retained => publish.retain,
        });
        let note = Published {
            at: Instant::now(),
            topic,
            payload: publish.payload.to_vec(),
            size,
            qos: publish.qos,
            retain: publish.retain,
            is_taken: act.is_none(),
        };
        self.seen.lock().unwrap().publishes.push(note);
        let [high, low] = publish.pkid.to_be_bytes();
        match act {
            Some((_, act)) => self.act(act, publish.pkid).await,
            None if publish.qos == QoS::AtMostOnce => Some(()),
            None => self.stream.write_all(&[0x40, 2, high, low]).await.ok(),
        }
    }

    async fn act(&mut self, act: &Act, packet: u16) -> Option<()> {
        let with_packet = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            if let Some(at) = bytes.windows(2).position(|two| two == b"PP") {
                bytes[at..at + 2].copy_from_slice(&packet.to_be_bytes());
            }
            bytes
        };
        match act {
            Act::Send(bytes) => self.stream.write_all(&with_packet(bytes)).await.ok(),
            Act::SendAndClose(bytes) => {
                self.stream.write_all(&with_packet(bytes)).await.ok()?;
                let _ = self.stream.shutdown().await;
                None
            }
            Act::Close => None,
            Act::Nothing => Some(()),
        }
    }
}

/// The next whole packet, and its size.
fn next(buffer: &mut BytesMut) -> Option<(Packet, usize)> {
    let before = buffer.len();
    let packet = Packet::read(buffer, None).ok()?;
    Some((packet, before - buffer.len()))
}

fn bytes_of(publish: &Publish) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    publish.write(&mut bytes).unwrap();
    bytes.to_vec()
}
