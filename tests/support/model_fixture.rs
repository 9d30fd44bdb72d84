//! A model store in a folder of its own, and entries of `pilotlight.models` for it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::model::ModelEntry;
use pilotlight::catalog::read;
use pilotlight::models::{DownloadPace, ModelEvent, ModelFault, ModelStore, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::SOON;
use super::model_server::ModelServer;

/// The name of the model in tests of one.
pub const NAME: &str = "m.gguf";

pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The models of a configuration.
pub fn models(models: &Value) -> Vec<ModelEntry> {
    let file = json!({"mcpServers": {"a": {"command": "x"}}, "pilotlight": {"models": models}});
    let (catalog, mistakes) = read::read(&file.to_string(), &Variables::new());
    assert!(mistakes.is_empty(), "{mistakes:?}");
    catalog.models
}

/// A store in a folder of its own.
pub struct Fixture {
    pub folder: tempfile::TempDir,
    pub store: ModelStore,
    ca: PathBuf,
    pub events: Mutex<Vec<ModelEvent>>,
}

impl Fixture {
    pub fn new(server: &ModelServer) -> Fixture {
        pilotlight::net::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, &server.certificate).unwrap();
        let store = ModelStore {
            folder: folder.path().join("models"),
            reserve_bytes: 0,
            cool_only: None,
            unmetered_only: None,
            pace: DownloadPace { stall: SOON, retry: Duration::from_millis(1) },
        };
        Fixture { folder, store, ca, events: Mutex::default() }
    }

    pub fn entry(&self, server: &ModelServer, content: &[u8]) -> ModelEntry {
        self.entry_of(server, &sha256(content), content.len() as u64)
    }

    pub fn entry_of(&self, server: &ModelServer, digest: &str, bytes: u64) -> ModelEntry {
        let source = format!("{}/{NAME}", server.url);
        let entry = json!({"source": source, "sha256": digest, "bytes": bytes, "licence": "mit", "ca": self.ca});
        models(&json!({NAME: entry})).remove(0)
    }

    pub async fn ensure(&self, entry: &ModelEntry) -> Result<PathBuf, ModelFault> {
        let told = |event: &ModelEvent| self.events.lock().unwrap().push(event.clone());
        let cancel = CancellationToken::new();
        let done = ensure(entry, &self.store, &told, &cancel);
        tokio::time::timeout(SOON, done).await.unwrap()
    }

    pub fn retries(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let why = |event: &ModelEvent| match event {
            ModelEvent::Retrying { why, .. } | ModelEvent::Restarted { why } => Some(why.clone()),
            ModelEvent::Waiting { .. } | ModelEvent::Received { .. } => None,
        };
        events.iter().filter_map(why).collect()
    }

    /// What is in the store, besides its own folders.
    pub fn files(&self) -> Vec<String> {
        names(&self.store.folder)
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}
