//! What a remote configuration names is connected to at public addresses alone, whatever its names stand
//! for; neighbours of the trust policy, and what the local file names too, are excepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pilotlight::backends::scripted::{Crash, Scripted};
use pilotlight::catalog::addresses::AddressRule;
use pilotlight::catalog::catalog::Catalog;
use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::read;
use pilotlight::catalog::server::Endpoint;
use pilotlight::fleet::places;
use pilotlight::fleet::trust::Trust;
use pilotlight::mcp::client::connect_http;
use pilotlight::model::generate::Fault;
use pilotlight::models::ModelFault;
use pilotlight::providers;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::cloud::{Cloud, answer, trusting};
use crate::support::contract::{job, run};
use crate::support::model_fixture::{Fixture, NAME, sha256};
use crate::support::model_server::{ModelServer, Sent};
use crate::support::{over_http_at, patience};

/// The catalog of a remote configuration on top of a local one, as the service reads it at each start.
fn remote(file: &Value, local: &Value, neighbours: &[&str]) -> Catalog {
    let variables = Variables::new();
    let (local, mistakes) = read::read(&local.to_string(), &variables);
    assert_eq!(mistakes, []);
    let neighbours = neighbours.iter().map(|origin| (*origin).to_owned()).collect();
    let trust = Trust { neighbours, ..Trust::default() };
    let (catalog, mistakes) = places::read(&file.to_string(), &variables, &local, &trust);
    assert_eq!(mistakes, []);
    catalog
}

/// A local file without this entry.
fn bare() -> Value {
    json!({"mcpServers": {"a": {"command": "x"}}})
}

/// What is said where no connection may be made.
fn is_told(why: &str, host: &str) {
    for part in [host, "not an address of the public internet", "neighbours of the trust policy"] {
        let other = part.replace("not an address", "not one");
        assert!(why.contains(part) || why.contains(&other), "{part}: {why}");
    }
}

/// A listener that counts connections, and its port.
async fn counting() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((line, _)) = listener.accept().await {
            counts.fetch_add(1, Ordering::SeqCst);
            drop(line);
        }
    });
    (port, count)
}

/// Hosts of this machine in spellings that a URL may have.
const HERE: [&str; 7] =
    ["localhost", "127.0.0.1", "0x7f.1", "2130706433", "0", "[::1]", "[::ffff:127.0.0.1]"];

async fn ask(catalog: &Catalog) -> Result<String, Fault> {
    let Endpoint::Provider(entry) = &catalog.servers[0].endpoint else { panic!("no provider") };
    let model = providers::open(entry, Duration::from_secs(20))?;
    run(model.as_ref(), &job("hello", 4)).await.map(|(text, _)| text)
}

#[tokio::test]
async fn a_provider_of_a_remote_configuration_is_not_local() {
    let (cloud, certificate) = Cloud::start_encrypted([answer(&["x"])]).await;
    let (entry, _folder) = trusting(&cloud.url, &certificate);
    let file = json!({"pilotlight": {"providers": {"big": entry}}});
    let fault = ask(&remote(&file, &bare(), &["https://localhost:1"])).await.unwrap_err();
    is_told(&fault.to_string(), "localhost has the address ");
    assert_eq!(cloud.opened(), 0, "a connection was made");
    // a neighbour, and what the local file names
    let origin = cloud.url.trim_end_matches("/v1");
    assert_eq!(ask(&remote(&file, &bare(), &[origin])).await.unwrap(), "x");
    assert_eq!(ask(&remote(&file, &file, &[])).await.unwrap(), "x");
    assert_eq!(cloud.opened(), 2);
    let (port, count) = counting().await;
    for host in HERE {
        let mut file = file.clone();
        file["pilotlight"]["providers"]["big"]["base_url"] =
            json!(format!("https://{host}:{port}/v1"));
        let fault = ask(&remote(&file, &bare(), &[])).await.unwrap_err();
        is_told(&fault.to_string(), "");
        assert_eq!(count.load(Ordering::SeqCst), 0, "{host}");
    }
}

#[tokio::test]
async fn an_mcp_server_of_a_remote_configuration_is_not_local() {
    let (url, _stop) = over_http_at(Arc::new(Scripted::new("near", 1, Crash::Report))).await;
    let (port, count) = counting().await;
    let reach = async |file: &Value, local: &Value, neighbours: &[&str]| {
        let catalog = remote(file, local, neighbours);
        let Endpoint::Http { url, headers, addresses } = &catalog.servers[0].endpoint else {
            panic!("no server")
        };
        connect_http(&url.0, &headers.0, addresses, patience()).await.map(|_| ())
    };
    for host in HERE {
        let file = json!({"mcpServers": {"a": {"url": format!("https://{host}:{port}/mcp")}}});
        let fault = reach(&file, &bare(), &[]).await.unwrap_err();
        is_told(&fault.to_string(), "");
        assert_eq!(count.load(Ordering::SeqCst), 0, "{host}");
    }
    let file = json!({"mcpServers": {"a": {"url": url}}});
    let fault = reach(&file, &bare(), &[]).await.unwrap_err();
    assert!(fault.to_string().contains("without TLS"), "{fault}");
    let origin = url.trim_end_matches("/mcp");
    reach(&file, &bare(), &[origin]).await.unwrap();
    reach(&file, &file, &[]).await.unwrap();
    // the same URL of an entry of another kind gives no rights
    let other = json!({"mcpServers": {"a": {"url": "https://localhost:1/mcp"}}});
    reach(&file, &other, &[]).await.unwrap_err();
}

