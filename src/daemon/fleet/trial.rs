//! The trial of one configuration: its models start beside those in force, answer a prompt and the golden
//! sets, and then the requests of applications. Until it is kept the set before stays ready.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{join_all, select_all};
use tokio::sync::watch;

use super::super::core::Core;
use super::super::reload::{Checked, Live};
use crate::backends::probe::probe;
use crate::backends::set::{NextBackends, all_decided};
use crate::catalog::catalog::Catalog;
use crate::catalog::golden::GoldenSet;
use crate::catalog::mistake::in_one_line;
use crate::config::source::RemoteConfig;
use crate::fleet::update::GoldenResult;
use crate::model::context::Locality;
use crate::model::health::Health;
use crate::model::link::{BackendHandle, BackendState};
use crate::trial::{GoldenScore, score};

/// A configuration on trial.
pub(super) struct Trial {
    pub(super) remote: RemoteConfig,
    catalog: Arc<Catalog>,
    sets: BTreeMap<String, GoldenSet>,
    /// The scores of the configuration before, if they had to be measured before it ended.
    before: Option<BTreeMap<String, GoldenScore>>,
    /// What is not in force yet; none once it is.
    waiting: Option<(Box<Checked>, NextBackends)>,
    /// The configuration before with its backends, once it is not in force any more.
    previous: Option<(Box<Checked>, NextBackends)>,
    /// The changed models.
    added: Vec<BackendHandle>,
}

impl Trial {
    /// Starts the changed models. If the memory has no room for both sets, the one before ends first.
    ///
    /// # Errors
    /// If the configuration can't be loaded, or a changed model of this device does not come up.
    pub(super) async fn start(
        remote: RemoteConfig,
        live: &mut Live,
        core: &mut Core,
    ) -> Result<Trial, String> {
        let checked =
            live.check_remote(Some(&remote)).map_err(|mistakes| in_one_line(&mistakes))?;
        let catalog = Arc::new(checked.config.catalog.clone());
        let next = core.prepare(&catalog, live.memory());
        let (added, is_delayed) = (next.added(), next.is_delayed());
        let sets = catalog.golden_sets().collect();
        let waiting = Some((Box::new(checked), next));
        let (before, previous) = (None, None);
        let mut trial = Trial { remote, catalog, sets, before, waiting, previous, added };
        if is_delayed {
            trial.before =
                Some(trial.score_of(core.dispatch.catalog(), core.handles(), live).await);
            trial.adopt(live, core).await;
        }
        all_decided(trial.added.iter().map(|backend| backend.link.clone())).await;
        match trial.failed() {
            None => Ok(trial),
            Some(why) => {
                trial.go_back(live, core).await;
                Err(why)
            }
        }
    }

    /// Why a changed model of this device is not up, if one is not.
    fn failed(&self) -> Option<String> {
        let own = self.added.iter().filter(|backend| backend.locality == Locality::Device);
        own.into_iter().find_map(|backend| match &*backend.link.borrow() {
            BackendState::Up(_) => None,
            BackendState::Down(
                Health::Unavailable { reason }
                | Health::Failed { reason }
                | Health::Quarantined { reason },
            ) => Some(format!("the changed model {} does not start: {reason}", backend.server)),
            BackendState::Down(Health::Starting | Health::Ready) => {
                Some(format!("the changed model {} did not start in time", backend.server))
            }
        })
    }

    /// Lets each changed model of this device answer a prompt. Remote ones cost money, and are known to
    /// answer by their handshake.
    pub(super) async fn probe(&self) -> Result<(), String> {
        let own = self.added.iter().filter(|backend| backend.locality == Locality::Device);
        let probes = own.map(|backend| async {
            probe(backend)
                .await
                .map_err(|why| format!("the changed model {} {why}", backend.server))
        });
        join_all(probes).await.into_iter().collect()
    }

    /// Lets the configuration before and the one on trial answer the golden sets of the latter.
    pub(super) async fn score(&mut self, live: &Live, core: &Core) -> Vec<GoldenResult> {
        if self.sets.is_empty() {
            return Vec::new();
        }
        let before = match self.before.take() {
            Some(before) => before,
            None => self.score_of(core.dispatch.catalog(), core.handles(), live).await,
        };
        let handles = match &self.waiting {
            Some((_, next)) => next.handles(),
            None => core.handles(),
        };
        let after = self.score_of(Arc::clone(&self.catalog), handles, live).await;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let result = |(task, score): (&String, &GoldenScore)| {
            let before = before.get(task).map_or(0, |score| count(score.right));
            let (cases, after) = (count(score.cases), count(score.right));
            let loss_percent = self.sets.get(task).map_or(0, |set| set.loss_percent);
            tracing::info!(task, cases, before, after, wrong = score.first_wrong, "golden set");
            GoldenResult { task: task.clone(), cases, before, after, loss_percent }
        };
        after.iter().map(result).collect()
    }

    async fn score_of(
        &self,
        catalog: Arc<Catalog>,
        backends: Vec<BackendHandle>,
        live: &Live,
    ) -> BTreeMap<String, GoldenScore> {
        score(&catalog, backends, &self.sets, live.device_pressure()).await
    }

    /// Puts the configuration into force; the set before stays ready.
    pub(super) async fn adopt(&mut self, live: &mut Live, core: &mut Core) {
        if let Some((checked, next)) = self.waiting.take() {
            self.previous = Some(live.put(*checked, next, core).await);
        }
    }

    /// Whether it answers the requests of applications.
    pub(super) fn is_adopted(&self) -> bool {
        self.waiting.is_none()
    }

    /// Puts the configuration before into force again.
    pub(super) async fn go_back(self, live: &mut Live, core: &mut Core) {
        if let Some((checked, previous)) = self.previous {
            live.put(*checked, previous, core).await;
        }
    }

    /// Whether this server is changed.
    pub(super) fn has(&self, server: &str) -> bool {
        self.added.iter().any(|backend| backend.server == server)
    }

    /// Waits until a changed model of this device is down; returns its name.
    pub(super) async fn a_model_is_down(&self) -> String {
        let own = self.added.iter().filter(|backend| backend.locality == Locality::Device);
        let down = |backend: &BackendHandle| {
            let (mut link, name): (watch::Receiver<_>, _) =
                (backend.link.clone(), backend.server.clone());
            Box::pin(async move {
                let is_down = |state: &BackendState| matches!(state, BackendState::Down(_));
                // an error: its supervisor has ended
                let _ = link.wait_for(is_down).await;
                name
            })
        };
        let all: Vec<_> = own.map(down).collect();
        if all.is_empty() {
            return std::future::pending().await;
        }
        select_all(all).await.0
    }
}
