//! A cloud that answers as a test tells it to, byte by byte, and writes down what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::read;
use pilotlight::catalog::server::Endpoint;
use pilotlight::model::generate::Generate;
use pilotlight::providers;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What it does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes and closes.
    Say(Vec<u8>),
    /// Sends these bytes and then nothing more.
    Hang(Vec<u8>),
    /// Sends what this makes of the request's body.
    Make(fn(&Value) -> Vec<u8>),
    /// Sends each of these parts after this pause.
    Slow(Duration, fn(&Value) -> Vec<Vec<u8>>),
    /// Sends this head, and then the same bytes without end.
    Flood(Vec<u8>, Vec<u8>),
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: String,
    pub body: Value,
}

/// A server on a port of its own.
#[derive(Clone)]
pub struct Cloud {
    pub url: String,
    acts: Arc<Mutex<VecDeque<Act>>>,
    /// The first comes again after the last.
    is_round: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Connections that were opened.
    opened: Arc<Mutex<usize>>,
}

impl Cloud {
    /// Does these in turn, again and again.
    pub async fn start_round(acts: impl IntoIterator<Item = Act>) -> Cloud {
        Cloud::open(acts, None, true).await
    }

    /// Does these, the last for ever.
    pub async fn start(acts: impl IntoIterator<Item = Act>) -> Cloud {
        Cloud::open(acts, None, false).await
    }

    /// The same behind TLS, with a certificate for `localhost`; also gives the certificate, as PEM.
    pub async fn start_encrypted(acts: impl IntoIterator<Item = Act>) -> (Cloud, String) {
        Cloud::start_named("localhost", acts).await
    }

    /// The same under another name.
    pub async fn start_named(name: &str, acts: impl IntoIterator<Item = Act>) -> (Cloud, String) {
        let (config, certificate) = proof_of(name);
        let tls = TlsAcceptor::from(Arc::new(config));
        (Cloud::open(acts, Some((name, tls)), false).await, certificate)
    }

    async fn open(
        acts: impl IntoIterator<Item = Act>,
        named: Option<(&str, TlsAcceptor)>,
        is_round: bool,
    ) -> Cloud {
        // a name may stand for any address of the machine
        let host = if named.is_some() { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let listener = TcpListener::bind(host).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (url, tls) = match named {
            Some((name, tls)) => (format!("https://{name}:{}/v1", address.port()), Some(tls)),
            None => (format!("http://{address}/v1"), None),
        };
        let cloud = Cloud {
            url,
            acts: Arc::new(Mutex::new(acts.into_iter().collect())),
            is_round,
            asked: Arc::default(),
            opened: Arc::default(),
        };
        let server = cloud.clone();
        tokio::spawn(async move {
            while let Ok((line, _)) = listener.accept().await {
                *server.opened.lock().unwrap() += 1;
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => server.serve(tls.accept(line).await.ok()?).await,
                        None => server.serve(line).await,
                    }
                });
            }
        });
        cloud
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn opened(&self) -> usize {
        *self.opened.lock().unwrap()
    }

    async fn serve(&self, mut line: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        let asked = read(&mut line).await?;
        let body = asked.body.clone();
        self.asked.lock().unwrap().push(asked);
        let act = {
            let mut acts = self.acts.lock().unwrap();
            if self.is_round {
                acts.rotate_left(1);
                acts.back()?.clone()
            } else if acts.len() > 1 {
                acts.pop_front()?
            } else {
                acts.front()?.clone()
            }
        };
        match act {
            Act::Say(bytes) => line.write_all(&bytes).await.ok()?,
            Act::Make(make) => line.write_all(&make(&body)).await.ok()?,
            Act::Slow(pause, make) => {
                for part in make(&body) {
                    tokio::time::sleep(pause).await;
                    line.write_all(&part).await.ok()?;
                }
            }
            Act::Hang(bytes) => {
                line.write_all(&bytes).await.ok()?;
                // until the other side closes
                let _ = line.read(&mut [0]).await;
            }
            Act::Flood(head, bytes) => {
                line.write_all(&head).await.ok()?;
                // until the other side closes
                while line.write_all(&bytes).await.is_ok() {}
            }
        }
        line.shutdown().await.ok()
    }
}

/// What a server of this name or address proves itself by, and the certificate as PEM.
pub fn proof_of(name: &str) -> (rustls::ServerConfig, String) {
    pilotlight::net::tls::install_provider();
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (config, made.cert.pem())
}

