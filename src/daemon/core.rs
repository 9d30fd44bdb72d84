//! The models and the dispatcher: the part of the service that answers prompts.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pins_of;
use crate::backends::set::{FileDigests, NextBackends, RunningBackends};
use crate::catalog::catalog::Catalog;
use crate::catalog::server::ServerEntry;
use crate::config::{Config, source};
use crate::dispatch;
use crate::dispatch::{Dispatch, LearnedStore};
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::model::link::BackendHandle;
use crate::pressure::level::DevicePressure;

/// Tasks that stop together.
pub(super) struct TaskGroup {
    name: &'static str,
    pub(super) stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl TaskGroup {
    pub(super) fn new(name: &'static str) -> TaskGroup {
        TaskGroup { name, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    pub(super) fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, group = self.name, "a task failed");
            }
        }
        tracing::debug!(group = self.name, "stopped");
    }
}

/// The models and the dispatcher.
pub struct Core {
    /// Takes the jobs.
    pub dispatch: Dispatch,
    models: RunningBackends,
    scheduler: TaskGroup,
}

impl Core {
    /// Starts every model of the configuration; those over MQTT need `calls`.
    pub fn start(
        config: &Config,
        device_pressure: watch::Receiver<DevicePressure>,
        store: LearnedStore,
        calls: Option<&CallRouter>,
    ) -> Core {
        let catalog = Arc::new(config.catalog.clone());
        let engines = config.engines.clone();
        let mut models = RunningBackends::new(calls.cloned(), pins_of(config), engines);
        let first = models.prepare(&catalog.servers, digests_of, None);
        let backends = first.handles();
        models.replace(first);
        let (dispatch, dispatcher) = dispatch::new(catalog, backends, device_pressure, store);
        let mut scheduler = TaskGroup::new("scheduler");
        let stop = scheduler.stop.clone();
        scheduler.add(dispatcher.run(stop));
        Core { dispatch, models, scheduler }
    }

    /// The handles of the set in force.
    pub fn handles(&self) -> Vec<BackendHandle> {
        self.models.handles()
    }

    /// Starts what the present set has not.
    pub fn prepare(&mut self, catalog: &Catalog, memory: Option<u64>) -> NextBackends {
        self.models.prepare(&catalog.servers, digests_of, memory)
    }

    /// Puts a prepared set into force; returns the one before, which ends when it is dropped.
    pub async fn switch(&mut self, catalog: Arc<Catalog>, next: NextBackends) -> NextBackends {
        self.dispatch.adopt(catalog, next.handles()).await;
        self.models.replace(next)
    }

    /// Lets running jobs end, then stops the models.
    pub async fn stop(self) {
        self.scheduler.stop().await;
        self.models.stop().await;
    }
}

/// The digests of the files that an entry names.
fn digests_of(entry: &ServerEntry) -> FileDigests {
    let digest =
        |file: std::path::PathBuf| (file.display().to_string(), source::file_digest(&file));
    source::files_of(entry).into_iter().map(digest).collect()
}
