//! Name lookup with stale answers (RFC 8767): a slow or absent name server does not delay requests.
//!
//! The lookup uses the system's resolver, so that the hosts file, mDNS and the board's configuration
//! apply. A call of the system's resolver can't be cancelled: without a response of the name server
//! it often takes 10 s and more. Therefore each host has at most one lookup at a time, on a thread of
//! its own, which all requests wait for. A request that has waited for [`LOOKUP_WAIT_MAX`] uses the
//! addresses of the last successful lookup, if there are any and the host is verified by a
//! certificate: without one, the address may belong to another host by then.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::clock;
use crate::limits::{LOOKUP_STALE_MAX, LOOKUP_WAIT_MAX};

type Addresses = Vec<SocketAddr>;
type LookupResult = Result<Addresses, String>;

/// The resolver of a client that connects to one host.
pub(crate) struct Lookup(Arc<Mutex<LookupState>>);

#[derive(Default)]
struct LookupState {
    name: String,
    /// The host is verified by a certificate, so that stale addresses do no harm.
    is_verified: bool,
    /// The start of the running lookup, and its result.
    running: Option<(Instant, watch::Receiver<Option<LookupResult>>)>,
    /// The time and the addresses of the last successful lookup.
    stale: Option<(Instant, Addresses)>,
}

impl Lookup {
    /// A resolver; `is_verified` states whether the host is verified by a certificate.
    pub(crate) fn new(is_verified: bool) -> Lookup {
        Lookup(Arc::new(Mutex::new(LookupState { is_verified, ..LookupState::default() })))
    }
}

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        let state = self.0.clone();
        Box::pin(async move {
            let found = addresses(&state, name.as_str()).await?;
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

async fn addresses(state: &Arc<Mutex<LookupState>>, name: &str) -> LookupResult {
    let (started_at, mut lookup) = join(state, name)?;
    let why = match timeout_at(started_at + LOOKUP_WAIT_MAX, result_of(&mut lookup)).await {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(why)) => Some(why),
        Err(_) => None,
    };
    if let Some(stale) = lock(state).stale(name) {
        let why = why.as_deref().unwrap_or("DNS lookup slow");
        tracing::debug!(name, why, "using cached addresses");
        return Ok(stale);
    }
    match why {
        Some(why) => Err(why),
        None => result_of(&mut lookup).await,
    }
}

/// Waits for the result of a lookup.
async fn result_of(lookup: &mut watch::Receiver<Option<LookupResult>>) -> LookupResult {
    let found = lookup.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
    found.unwrap_or_else(|| Err("DNS lookup failed without an error".to_owned()))
}

/// The running lookup; started if there is none.
fn join(
    shared: &Arc<Mutex<LookupState>>,
    name: &str,
) -> Result<(Instant, watch::Receiver<Option<LookupResult>>), String> {
    let mut state = lock(shared);
    if state.name != name {
        *state = LookupState {
            name: name.to_owned(),
            is_verified: state.is_verified,
            ..LookupState::default()
        };
    }
    if let Some(running) = &state.running {
        return Ok(running.clone());
    }
    let (send, lookup) = watch::channel(None);
    let (name, shared) = (name.to_owned(), shared.clone());
    thread::Builder::new()
        .name("lookup".to_owned())
        .spawn(move || {
            let found = ask_system(&name);
            lock(&shared).end(&name, &found);
            // all requests may have given up
            let _ = send.send(Some(found));
        })
        .map_err(|e| format!("no thread for a lookup: {e}"))?;
    let running = (Instant::from(clock::now()), lookup);
    state.running = Some(running.clone());
    Ok(running)
}

fn ask_system(name: &str) -> LookupResult {
    // the client replaces the port
    let found = (name, 0).to_socket_addrs().map_err(|e| e.to_string())?;
    Ok(found.collect())
}

fn lock(state: &Mutex<LookupState>) -> MutexGuard<'_, LookupState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LookupState {
    fn end(&mut self, name: &str, found: &LookupResult) {
        if self.name != name {
            return;
        }
        self.running = None;
        if let (Ok(found), true) = (found, self.is_verified) {
            self.stale = Some((Instant::from(clock::now()), found.clone()));
        }
    }

    fn stale(&self, name: &str) -> Option<Addresses> {
        let (found_at, addresses) = self.stale.as_ref().filter(|_| self.name == name)?;
        (found_at.elapsed() <= LOOKUP_STALE_MAX).then(|| addresses.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a certificate a stale address may belong to another host.
    #[test]
    fn only_verified_hosts_have_stale_addresses() {
        let addresses = Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))]);
        for (is_verified, name) in [(true, "a"), (true, "b"), (false, "a")] {
            let mut state =
                LookupState { name: "a".to_owned(), is_verified, ..LookupState::default() };
            state.end(name, &addresses);
            let found = state.stale("a").is_some();
            assert_eq!(found, is_verified && name == "a", "{is_verified} {name}");
        }
    }
}
