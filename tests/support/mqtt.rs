//! An IoT application: a client of its own that asks on topics and reads what comes.

use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::{AsyncClient, Event, MqttOptions, PublishOptions};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::SOON;
use super::service::LOGIN;

/// Time without an acknowledgement after which a subscription is sent again.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(10);

pub struct App {
    pub client: AsyncClient,
    pub inbox: mpsc::Receiver<Publish>,
    pump: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl App {
    /// Connects and listens to these topics.
    pub async fn connect(port: u16, name: &str, filters: &[&str]) -> App {
        let [(_, user), (_, password)] = LOGIN;
        App::log_in(port, name, filters, Some((user, password))).await
    }

    /// The same with this login, or with none.
    pub async fn log_in(
        port: u16,
        name: &str,
        filters: &[&str],
        login: Option<(&str, &str)>,
    ) -> App {
        let mut options = MqttOptions::new(name, ("127.0.0.1", port));
        if let Some((user, password)) = login {
            options.set_credentials(user, password.to_owned());
        }
        options.set_max_packet_size(Some(32 * 1024 * 1024));
        options.set_outgoing_inflight_upper_limit(64);
        // without it a request waits 40 ms for the acknowledgement of the one before
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, mut events) = AsyncClient::builder(options).capacity(64).build();
        let (to, inbox) = mpsc::channel(4096);
        let (ready, mut is_ready) = mpsc::channel(1);
        let pump = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        if to.send(publish).await.is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        let _ = ready.send(()).await;
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        for filter in filters {
            // a subscription is lost with the connection on which it was sent
            let subscribed = async {
                loop {
                    client.subscribe(*filter, QoS::AtLeastOnce).await.unwrap();
                    if tokio::time::timeout(RESUBSCRIBE_AFTER, is_ready.recv()).await.is_ok() {
                        return;
                    }
                }
            };
            tokio::time::timeout(SOON, subscribed).await.unwrap();
        }
        App { client, inbox, pump }
    }

    /// An application of the device `dev` that reads its replies and pieces.
    pub async fn of(port: u16, app: &str) -> App {
        let topics =
            [format!("pilotlight/dev/reply/{app}/#"), format!("pilotlight/dev/stream/{app}")];
        App::connect(port, &format!("test-{app}"), &[&topics[0], &topics[1]]).await
    }

    pub async fn send(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        properties: PublishProperties,
    ) {
        let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
        self.client.publish(topic, payload.into(), options).await.unwrap();
    }

    pub async fn next(&mut self) -> Publish {
        tokio::time::timeout(SOON, self.inbox.recv()).await.expect("nothing came").unwrap()
    }

    /// The next reply as JSON; pieces are passed over.
    pub async fn reply(&mut self) -> Value {
        loop {
            let publish = self.next().await;
            if publish.topic.as_ref().windows(7).any(|w| w == b"/reply/") {
                return serde_json::from_slice(&publish.payload).unwrap();
            }
        }
    }

    /// Asks as `app` and waits for the reply.
    pub async fn ask(&mut self, app: &str, payload: impl Into<Vec<u8>>) -> Value {
        let topic = format!("pilotlight/dev/request/{app}");
        self.send(&topic, payload, PublishProperties::default()).await;
        self.reply().await
    }

    /// Nothing comes for a while.
    pub async fn stays_silent(&mut self) {
        let silence = Duration::from_millis(300);
        let came = tokio::time::timeout(silence, self.inbox.recv()).await;
        assert!(came.is_err(), "{came:?}");
    }
}

/// A real mosquitto on a port of its own.
pub struct Mosquitto {
    pub child: tokio::process::Child,
    pub port: u16,
    pub folder: tempfile::TempDir,
}

impl Mosquitto {
    pub async fn start() -> Mosquitto {
        let port = super::service::free_port();
        // no other user is known in a network of a test's own
        let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n");
        Mosquitto::with(port, &config).await
    }

    pub async fn with(port: u16, config: &str) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mosquitto.conf");
        let common = "set_tcp_nodelay true\nlog_type error\n";
        std::fs::write(&path, format!("{config}{common}")).unwrap();
        let child = tokio::process::Command::new("mosquitto")
            .arg("-c")
            .arg(&path)
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()))
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto is needed: apt-get install mosquitto");
        let end = tokio::time::Instant::now() + SOON;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(tokio::time::Instant::now() < end, "mosquitto does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Mosquitto { child, port, folder }
    }
}

/// A way to a broker that can be shut.
pub struct Gate {
    pub port: u16,
    open: tokio::sync::watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Gate {
    /// An open way to this port.
    pub async fn to(target: u16) -> Gate {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, is_open) = tokio::sync::watch::channel(true);
        let task = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut shut = is_open.clone();
                tokio::spawn(async move {
                    if !*shut.borrow() {
                        return;
                    }
                    let place = ("127.0.0.1", target);
                    let Ok(mut far) = tokio::net::TcpStream::connect(place).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = shut.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Gate { port, open, task }
    }

    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}
