//! The contract suite on the scripted model, over every transport, and 10,000 calls over each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a test ends at the first surprise"
)]

mod support;

use std::sync::Arc;

use futures::StreamExt;
use pilotlight::generate::Generate;
use pilotlight::mcp::client::connect_here;
use support::contract::{SCRIPTED, holds, job, run};
use support::{child, over_http, patience, scripted};

/// Calls over each transport, and how many at once.
const CALLS: usize = 10_000;
const AT_ONCE: usize = 8;

const MODES: &str = "one two three /tokens=20";

async fn ten_thousand_calls(model: &dyn Generate) {
    let calls = futures::stream::iter(0..CALLS).map(|_| async {
        let (text, usage) = run(model, &job(MODES, 100)).await.unwrap();
        assert_eq!(usage.chunks, 20);
        assert_eq!(text.split_whitespace().count(), 20);
    });
    calls.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_transport() {
    holds(scripted().as_ref(), &SCRIPTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_typed_channels() {
    let (remote, _line) = connect_here(scripted(), patience()).await.unwrap();
    holds(&remote, &SCRIPTED).await;
    ten_thousand_calls(&remote).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_childs_standard_input_and_output() {
    let (remote, _line, _child) =
        child(&["engine", "--scripted", "scripted", "--slots", "8"]).await;
    holds(&remote, &SCRIPTED).await;
    ten_thousand_calls(&remote).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_to_the_services_stack() {
    let (remote, _line, _stop) = over_http(scripted()).await;
    holds(&remote, &SCRIPTED).await;
    ten_thousand_calls(&remote).await;
}

/// A model behind a model behind a model: every room between passes the answer on unharmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_three_lines_in_a_row() {
    let (inner, _one) = connect_here(scripted(), patience()).await.unwrap();
    let (middle, _two, _stop) = over_http(Arc::new(inner)).await;
    let (outer, _three) = connect_here(Arc::new(middle), patience()).await.unwrap();
    holds(&outer, &SCRIPTED).await;
}
