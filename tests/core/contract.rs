//! The contract suite on the scripted model, over every transport, and 10,000 calls over each.

use std::sync::Arc;

use crate::support::contract::{SCRIPTED, holds, job, run};
use crate::support::{SOON, child, over_channels, over_http, scripted};
use futures::StreamExt;
use pilotlight::model::context::ModelContext;
use pilotlight::model::generate::{BoxFuture, Fault, Generate, Usage};
use pilotlight::model::out::{Out, channel};
use pilotlight::request::job::Job;
use tokio::sync::Notify;
use tokio::time::timeout;

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
    let (remote, _line) = over_channels(scripted()).await;
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
    let (inner, _one) = over_channels(scripted()).await;
    let (middle, _two, _stop) = over_http(Arc::new(inner)).await;
    let (outer, _three) = over_channels(Arc::new(middle)).await;
    holds(&outer, &SCRIPTED).await;
}

/// A model that says when it has been left alone.
struct Watched {
    model: Arc<dyn Generate>,
    begun: Notify,
    ended: Arc<Notify>,
}

/// Tells it however the answer ends, dropped in the middle too.
struct Ending(Arc<Notify>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Generate for Watched {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        let ending = Ending(Arc::clone(&self.ended));
        self.begun.notify_one();
        Box::pin(async move {
            let _ending = ending;
            self.model.generate(job, out).await
        })
    }

    fn context(&self) -> &ModelContext {
        self.model.context()
    }
}

/// Nobody computes for who has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_told_when_the_asker_goes() {
    let watched = || {
        let (begun, ended) = (Notify::new(), Arc::new(Notify::new()));
        Arc::new(Watched { model: scripted(), begun, ended })
    };
    let here = watched();
    let (remote, _line) = over_channels(here.clone()).await;
    leaves_in_the_middle(&remote, &here).await;
    let there = watched();
    let (remote, _line, _stop) = over_http(there.clone()).await;
    leaves_in_the_middle(&remote, &there).await;
}

async fn leaves_in_the_middle(remote: &dyn Generate, watched: &Watched) {
    // far longer than the test waits
    let job = job("on and on /tokens=8000 /delay-us=100000", 8000);
    let (out, mut chunks) = channel();
    let mut call = remote.generate(&job, out);
    let begun = async {
        watched.begun.notified().await;
        chunks.recv().await
    };
    tokio::select! {
        result = &mut call => panic!("{result:?}"),
        piece = begun => assert!(piece.is_some()),
    }
    drop(call);
    timeout(SOON, watched.ended.notified()).await.expect("it goes on for nobody");
}
