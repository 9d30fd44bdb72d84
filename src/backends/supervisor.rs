//! The supervisor of one model server: starts or reaches it, watches it, and restarts it after a delay.

use std::process::ExitStatus;
use std::sync::Arc;

use futures::FutureExt;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::process::{ServerProcess, is_this_program, spawn, start_unit};
use super::watched::{WatchedRemote, trouble_of, until_silent};
use crate::catalog::server::{Endpoint as Entry, EngineStart, ServerEntry};
use crate::clock::now;
use crate::limits::liveness::STARTS_FAILED;
use crate::limits::{CHILD_EXIT_MAX, ENGINE_LOAD_MAX, LINE_BYTES_MAX, REST_MAX, REST_MIN};
use crate::mcp::client::{
    Closed, LineEnd, Patience, Remote, connect_engine, connect_http, connect_stateless,
    connect_watched,
};
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::mcp::tools::{Staleness, ToolFault, ToolList, ToolPolicy};
use crate::model::generate::{Fault, Generate};
use crate::model::health::Health;
use crate::model::link::{BackendHandle, BackendState};
use crate::providers;
use crate::store::tool_pins::ToolPins;

/// Creates the backend of a catalog entry, and the future that supervises it until `stop`, or until the
/// handle and all clones of its `wanted` are dropped. Engines start as `engines` states. `router` routes calls to services on the broker, if
/// there is a connection to one.
pub fn supervise(
    server: &ServerEntry,
    router: Option<CallRouter>,
    pins: &Arc<ToolPins>,
    engines: &Arc<EngineStart>,
    stop: &CancellationToken,
) -> (BackendHandle, impl Future<Output = ()> + Send + use<>) {
    let (link, state) = watch::channel(BackendState::Down(Health::Starting));
    let (wanted, is_wanted) = watch::channel(true);
    let backend = BackendHandle {
        server: server.name.clone(),
        locality: server.locality,
        skills: server.skills.clone(),
        fallbacks: server.fallbacks.clone(),
        price: server.price,
        link: state,
        wanted,
    };
    let released = released(is_wanted.clone());
    let tools = tool_policy(server, pins);
    let (server, engines) = (server.clone(), Arc::clone(engines));
    let supervisor = Supervisor { server, router, tools, engines, link, wanted: is_wanted };
    let stop = stop.child_token();
    let run = async move {
        let supervised = supervisor.run(stop.clone());
        tokio::pin!(supervised);
        tokio::select! {
            () = &mut supervised => return,
            () = released => stop.cancel(),
        }
        supervised.await;
    };
    (backend, run)
}

/// Ends when nobody can want the server up any more: no configuration has it, and no attempt runs.
async fn released(mut wanted: watch::Receiver<bool>) {
    // never true: it ends when all senders are gone
    let _ = wanted.wait_for(|_| false).await;
}

/// How the tools of a server are checked; none if it has no tools, or is an engine of this program without
/// a stated digest: its program is the one that runs.
fn tool_policy(server: &ServerEntry, pins: &Arc<ToolPins>) -> Option<ToolPolicy> {
    let place = match &server.endpoint {
        Entry::Provider(_) => return None,
        Entry::Child { .. } if server.is_own_engine() && server.tools.is_empty() => return None,
        Entry::Child { command, .. } => format!("command:{command}"),
        Entry::Http { url, .. } => {
            let url = url::Url::parse(&url.0);
            url.map_or_else(|_| "url".to_owned(), |url| url.origin().ascii_serialization())
        }
        Entry::Mqtt { topic, .. } => format!("mqtt:{topic}"),
    };
    let (server, stated) = (server.name.clone(), server.tools.clone());
    Some(ToolPolicy { server, place, stated, pins: Arc::clone(pins) })
}

/// How an attempt to have the server up has ended.
enum Ended {
    /// The server is tried again after a pause.
    Unavailable(String),
    /// A tool has changed.
    Quarantined(String),
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Ended {
        Ended::Unavailable(fault.to_string())
    }
}

impl From<ToolFault> for Ended {
    fn from(fault: ToolFault) -> Ended {
        match fault {
            ToolFault::Unreadable(fault) => fault.into(),
            ToolFault::Quarantined(reason) => Ended::Quarantined(reason),
        }
    }
}