/// Reads one request.
pub async fn read(line: &mut (impl AsyncRead + Unpin)) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = line.read(&mut part).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |n| n.trim().parse().unwrap()) {
            let body = serde_json::from_str(body).unwrap_or(Value::Null);
            return Some(Asked { head: head.to_owned(), body });
        }
    }
}

/// The head of an answer.
pub fn head(status: &str, kind: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{more}connection: close\r\n\r\n")
}

pub fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// A piece of an answer.
pub fn piece(text: &str) -> String {
    event(&json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
}

/// The events that end an answer.
pub fn ending(reason: &str) -> String {
    let last = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
    let usage = json!({"choices": [], "usage": {
        "prompt_tokens": 1000, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 7}
    }});
    format!("{}{}data: [DONE]\n\n", event(&last), event(&usage))
}

/// A whole answer of these pieces.
pub fn answer(pieces: &[&str]) -> Act {
    Act::Say(stream(pieces))
}

/// The bytes of such an answer.
pub fn stream(pieces: &[&str]) -> Vec<u8> {
    let pieces: String = pieces.iter().map(|text| piece(text)).collect();
    format!("{}{pieces}{}", head("200 OK", "text/event-stream", ""), ending("stop")).into()
}

/// A refusal.
pub fn error(status: &str, more: &str, message: &str) -> Act {
    let body = json!({"error": {"message": message, "type": "t", "code": "c"}});
    Act::Say(format!("{}{body}", head(status, "application/json", more)).into())
}

/// The answer of an MCP server that has no resources, and says why.
pub fn no_model(message: &Value, why: &str) -> Vec<u8> {
    if message["id"].is_null() {
        return head("202 Accepted", "text/plain", "").into();
    }
    let said = match message["method"].as_str() {
        Some("initialize") => json!({"result": {
            "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"resources": {}},
            "serverInfo": {"name": "no model", "version": "1"},
        }}),
        Some("resources/list") => json!({"error": {"code": -32000, "message": why}}),
        _ => json!({"error": {"code": -32601, "message": "method not found"}}),
    };
    let mut said = said;
    said["jsonrpc"] = json!("2.0");
    said["id"] = message["id"].clone();
    format!("{}{said}", head("200 OK", "application/json", "")).into()
}

/// What must never be seen.
pub const KEY: &str = "sk-canary-7f3a9d51";

/// An entry of `pilotlight.providers`.
pub fn entry(url: &str) -> Value {
    json!({
        "kind": "openai", "base_url": url, "model": "big-1", "key": KEY,
        "context_tokens": 8000, "max_output_tokens": 400, "price": {"input": 2.0, "output": 10.0},
        "silence_ms": 400,
    })
}

/// The same for one that proves itself by this certificate, which lies in the folder.
pub fn trusting(url: &str, certificate: &str) -> (Value, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, certificate).unwrap();
    let mut entry = entry(url);
    entry["ca"] = json!(ca);
    (entry, folder)
}

/// The provider as the service opens it.
pub fn open(url: &str) -> Arc<dyn Generate> {
    open_as(&entry(url))
}

pub fn open_as(entry: &Value) -> Arc<dyn Generate> {
    let file = json!({"pilotlight": {"providers": {"big": entry}}}).to_string();
    let (catalog, mistakes) = read::read(&file, &Variables::new());
    assert_eq!(mistakes, []);
    let Endpoint::Provider(entry) = &catalog.servers[0].endpoint else {
        panic!("it is no provider")
    };
    providers::open(entry, catalog.servers[0].silence.unwrap()).unwrap()
}

/// A frame of AWS's event streams: an `event` or an `exception` of this name.
#[cfg(feature = "bedrock")]
pub fn frame(kind: &str, name: &str, payload: &Value) -> Vec<u8> {
    use aws_smithy_eventstream::frame::write_message_to;
    use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
    let text = |text: &str| HeaderValue::String(text.to_owned().into());
    let named = if kind == "event" { ":event-type" } else { ":exception-type" };
    let frame = Message::new(payload.to_string())
        .add_header(Header::new(":message-type", text(kind)))
        .add_header(Header::new(named, text(name)))
        .add_header(Header::new(":content-type", text("application/json")));
    let mut bytes = Vec::new();
    write_message_to(&frame, &mut bytes).unwrap();
    bytes
}

/// An answer of these frames.
#[cfg(feature = "bedrock")]
pub fn framed(frames: &[Vec<u8>]) -> Act {
    let mut bytes = head("200 OK", "application/vnd.amazon.eventstream", "").into_bytes();
    bytes.extend(frames.concat());
    Act::Say(bytes)
}
