//! A configuration with a scripted model in place of the configured ones.

use std::collections::{BTreeMap, BTreeSet};

use super::Config;
use crate::catalog::catalog::Catalog;
use crate::catalog::server::{Endpoint, ServerEntry};
use crate::model::context::Locality;
use crate::money::Price;

/// The configuration with one scripted model, for `serve --dry`.
pub fn dry(config: Config) -> Config {
    let args = ["engine", "--scripted", "dry"].map(str::to_owned).to_vec();
    let (env, hidden) = (BTreeMap::new(), BTreeSet::new());
    let endpoint = Endpoint::Child { command: "pilotlight".to_owned(), args, env, hidden };
    let server = ServerEntry {
        name: "dry".to_owned(),
        endpoint,
        locality: Locality::Device,
        silence: None,
        idle_probe: None,
        skills: Vec::new(),
        fallbacks: Vec::new(),
        price: Price::default(),
        tools: BTreeMap::new(),
    };
    Config { catalog: Catalog { servers: vec![server], ..config.catalog }, ..config }
}
