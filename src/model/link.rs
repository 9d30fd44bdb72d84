//! The link between the supervisor of a model and the dispatcher.

use std::sync::Arc;

use tokio::sync::watch;

use super::context::Locality;
use super::generate::Generate;
use super::health::Health;
use crate::money::Price;

/// A backend as the dispatcher holds it.
pub struct BackendHandle {
    /// Its name in `mcp.json`.
    pub server: String,
    /// How far away it is.
    pub locality: Locality,
    /// Skills (`talents` on the wire) from the configuration, besides those that it states.
    pub skills: Vec<String>,
    /// Servers that may answer what this one rejects for its rules or its length.
    pub fallbacks: Vec<String>,
    /// The price of its tokens.
    pub price: Price,
    /// Its present state, with the model while it is up.
    pub link: watch::Receiver<BackendState>,
    /// Whether it should be up; one that is not wanted is unloaded to free its memory.
    pub wanted: watch::Sender<bool>,
}

/// The present state of a backend.
#[derive(Clone)]
pub enum BackendState {
    /// It takes no requests.
    Down(Health),
    /// It takes requests.
    Up(Arc<dyn Generate>),
}

impl BackendState {
    /// The state as it is shown.
    pub fn health(&self) -> Health {
        match self {
            BackendState::Down(health) => health.clone(),
            BackendState::Up(_) => Health::Ready,
        }
    }
}
