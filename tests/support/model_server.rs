//! A server of files that sends what a test tells it to, over HTTPS, and keeps the requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::cloud::proof_of;

/// One request that came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number, from zero.
    pub n: usize,
    pub path: String,
    pub head: String,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let begins = format!("{name}: ");
        self.head.lines().find_map(|line| {
            let is_it = line.to_ascii_lowercase().starts_with(&begins);
            is_it.then(|| &line[begins.len()..])
        })
    }

    /// The first byte that is asked for.
    pub fn first(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What the server sends.
pub enum Sent {
    /// These bytes, and the end of the connection.
    All(Vec<u8>),
    /// These bytes, and then nothing until the client closes.
    Hang(Vec<u8>),
    /// The first bytes; the others when the gate opens.
    Gate(Vec<u8>, Vec<u8>),
    /// The head, and then one byte after the other without end.
    Drip(Vec<u8>, Duration),
    /// The head, and then these bytes again and again.
    Flood(Vec<u8>, Vec<u8>),
}

type Handler = dyn Fn(&Request) -> Sent + Send + Sync;

pub struct ModelServer {
    pub url: String,
    /// Its certificate, as PEM.
    pub certificate: String,
    asked: Arc<Mutex<Vec<Request>>>,
    gate: watch::Sender<bool>,
}

impl ModelServer {
    pub async fn start(handler: impl Fn(&Request) -> Sent + Send + Sync + 'static) -> ModelServer {
        let (config, certificate) = proof_of("localhost");
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (gate, opened) = watch::channel(false);
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handler, known): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((line, _)) = listener.accept().await {
                let (tls, handler, known) = (tls.clone(), Arc::clone(&handler), Arc::clone(&known));
                let opened = opened.clone();
                tokio::spawn(async move {
                    let line = tls.accept(line).await.ok()?;
                    serve(line, &*handler, &known, opened).await
                });
            }
        });
        ModelServer { url, certificate, asked, gate }
    }

    /// A server of one content, which knows ranges.
    pub async fn of(content: Vec<u8>) -> ModelServer {
        ModelServer::start(move |request| Sent::All(reply(request, &content, "\"1\""))).await
    }

    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Lets all that waits at the gate pass.
    pub fn open_gate(&self) {
        self.gate.send_replace(true);
    }
}

async fn serve(
    mut line: impl AsyncRead + AsyncWrite + Unpin,
    handler: &Handler,
    known: &Mutex<Vec<Request>>,
    mut opened: watch::Receiver<bool>,
) -> Option<()> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(line.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).unwrap();
    let path = head.split(' ').nth(1)?.to_owned();
    let request = {
        let mut known = known.lock().unwrap();
        let request = Request { n: known.len(), path, head };
        known.push(request.clone());
        request
    };
    match handler(&request) {
        Sent::All(bytes) => line.write_all(&bytes).await.ok()?,
        Sent::Hang(bytes) => {
            line.write_all(&bytes).await.ok()?;
            line.flush().await.ok()?;
            let _ = line.read(&mut [0]).await;
        }
        Sent::Gate(first, others) => {
            line.write_all(&first).await.ok()?;
            line.flush().await.ok()?;
            opened.wait_for(|is_open| *is_open).await.ok()?;
            line.write_all(&others).await.ok()?;
        }
        Sent::Drip(head, pause) => {
            line.write_all(&head).await.ok()?;
            while line.write_all(b"x").await.is_ok() && line.flush().await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        }
        Sent::Flood(head, bytes) => {
            line.write_all(&head).await.ok()?;
            while line.write_all(&bytes).await.is_ok() {}
        }
    }
    line.shutdown().await.ok()
}

/// The reply of a server that knows ranges and versions (RFC 9110, sections 13 and 14).
pub fn reply(request: &Request, content: &[u8], version: &str) -> Vec<u8> {
    let is_same = request.header("if-range").is_none_or(|known| known == version);
    let all = content.len();
    match request.first().filter(|_| is_same) {
        Some(first) if first >= all => {
            status("416 Range Not Satisfiable", &format!("content-range: bytes */{all}\r\n"))
        }
        Some(first) => {
            let more = format!(
                "etag: {version}\r\ncontent-range: bytes {first}-{}/{all}\r\ncontent-length: {}\r\n",
                all - 1,
                all - first
            );
            [status("206 Partial Content", &more), content[first..].to_vec()].concat()
        }
        None => [whole(content, version), content.to_vec()].concat(),
    }
}

/// The head of a reply with the whole content.
pub fn whole(content: &[u8], version: &str) -> Vec<u8> {
    status("200 OK", &format!("etag: {version}\r\ncontent-length: {}\r\n", content.len()))
}

/// The head of a reply.
pub fn status(status: &str, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{more}connection: close\r\n\r\n").into_bytes()
}

/// A GGUF file of this length, with a right head and other bytes for each seed.
pub fn gguf(bytes: usize, seed: u8) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0; 16]);
    let mut next = u32::from(seed).wrapping_mul(747_796_405).wrapping_add(1);
    while file.len() < bytes {
        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        file.extend(next.to_be_bytes());
    }
    file.truncate(bytes);
    file
}