#[tokio::test]
async fn a_model_of_a_remote_configuration_is_not_local() {
    let content = vec![7; 100];
    let source = content.clone();
    // the first host redirects to a place of the local network
    let (port, count) = counting().await;
    let server = ModelServer::start(move |request| {
        if request.path.starts_with("/away/") {
            let to = request.path.trim_start_matches("/away/");
            let to = format!("https://{to}:{port}/m");
            let head = format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            return Sent::All(head.into_bytes());
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", source.len());
        Sent::All([head.as_bytes(), &source].concat())
    })
    .await;
    let fixture = Fixture::new(&server);
    let ca = fixture.folder.path().join("ca.pem");
    let load = async |source: &str, is_local: bool, neighbours: &[&str]| {
        let model = json!({
            "source": source, "sha256": sha256(&content), "bytes": content.len(), "licence": "mit",
            "ca": ca,
        });
        let mut file = bare();
        file["pilotlight"] = json!({"models": {NAME: model}});
        let local = if is_local { file.clone() } else { bare() };
        let catalog = remote(&file, &local, neighbours);
        fixture.ensure(&catalog.models[0]).await.unwrap_err()
    };
    let url = format!("{}/{NAME}", server.url);
    let fault = load(&url, false, &["https://localhost:1"]).await;
    is_told(&fault.to_string(), "localhost has the address ");
    assert!(server.asked().is_empty() && fixture.retries().is_empty(), "{:?}", fixture.retries());
    // its bytes come, and are no model
    for (is_local, neighbours) in [(true, [""]), (false, [server.url.as_str()])] {
        let fault = load(&url, is_local, &neighbours).await;
        assert!(matches!(fault, ModelFault::Damaged { .. }), "{fault}");
    }
    for host in HERE {
        let fault = load(&format!("https://{host}:{port}/m"), false, &[]).await;
        is_told(&fault.to_string(), "");
        let away = format!("{}/away/{host}", server.url);
        let fault = load(&away, false, &[&server.url]).await;
        is_told(&fault.to_string(), "");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "a connection was made");
}

/// All entries of a remote configuration have the rule, and none of a local one.
#[test]
fn each_entry_has_its_rule() {
    let files = json!([{"path": "a.onnx", "sha256": "0a".repeat(32), "bytes": 1},
        {"path": "b.onnx", "sha256": "0a".repeat(32), "bytes": 1, "source": "https://b.example/b"}]);
    let file = json!({
        "mcpServers": {"s": {"url": "https://s.example/mcp"}},
        "pilotlight": {
            "providers": {"p": {"kind": "openai", "base_url": "https://p.example/v1/", "model": "m"}},
            "models": {"m": {"source": "https://a.example", "licence": "mit", "files": files}},
        },
    });
    let rules = |catalog: &Catalog| -> Vec<bool> {
        let of = |endpoint: &Endpoint| match endpoint {
            Endpoint::Http { addresses, .. } => addresses.clone(),
            Endpoint::Provider(provider) => provider.addresses.clone(),
            _ => panic!("{endpoint:?}"),
        };
        let servers = catalog.servers.iter().map(|server| of(&server.endpoint));
        let files = catalog.models.iter().flat_map(|model| &model.files);
        let all = servers.chain(files.map(|file| file.addresses.clone()));
        all.map(|rule| rule != AddressRule::Any).collect()
    };
    assert_eq!(rules(&remote(&file, &bare(), &[])), [true; 4]);
    assert_eq!(rules(&remote(&file, &file, &[])), [false; 4]);
    let mut other = file.clone();
    other["mcpServers"]["s"]["url"] = json!("https://s.example:8443/mcp");
    other["pilotlight"]["models"]["m"]["source"] = json!("https://c.example");
    assert_eq!(rules(&remote(&file, &other, &[])), [true, false, true, false]);
    // a server's URL is none of a provider
    let mut other = file.clone();
    other["mcpServers"]["s"]["url"] = json!("https://p.example/v1/");
    other["pilotlight"]["providers"]["p"]["base_url"] = json!("https://s.example/mcp");
    assert_eq!(rules(&remote(&file, &other, &[])), [true, true, false, false]);
}