struct Supervisor {
    server: ServerEntry,
    /// Routes calls to services on the broker.
    router: Option<CallRouter>,
    /// How its tools are checked.
    tools: Option<ToolPolicy>,
    /// How engines are started.
    engines: Arc<EngineStart>,
    link: watch::Sender<BackendState>,
    /// Whether the server should be up.
    wanted: watch::Receiver<bool>,
}

/// A server with a connection.
enum Reached {
    /// A provider, called by this process over HTTP: there is no connection that could close.
    Provider(Arc<dyn Generate>),
    /// An MCP server.
    Mcp(Box<RemoteServer>),
}

struct RemoteServer {
    remote: Remote,
    closed: Closed,
    /// The server's process, if this service started it or had it started.
    child: Option<ServerProcess>,
}

impl Reached {
    fn mcp((remote, closed): (Remote, Closed), child: Option<ServerProcess>) -> Reached {
        Reached::Mcp(Box::new(RemoteServer { remote, closed, child }))
    }
}

impl Supervisor {
    async fn run(self, stop: CancellationToken) {
        let mut delay = REST_MIN;
        // starts in a row that came to nothing
        let mut failures = 0_u32;
        // ends with the service
        while !stop.is_cancelled() {
            if !self.is_wanted(&stop).await || !self.is_there(&stop).await {
                return;
            }
            self.link.send_if_modified(|state| {
                let has_failed = matches!(state, BackendState::Down(Health::Failed { .. }));
                if has_failed {
                    *state = BackendState::Down(Health::Starting);
                }
                has_failed
            });
            let started = now();
            let ended = self.run_once(&stop).await;
            if stop.is_cancelled() {
                return;
            }
            let was_up = matches!(&*self.link.borrow(), BackendState::Up(_));
            if started.elapsed() > REST_MAX || (was_up && self.worker_router().is_some()) {
                delay = REST_MIN;
            }
            failures = if was_up { 0 } else { failures.saturating_add(1) };
            let server = &self.server.name;
            if !*self.wanted.borrow() {
                failures = 0;
                tracing::info!(server, "model unloaded to free memory");
                continue;
            }
            let health = match ended {
                Ended::Unavailable(reason) => {
                    tracing::warn!(
                        server,
                        reason,
                        rest_ms = delay.as_millis(),
                        "model server unavailable; restart after a pause"
                    );
                    self.health_of(reason, failures)
                }
                Ended::Quarantined(reason) => Health::Quarantined { reason },
            };
            let is_told = self.link.borrow().health() == health;
            if let (Health::Quarantined { reason }, false) = (&health, is_told) {
                tracing::error!(server, reason, "model server quarantined: it is not called");
            }
            self.link.send_replace(BackendState::Down(health));
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.cancelled() => return,
            }
            delay = (delay * 2).min(REST_MAX);
        }
    }

    /// The state after so many starts in a row that came to nothing. An engine that has failed several times will
    /// hardly start in the time of a request; a remote server may be reached again at any time.
    fn health_of(&self, reason: String, failures: u32) -> Health {
        if self.server.is_own_engine() && failures >= STARTS_FAILED {
            Health::Failed { reason }
        } else {
            Health::Unavailable { reason }
        }
    }

    /// Waits until the server should be up; false if `stop` came first.
    async fn is_wanted(&self, stop: &CancellationToken) -> bool {
        let mut wanted = self.wanted.clone();
        if !*wanted.borrow() {
            let reason = "unloaded: low memory".to_owned();
            self.link.send_replace(BackendState::Down(Health::Unavailable { reason }));
        }
        tokio::select! {
            came = wanted.wait_for(|wanted| *wanted) => came.is_ok(),
            () = stop.cancelled() => false,
        }
    }

    /// The router that tells when a worker of this server is there, so that connecting need not be tried.
    fn worker_router(&self) -> Option<(&CallRouter, &str)> {
        match &self.server.endpoint {
            Entry::Mqtt { topic, .. } => {
                self.router.as_ref().map(|router| (router, topic.as_str()))
            }
            Entry::Child { .. } | Entry::Http { .. } | Entry::Provider(_) => None,
        }
    }

    /// Waits until a worker is there, if that can be known; false if `stop` came first.
    async fn is_there(&self, stop: &CancellationToken) -> bool {
        let Some((router, topic)) = self.worker_router() else { return true };
        // the connection attempt reports what is wrong
        if router.ready(topic).now_or_never().is_some() {
            return true;
        }
        let mut ignored = router.ignored(topic);
        // bounded: a turn is a change of the reason
        loop {
            let reason = ignored.borrow_and_update().clone();
            let reason = reason.map_or_else(
                || "broker not reachable, or no worker online".to_owned(),
                |why| format!("no worker online that can be trusted: {why}"),
            );
            self.link.send_replace(BackendState::Down(Health::Unavailable { reason }));
            tokio::select! {
                _ = router.ready(topic) => return true,
                Ok(()) = ignored.changed() => {}
                () = stop.cancelled() => return false,
            }
        }
    }

    /// Ends when the server should be down.
    async fn unwanted(&self) {
        let mut wanted = self.wanted.clone();
        if wanted.wait_for(|wanted| !*wanted).await.is_err() {
            // the dispatcher has ended; `stop` follows
            std::future::pending::<()>().await;
        }
    }

    /// Starts or reaches the server and waits until it ends; returns the reason.
    async fn run_once(&self, stop: &CancellationToken) -> Ended {
        let opened = tokio::select! {
            opened = tokio::time::timeout(ENGINE_LOAD_MAX, self.open_checked()) => opened,
            () = stop.cancelled() => return Ended::Unavailable("stopped".to_owned()),
        };
        match opened {
            Ok(Ok(reached)) => self.serve(reached, stop).await,
            Ok(Err(ended)) => ended,
            Err(_) => Ended::Unavailable(format!("no ModelContext within {ENGINE_LOAD_MAX:?}")),
        }
    }

    /// Starts or reaches the server, and checks its tools.
    async fn open_checked(&self) -> Result<Reached, Ended> {
        let reached = self.open_connection().await?;
        if let (Reached::Mcp(there), Some(policy)) = (&reached, &self.tools) {
            there.remote.tools().check(policy).await?;
        }
        Ok(reached)
    }

    /// Checks the tools again when they may have changed; ends when they may not be called.
    async fn tools_changed(&self, tools: Option<ToolList>) -> Ended {
        let (Some(tools), Some(policy)) = (tools, &self.tools) else {
            return std::future::pending().await;
        };
        // bounded by the rest between two checks
        loop {
            let why = tools.stale().await;
            match (tools.check(policy).await, why) {
                // the connection may be better by the next check; calls tell if it is not
                (Ok(()), _) | (Err(ToolFault::Unreadable(_)), Staleness::Old) => {}
                (Err(fault), _) => return fault.into(),
            }
        }
    }

    /// Waits until a server with a connection ends; returns the reason.
    async fn serve(&self, reached: Reached, stop: &CancellationToken) -> Ended {
        let tools = match &reached {
            Reached::Provider(_) => None,
            Reached::Mcp(there) => Some(there.remote.tools().clone()),
        };
        tokio::select! {
            reason = self.serve_until_end(reached, stop) => Ended::Unavailable(reason),
            ended = self.tools_changed(tools) => ended,
        }
    }

    async fn serve_until_end(&self, reached: Reached, stop: &CancellationToken) -> String {
        let (trouble, mut troubled) = watch::channel(None);
        let mut probed = None;
        let (up, line): (Arc<dyn Generate>, _) = match reached {
            Reached::Provider(model) => (model, None),
            // one failed request does not show that the connection to many workers is down
            Reached::Mcp(there) => {
                let RemoteServer { remote, closed, child } = *there;
                let model: Arc<dyn Generate> = match self.server.endpoint {
                    Entry::Mqtt { .. } => Arc::new(remote),
                    Entry::Child { .. } | Entry::Http { .. } | Entry::Provider(_) => {
                        let watched = Arc::new(WatchedRemote::new(remote, trouble));
                        probed = self.server.idle_probe.map(|after| (watched.clone(), after));
                        watched
                    }
                };
                (model, Some((closed, child)))
            }
        };
        let context = up.context();
        tracing::info!(
            server = self.server.name,
            model = context.identification.name,
            load_ms = context.runtime.load_ms,
            "a model is ready"
        );
        self.link.send_replace(BackendState::Up(up));
        let Some((closed, child)) = line else {
            return tokio::select! {
                () = self.unwanted() => "unloaded".to_owned(),
                () = stop.cancelled() => "stopped".to_owned(),
            };
        };
        let Some(mut child) = child else {
            return tokio::select! {
                () = closed.wait() => "the connection was closed".to_owned(),
                why = trouble_of(&mut troubled) => why.to_owned(),
                () = self.unwanted() => "unloaded".to_owned(),
                () = stop.cancelled() => "stopped".to_owned(),
            };
        };
        tokio::select! {
            status = child.ended() => how_it_ended(status),
            how = closed.wait_or_hung() => match how {
                LineEnd::Hung => end(&mut child, "no reaction to a cancelled request").await,
                LineEnd::Closed => {
                    match tokio::time::timeout(CHILD_EXIT_MAX, child.wait()).await {
                        Ok(status) => how_it_ended(status),
                        Err(_) => end(&mut child, "the process closed its output").await,
                    }
                }
            },
            why = trouble_of(&mut troubled) => end(&mut child, why).await,
            why = until_silent(probed) => end(&mut child, &why).await,
            () = self.unwanted() => self.let_end(&mut child, ("unloading", "unloaded")).await,
            () = stop.cancelled() => self.let_end(&mut child, ("stopping", "stopped")).await,
        }
    }

    /// Closes the child's input, which asks it to end by itself, and ends it if it does not.
    async fn let_end(&self, child: &mut ServerProcess, (reason, ended): (&str, &str)) -> String {
        self.link
            .send_replace(BackendState::Down(Health::Unavailable { reason: reason.to_owned() }));
        let _ = tokio::time::timeout(CHILD_EXIT_MAX, child.wait()).await;
        end(child, ended).await
    }

    async fn open_connection(&self) -> Result<Reached, Fault> {
        let patience =
            Patience { silence: self.server.silence.unwrap_or(Patience::default().silence) };
        match &self.server.endpoint {
            Entry::Child { command, args, env, hidden } => {
                let (mut child, pipes) = match &self.engines.socket {
                    Some(socket) if self.server.is_own_engine() && is_this_program(command) => {
                        start_unit(socket, &self.engines, args, env).await?
                    }
                    Some(_) | None => spawn(command, args, env, hidden, &self.engines)?,
                };
                let line = AsyncRwTransport::new_client(pipes.output, pipes.input)
                    .with_max_line_length(LINE_BYTES_MAX);
                let reached = if self.server.is_own_engine() {
                    connect_engine(line, patience).await
                } else {
                    connect_watched(line, patience).await
                };
                match reached {
                    Ok(reached) => Ok(Reached::mcp(reached, Some(child))),
                    Err(fault) => {
                        let left = tokio::time::timeout(CHILD_EXIT_MAX, child.wait()).await;
                        let ended = left.map(how_it_ended);
                        let ended =
                            ended.unwrap_or_else(|_| "the process is still running".to_owned());
                        let why = if let Fault::Unavailable { reason: why, .. } = fault {
                            why
                        } else {
                            fault.to_string()
                        };
                        Err(Fault::unavailable(format!("{why}; {ended}; see its log")))
                    }
                }
            }
            Entry::Provider(entry) => {
                providers::open(entry, patience.silence).map(Reached::Provider)
            }
            Entry::Mqtt { topic, .. } => {
                let none = || Fault::unavailable("no broker is configured".to_owned());
                let caller = self.router.as_ref().ok_or_else(none)?.call(topic).await?;
                Ok(Reached::mcp(connect_stateless(caller, patience).await?, None))
            }
            Entry::Http { url, headers, addresses } => {
                let reached = connect_http(&url.0, &headers.0, addresses, patience).await?;
                Ok(Reached::mcp(reached, None))
            }
        }
    }
}

fn how_it_ended(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => format!("the process exited ({status})"),
        None => "the process exited".to_owned(),
    }
}

async fn end(child: &mut ServerProcess, why: &str) -> String {
    child.kill().await;
    why.to_owned()
}
