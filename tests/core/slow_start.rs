//! Model servers that do not answer before they have loaded their model.

use std::sync::Arc;
use std::time::Duration;

use crate::support::contract::{job, run};
use crate::support::{patience, scripted};
use futures::future::join_all;
use pilotlight::mcp::client::{connect, connect_engine};
use pilotlight::mcp::pair::pair;
use pilotlight::mcp::server::{SingleModel, serve};
use tokio::task::JoinSet;

/// Longer than rmcp waits for the answer to a discovery.
const LOAD: Duration = Duration::from_secs(11);

async fn reach(load: Duration, is_own: bool) {
    let (ours, theirs) = pair();
    let mut work = JoinSet::new();
    work.spawn(async move {
        tokio::time::sleep(load).await;
        let served = serve(Arc::new(SingleModel(scripted())), theirs).await.unwrap();
        served.waiting().await
    });
    let reached = if is_own {
        connect_engine(ours, patience()).await
    } else {
        connect(ours, patience()).await
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
