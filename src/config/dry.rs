//! A configuration with a scripted model in place of the configured ones.

use std::collections::BTreeMap;

use super::Config;
use crate::catalog::catalog::Catalog;
use crate::catalog::server::ServerEntry;

/// The configuration with one scripted model, for `serve --dry`.
pub fn dry(config: Config) -> Config {
    let args = ["engine", "--scripted", "dry"].map(str::to_owned).to_vec();
    let server = ServerEntry::of_engine("dry".to_owned(), args, BTreeMap::new());
    Config { catalog: Catalog { servers: vec![server], ..config.catalog }, ..config }
}
