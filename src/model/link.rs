//! The thread between whoever keeps a model reachable and whoever asks it.

use std::sync::Arc;

use tokio::sync::watch;

use super::context::Locality;
use super::generate::Generate;
use super::health::Health;
use crate::money::Price;

/// A model as the dispatcher holds it.
pub struct BackendHandle {
    /// Its name in `mcp.json`.
    pub server: String,
    /// How far away it is.
    pub locality: Locality,
    /// Talents that the configuration says it has, besides those that it states.
    pub skills: Vec<String>,
    /// Servers that may answer what this one refuses for its rules or its length.
    pub fallbacks: Vec<String>,
    /// What its tokens cost.
    pub price: Price,
    /// What answers, while it is up.
    pub link: watch::Receiver<BackendState>,
    /// Whether it shall be up: one that is not wanted gives its memory back.
    pub wanted: watch::Sender<bool>,
}

/// The present state of a backend.
#[derive(Clone)]
pub enum BackendState {
    /// It can't be asked.
    Down(Health),
    /// It can.
    Up(Arc<dyn Generate>),
}

impl BackendState {
    /// The same as a word and a reason.
    pub fn health(&self) -> Health {
        match self {
            BackendState::Down(health) => health.clone(),
            BackendState::Up(_) => Health::Ready,
        }
    }
}
