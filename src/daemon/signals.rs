//! The signals of the process, and the loop that follows the configuration until one ends the service.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::core::Core;
use super::fleet::Fleet;
use super::reload::Live;
use super::systemd;
use crate::ingress::reloads::ReloadRequests;

/// SIGTERM, SIGINT and SIGHUP. They are handled before the service is reachable, so that none is missed.
pub(super) struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Signals> {
        let [term, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Signals { term: term?, interrupt: interrupt?, hangup: hangup? })
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Reads the configuration again whenever it has changed or somebody asks, until the service is to
    /// stop.
    pub(super) async fn serve(
        &mut self,
        live: &mut Live,
        requests: &mut ReloadRequests,
        (core, mut fleet): (&mut Core, Option<Fleet>),
    ) {
        let Signals { term, interrupt, hangup } = self;
        let stop = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let reload = async {
            if let Some(fleet) = &mut fleet {
                fleet.begin(live, core).await;
            }
            // ends with the service
            loop {
                let update = async {
                    match &mut fleet {
                        Some(fleet) => fleet.next().await,
                        None => std::future::pending().await,
                    }
                };
                let asking = tokio::select! {
                    asking = live.asked(requests) => asking,
                    Some(()) = hangup.recv() => Vec::new(),
                    event = update => {
                        if let Some(fleet) = &mut fleet {
                            fleet.take(event, live, core).await;
                        }
                        continue;
                    }
                };
                systemd::notify_reloading();
                let status = Box::pin(live.reload(core)).await;
                systemd::notify_ready();
                for asking in asking {
                    // it may not wait any longer
                    let _ = asking.send(status.clone());
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = reload => {}
        }
    }
}
