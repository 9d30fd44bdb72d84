//! The models that an update uses: what is missing is downloaded in the background before the update is
//! stored.

use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::model_store;
use crate::catalog::model::ModelEntry;
use crate::config::Config;
use crate::device::identity::board_names;
use crate::models::{self, ModelEvent, ModelStore};

/// The downloads of one update, one after the other.
pub(super) struct Pull {
    work: JoinSet<Result<(), String>>,
    cancel: DropGuard,
}

impl Pull {
    /// Begins with the models that servers of this configuration use and that are for this board; none if
    /// there are none.
    pub(super) fn begin(config: &Config) -> Option<Pull> {
        let board = board_names(&config.sensors);
        let store = model_store(config)?;
        let is_used = |model: &&ModelEntry| {
            let path = store.path_of(&model.name);
            let mut servers = config.catalog.servers.iter();
            servers.any(|server| server.uses_model_at(&path)) && model.is_for(&board)
        };
        let models: Vec<ModelEntry> =
            config.catalog.models.iter().filter(is_used).cloned().collect();
        if models.is_empty() {
            return None;
        }
        let (mut work, cancel) = (JoinSet::new(), CancellationToken::new());
        work.spawn(all(models, store, cancel.clone()));
        Some(Pull { work, cancel: cancel.drop_guard() })
    }

    /// Waits until all are there, or one can't be loaded.
    pub(super) async fn ended(&mut self) -> Result<(), String> {
        match self.work.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(error.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Ends the downloads; what has arrived is kept for the next time.
    pub(super) async fn end(self) {
        let Pull { mut work, cancel } = self;
        drop(cancel);
        while work.join_next().await.is_some() {}
    }
}

async fn all(
    entries: Vec<ModelEntry>,
    store: ModelStore,
    cancel: CancellationToken,
) -> Result<(), String> {
    for entry in entries {
        let name = entry.name.clone();
        let told = |event: &ModelEvent| match event {
            ModelEvent::Retrying { why, wait } => {
                tracing::warn!(
                    model = name,
                    why,
                    wait_s = wait.as_secs(),
                    "a download is tried again"
                );
            }
            ModelEvent::Waiting { why } => tracing::info!(model = name, why, "a download waits"),
            ModelEvent::Restarted { why } => {
                tracing::info!(model = name, why, "a download starts anew");
            }
            ModelEvent::Received { .. } => {}
        };
        tracing::info!(model = name, bytes = entry.bytes(), "a model of the update is loaded");
        models::ensure(&entry, &store, &told, &cancel)
            .await
            .map_err(|fault| format!("the model {name}: {fault}"))?;
    }
    Ok(())
}
