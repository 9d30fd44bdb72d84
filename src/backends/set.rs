//! The backends of the catalog in force, and the change to those of another catalog.
//!
//! An entry that stays keeps its process and its connections. One that is new or changed starts while
//! the old set still serves; once it is up, the sets change places. A backend that is not in the new set
//! ends when its last attempt has ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::supervisor::supervise;
use crate::catalog::server::{Endpoint, EngineStart, ServerEntry};
use crate::limits::reload::BACKEND_WARM_MAX;
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::model::context::Locality;
use crate::model::health::Health;
use crate::model::link::{BackendHandle, BackendState};
use crate::store::tool_pins::ToolPins;

/// The digests of the files that an entry names, such as certificates: their content may change without
/// the entry.
pub type FileDigests = BTreeMap<String, String>;

/// The backends of one catalog, and those of earlier ones that still run attempts.
pub struct RunningBackends {
    /// Routes calls to services on the broker.
    router: Option<CallRouter>,
    pins: Arc<ToolPins>,
    engines: Arc<EngineStart>,
    stop: CancellationToken,
    present: Vec<RunningBackend>,
    supervisors: JoinSet<()>,
}

/// A backend with its supervisor.
struct RunningBackend {
    entry: Arc<ServerEntry>,
    files: FileDigests,
    link: watch::Receiver<BackendState>,
    /// A share of its life: see [`supervise`].
    wanted: watch::Sender<bool>,
    /// Cancelled when its supervisor has ended.
    ended: CancellationToken,
    /// It starts when another backend has ended.
    is_delayed: bool,
}

/// Another set that has started and is not in force yet, or one that was. Dropping it ends the backends
/// that no other set has.
pub struct NextBackends {
    backends: Vec<RunningBackend>,
    /// The places in it of those that the set in force has not.
    added: Vec<usize>,
}

impl RunningBackends {
    /// An empty set; its backends over MQTT need `router`. Their tools are those of `pins`.
    pub fn new(
        router: Option<CallRouter>,
        pins: Arc<ToolPins>,
        engines: EngineStart,
    ) -> RunningBackends {
        let engines = Arc::new(engines);
        let stop = CancellationToken::new();
        RunningBackends {
            router,
            pins,
            engines,
            stop,
            present: Vec::new(),
            supervisors: JoinSet::new(),
        }
    }

    /// Starts what these entries have and the present set has not. An engine that takes the place of
    /// another waits for its end if `memory` has no room for both: `memory` is what is available, in
    /// bytes, if that is known.
    pub fn prepare(
        &mut self,
        entries: &[ServerEntry],
        files: impl Fn(&ServerEntry) -> FileDigests,
        memory: Option<u64>,
    ) -> NextBackends {
        // the supervisors of backends that have ended
        while self.supervisors.try_join_next().is_some() {}
        let (mut backends, mut added) = (Vec::new(), Vec::new());
        for entry in entries {
            let files = files(entry);
            let before = self.present.iter().find(|known| known.entry.name == entry.name);
            if let Some(known) = before.filter(|known| known.serves(entry, &files)) {
                backends.push(known.under(entry));
                continue;
            }
            let excluding = self.present.iter().filter(|known| {
                known.has_topic_of(entry)
                    || (known.entry.name == entry.name && known.leaves_no_room_for(entry, memory))
            });
            let after: Vec<_> = excluding.map(|known| known.ended.clone()).collect();
            // an engine that was ended to free its memory stays so
            let is_wanted = before.is_none_or(|known| *known.wanted.borrow());
            let backend = self.start(entry, files, after);
            backend.wanted.send_replace(is_wanted);
            added.push(backends.len());
            backends.push(backend);
        }
        NextBackends { backends, added }
    }

    /// The handles of the set in force.
    pub fn handles(&self) -> Vec<BackendHandle> {
        self.present.iter().map(RunningBackend::handle).collect()
    }

    /// Takes another set in place of the present one, which is returned. The dispatcher must have adopted
    /// it.
    pub fn replace(&mut self, next: NextBackends) -> NextBackends {
        let backends = std::mem::replace(&mut self.present, next.backends);
        NextBackends { backends, added: Vec::new() }
    }

    /// Ends all backends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.supervisors.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the supervisor of a model failed");
            }
        }
    }

    fn start(
        &mut self,
        entry: &ServerEntry,
        files: FileDigests,
        after: Vec<CancellationToken>,
    ) -> RunningBackend {
        let (handle, supervised) =
            supervise(entry, self.router.clone(), &self.pins, &self.engines, &self.stop);
        let (ended, is_delayed) = (CancellationToken::new(), !after.is_empty());
        let (guard, stop) = (ended.clone().drop_guard(), self.stop.clone());
        let service = match (&entry.endpoint, &self.router) {
            (Endpoint::Mqtt { topic, service_key }, Some(router)) => {
                Some((router.clone(), topic.clone(), *service_key))
            }
            (Endpoint::Mqtt { .. }, None)
            | (Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Provider(_), _) => None,
        };
        self.supervisors.spawn(async move {
            let _ended: DropGuard = guard;
            for before in after {
                tokio::select! {
                    () = before.cancelled() => {}
                    () = stop.cancelled() => {}
                }
            }
            if let Some((router, topic, key)) = &service {
                router.add(topic, *key);
            }
            supervised.await;
            if let Some((router, topic, _)) = &service {
                router.remove(topic);
            }
        });
        let BackendHandle { link, wanted, .. } = handle;
        RunningBackend { entry: Arc::new(entry.clone()), files, link, wanted, ended, is_delayed }
    }
}

