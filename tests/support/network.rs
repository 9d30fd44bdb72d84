//! A network of a test's own, where names are answered as it likes and addresses come and go.

use std::future::Future;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::net::UdpSocket;

use super::cloud::{ending, piece, proof_of};

/// Set for the run of a test that has its own network.
const INSIDE: &str = "TEST_IN_OWN_NETWORK";
/// The file that such a run writes when the test has ended well.
const DONE: &str = "TEST_IN_OWN_NETWORK_DONE";

/// Runs the test of this name, modules included, in namespaces of its own, as their root: nothing else is reached from
/// there, and nothing else is disturbed. Not tried where the system lends none.
pub fn in_own_network(name: &str, test: impl Future<Output = ()>) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
        std::fs::write(std::env::var_os(DONE).unwrap(), "").unwrap();
        return;
    }
    let apart = ["--user", "--map-root-user", "--net", "--mount", "--"];
    let lent = Command::new("unshare").args(apart).arg("true").status();
    if !lent.is_ok_and(|status| status.success()) {
        eprintln!("{name}: not tried, this system lends no namespaces");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // the system's resolver asks our name server, and nobody else
    std::fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    std::fs::write(folder.path().join("nsswitch.conf"), "hosts: files dns\n").unwrap();
    let done = folder.path().join("done");
    let begin = "ip link set lo up && for file in resolv.conf nsswitch.conf; do \
        if [ -e /etc/$file ]; then mount --bind \"$0/$file\" /etc/$file || exit; fi; done; exec \"$@\"";
    let status = Command::new("unshare")
        .args(apart)
        .args(["sh", "-c", begin])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .env(DONE, &done)
        .status();
    assert!(status.unwrap().success(), "{name} failed in its own network");
    assert!(done.exists(), "{name}: no test has this name");
}

/// How a name server answers.
#[derive(Debug, Clone, Copy)]
pub enum Naming {
    After(Duration),
    Never,
    /// `SERVFAIL`: it can't ask those who would know.
    Fails,
    /// At once, with this address.
    With(Ipv4Addr),
}

/// The one name server of a network; every name is 127.0.0.1, if it has not another address.
#[derive(Clone)]
pub struct NameServer {
    manner: Arc<Mutex<Naming>>,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    pub async fn start(manner: Naming) -> NameServer {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:53").await.unwrap());
        let server = NameServer {
            manner: Arc::new(Mutex::new(manner)),
            asked: Arc::new(AtomicUsize::new(0)),
        };
        let name_server = server.clone();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                name_server.asked.fetch_add(1, Ordering::Relaxed);
                let manner = *name_server.manner.lock().unwrap();
                let (wait, address) = match manner {
                    Naming::After(wait) => (wait, Some(Ipv4Addr::LOCALHOST)),
                    Naming::With(address) => (Duration::ZERO, Some(address)),
                    Naming::Fails => (Duration::ZERO, None),
                    Naming::Never => continue,
                };
                let (socket, reply) = (socket.clone(), reply(&query[..length], address));
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        });
        server
    }

    pub fn now(&self, manner: Naming) {
        *self.manner.lock().unwrap() = manner;
    }

    /// How many queries have come.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The reply to a query of one name. Source: RFC 1035, section 4.
fn reply(query: &[u8], address: Option<Ipv4Addr>) -> Vec<u8> {
    let name = 1 + query[12..].iter().position(|byte| *byte == 0).unwrap();
    let question = &query[12..12 + name + 4];
    let is_ipv4 = question[name..] == [0, 1, 0, 1];
    let fails = address.is_none();
    let address = address.filter(|_| is_ipv4);
    let answers = u8::from(address.is_some());
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, if fails { 0x82 } else { 0x80 }, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = address {
        // the name above, IPv4, for no time at all
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

/// Runs `ip` with these words.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {words}");
}

/// A provider on another machine, as far as the network can tell, that speaks HTTP/2 and answers at once.
pub struct Far {
    pub url: String,
    /// Its certificate, as PEM.
    pub certificate: String,
    opened: Arc<AtomicUsize>,
}

impl Far {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

    /// Starts it at the other end of a line `near`, which has no address yet.
    pub fn start() -> Far {
        ip("link add near type veth peer name far");
        let (config, certificate) = proof_of(&Far::ADDRESS.to_string());
        let opened = Arc::new(AtomicUsize::new(0));
        let counts = opened.clone();
        let (tell, told) = mpsc::channel();
        let (moved, is_moved) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            is_moved.recv().unwrap();
            ip(&format!("addr add {}/24 dev far", Far::ADDRESS));
            ip("link set far up");
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(Far::serve(config, counts, tell));
        });
        let thread = told.recv().unwrap();
        ip(&format!("link set far netns {thread}"));
        moved.send(()).unwrap();
        ip("link set near up");
        told.recv().unwrap();
        Far { url: format!("https://{}/v1", Far::ADDRESS), certificate, opened }
    }

    async fn serve(
        mut config: rustls::ServerConfig,
        opened: Arc<AtomicUsize>,
        ready: mpsc::Sender<nix::unistd::Pid>,
    ) {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind((Far::ADDRESS, 443)).await.unwrap();
        ready.send(nix::unistd::gettid()).unwrap();
        while let Ok((line, _)) = listener.accept().await {
            opened.fetch_add(1, Ordering::Relaxed);
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut line = h2::server::handshake(tls.accept(line).await.ok()?).await.ok()?;
                while let Some(Ok((_, mut respond))) = line.accept().await {
                    let head =
                        http::Response::builder().header("content-type", "text/event-stream");
                    let body = piece("from afar") + &ending("stop");
                    let mut body_to = respond.send_response(head.body(()).unwrap(), false).ok()?;
                    body_to.send_data(body.into(), true).ok()?;
                }
                Some(())
            });
        }
    }

    /// Connections that were opened.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}
