//! From a host's name to its addresses, though name servers may be slow or gone.
//!
//! The system's resolver is asked, so that a hosts file, mDNS and what else a board is set up for count.
//! It can't be told to stop: a name server that is silent holds it for as long as the system is patient,
//! often 10 s and more. So there is one lookup at a time, on a thread of its own, which all who need
//! the name wait for. Whoever has waited for [`LOOKUP_PATIENCE`] goes on with the addresses known from
//! before, if there are any, as RFC 8767 has it; but only where a certificate tells whether that is still
//! the same host.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::clock;
use crate::limits::{LOOKUP_KNOWN_MAX, LOOKUP_PATIENCE};

type Addresses = Vec<SocketAddr>;
type LookupResult = Result<Addresses, String>;

/// Finds the addresses of one host, for a client that asks for no other.
pub(crate) struct Lookup(Arc<Mutex<LookupState>>);

#[derive(Default)]
struct LookupState {
    name: String,
    /// The host proves who it is, so addresses from before do no harm.
    is_proven: bool,
    /// When the lookup that is under way began, and where it will tell what it found.
    running: Option<(Instant, watch::Receiver<Option<LookupResult>>)>,
    /// The last addresses, and when they were found.
    known: Option<(Instant, Addresses)>,
}

impl Lookup {
    /// For a host that has to prove by a certificate that it is the one of this name, or for one that
    /// has not.
    pub(crate) fn new(is_proven: bool) -> Lookup {
        Lookup(Arc::new(Mutex::new(LookupState { is_proven, ..LookupState::default() })))
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
    let (began, mut lookup) = join(state, name)?;
    let why = match timeout_at(began + LOOKUP_PATIENCE, end(&mut lookup)).await {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(why)) => Some(why),
        Err(_) => None,
    };
    if let Some(known) = held(state).known(name) {
        let why = why.as_deref().unwrap_or("DNS lookup slow");
        tracing::debug!(name, why, "using cached addresses");
        return Ok(known);
    }
    match why {
        Some(why) => Err(why),
        None => end(&mut lookup).await,
    }
}

/// Waits for the end of a lookup.
async fn end(lookup: &mut watch::Receiver<Option<LookupResult>>) -> LookupResult {
    let found = lookup.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
    found.unwrap_or_else(|| Err("DNS lookup failed without an error".to_owned()))
}

/// Takes part in the lookup that is under way, or begins one.
fn join(
    shared: &Arc<Mutex<LookupState>>,
    name: &str,
) -> Result<(Instant, watch::Receiver<Option<LookupResult>>), String> {
    let mut state = held(shared);
    if state.name != name {
        *state = LookupState {
            name: name.to_owned(),
            is_proven: state.is_proven,
            ..LookupState::default()
        };
    }
    if let Some(running) = &state.running {
        return Ok(running.clone());
    }
    let (tell, lookup) = watch::channel(None);
    let (name, shared) = (name.to_owned(), shared.clone());
    thread::Builder::new()
        .name("lookup".to_owned())
        .spawn(move || {
            let found = ask_system(&name);
            held(&shared).end(&name, &found);
            // nobody may wait any more
            let _ = tell.send(Some(found));
        })
        .map_err(|e| format!("no thread for a lookup: {e}"))?;
    let running = (Instant::from(clock::now()), lookup);
    state.running = Some(running.clone());
    Ok(running)
}

fn ask_system(name: &str) -> LookupResult {
    // the port is the client's matter
    let found = (name, 0).to_socket_addrs().map_err(|e| e.to_string())?;
    Ok(found.collect())
}

fn held(state: &Mutex<LookupState>) -> MutexGuard<'_, LookupState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LookupState {
    fn end(&mut self, name: &str, found: &LookupResult) {
        if self.name != name {
            return;
        }
        self.running = None;
        if let (Ok(found), true) = (found, self.is_proven) {
            self.known = Some((Instant::from(clock::now()), found.clone()));
        }
    }

    fn known(&self, name: &str) -> Option<Addresses> {
        let (when, known) = self.known.as_ref().filter(|_| self.name == name)?;
        (when.elapsed() <= LOOKUP_KNOWN_MAX).then(|| known.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a certificate, who has an address now may be somebody else.
    #[test]
    fn only_a_host_that_proves_itself_is_known_from_before() {
        let found = Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))]);
        for (is_proven, name) in [(true, "a"), (true, "b"), (false, "a")] {
            let mut state =
                LookupState { name: "a".to_owned(), is_proven, ..LookupState::default() };
            state.end(name, &found);
            let known = state.known("a").is_some();
            assert_eq!(known, is_proven && name == "a", "{is_proven} {name}");
        }
    }
}
