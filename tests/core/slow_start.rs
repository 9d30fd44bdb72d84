//! Model servers that do not answer before they have loaded their model.

use std::time::Duration;

use crate::support::contract::{job, run};
use crate::support::{line_to, patience, scripted};
use futures::future::join_all;
use pilotlight::mcp::client::{connect, connect_engine};

/// Longer than rmcp waits for the answer to a discovery.
const LOAD: Duration = Duration::from_secs(11);

async fn reach(load: Duration, is_own: bool) {
    let line = line_to(scripted(), load);
    let reached = if is_own {
        connect_engine(line, patience()).await
    } else {
        connect(line, patience()).await
    };
    let (remote, _closed) = reached.unwrap_or_else(|e| panic!("{load:?}, {is_own}: {e}"));
    let (text, _) = run(&remote, &job("hello", 8)).await.unwrap();
    assert!(!text.is_empty(), "{load:?}, {is_own}");
}

#[tokio::test]
async fn a_server_that_loads_for_long_is_reached() {
    let cases = [(Duration::ZERO, true), (Duration::ZERO, false), (LOAD, true), (LOAD, false)];
    join_all(cases.map(|(load, is_own)| reach(load, is_own))).await;
}