impl NextBackends {
    /// The handles for the dispatcher, in order of preference.
    pub fn handles(&self) -> Vec<BackendHandle> {
        self.backends.iter().map(RunningBackend::handle).collect()
    }

    /// The handles of those that the set in force has not.
    pub fn added(&self) -> Vec<BackendHandle> {
        self.added.iter().map(|at| self.backends[*at].handle()).collect()
    }

    /// Whether some start only when a backend of the set in force has ended.
    pub fn is_delayed(&self) -> bool {
        self.added.iter().any(|at| self.backends[*at].is_delayed)
    }

    /// Waits until each added backend is up or has failed, for [`BACKEND_WARM_MAX`] at most; not for those
    /// that start later.
    pub async fn started(&self) {
        let at_once = self.added.iter().map(|at| &self.backends[*at]).filter(|b| !b.is_delayed);
        if !all_decided(at_once.map(|backend| backend.link.clone())).await {
            tracing::warn!(
                "a changed model is not up yet; the configuration is adopted without it"
            );
        }
    }
}

/// Waits until each of these backends is up or has failed, for [`BACKEND_WARM_MAX`] at most; false after
/// that.
pub async fn all_decided(links: impl Iterator<Item = watch::Receiver<BackendState>>) -> bool {
    let all = links.map(|mut link| async move {
        let is_decided =
            |state: &BackendState| !matches!(state, BackendState::Down(Health::Starting));
        // an error: the supervisor has ended with the service
        let _ = link.wait_for(is_decided).await;
    });
    tokio::time::timeout(BACKEND_WARM_MAX, futures::future::join_all(all)).await.is_ok()
}

impl RunningBackend {
    /// Whether it can go on under this entry: its process and its connection are the same.
    fn serves(&self, entry: &ServerEntry, files: &FileDigests) -> bool {
        let before = self.entry.as_ref();
        before.locality == entry.locality
            && before.silence == entry.silence
            && before.idle_probe == entry.idle_probe
            && before.tools == entry.tools
            && is_same(&before.endpoint, &entry.endpoint)
            && self.files == *files
    }

    /// The same backend under another entry.
    fn under(&self, entry: &ServerEntry) -> RunningBackend {
        RunningBackend {
            entry: Arc::new(entry.clone()),
            files: self.files.clone(),
            link: self.link.clone(),
            wanted: self.wanted.clone(),
            ended: self.ended.clone(),
            is_delayed: self.is_delayed,
        }
    }

    /// Whether it calls the service of this entry, which has one caller of this device at a time.
    fn has_topic_of(&self, entry: &ServerEntry) -> bool {
        match (&self.entry.endpoint, &entry.endpoint) {
            (Endpoint::Mqtt { topic: one, .. }, Endpoint::Mqtt { topic: other, .. }) => {
                one == other
            }
            (_, _) => false,
        }
    }

    /// Whether the memory has no room for its engine and one of this entry.
    fn leaves_no_room_for(&self, entry: &ServerEntry, memory: Option<u64>) -> bool {
        let is_engine = |entry: &ServerEntry| {
            entry.locality == Locality::Device && matches!(entry.endpoint, Endpoint::Child { .. })
        };
        let taken = match &*self.link.borrow() {
            BackendState::Up(model) => model.context().runtime.memory_bytes,
            BackendState::Down(_) => 0,
        };
        // the other may be as large
        let is_short = memory.is_some_and(|available| available < taken);
        is_engine(&self.entry) && is_engine(entry) && is_short
    }

    fn handle(&self) -> BackendHandle {
        BackendHandle {
            server: self.entry.name.clone(),
            locality: self.entry.locality,
            skills: self.entry.skills.clone(),
            fallbacks: self.entry.fallbacks.clone(),
            price: self.entry.price,
            link: self.link.clone(),
            wanted: self.wanted.clone(),
        }
    }
}

/// Whether a process or a connection of the one endpoint is one of the other. Variables that a process
/// does not inherit make no difference: it has started.
fn is_same(one: &Endpoint, other: &Endpoint) -> bool {
    match (one, other) {
        (
            Endpoint::Child { command, args, env, hidden: _ },
            Endpoint::Child { command: c, args: a, env: e, hidden: _ },
        ) => (command, args, env) == (c, a, e),
        (_, _) => one == other,
    }
}
