//! Tests of the dispatcher with models in this process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Dispatch, LearnedStore, new};
use crate::backends::scripted::{Crash, Scripted};
use crate::limits::SETTLED_WAITING_MAX;
use crate::model::context::{Locality, ModelContext};
use crate::model::generate::{BoxFuture, Fault, Generate, Usage};
use crate::model::link::{BackendHandle, BackendState};
use crate::model::out::Out;
use crate::money::Price;
use crate::pressure::level::DevicePressure;
use crate::request::client::Client;
use crate::request::job::Job;
use crate::scheduler::Verdict;

/// Runs a test with a dispatcher over one scripted model.
async fn running(test: impl AsyncFnOnce(Dispatch)) {
    over(Arc::new(Scripted::new("small", 4, Crash::Report)), test).await;
}

/// A backend of this name on the device.
fn backend(server: &str, link: watch::Receiver<BackendState>) -> BackendHandle {
    BackendHandle {
        server: server.to_owned(),
        locality: Locality::Device,
        skills: Vec::new(),
        fallbacks: Vec::new(),
        price: Price::default(),
        link,
        wanted: watch::Sender::new(true),
    }
}

/// Runs a test with a dispatcher over one model.
async fn over(model: Arc<dyn Generate>, test: impl AsyncFnOnce(Dispatch)) {
    let (_up, link) = watch::channel(BackendState::Up(model));
    let (_pressure, pressure) = watch::channel(DevicePressure::default());
    let backend = backend("small", link);
    let keep = LearnedStore::new(None, None);
    let (dispatch, dispatcher) = new(Arc::default(), vec![backend], pressure, keep);
    let stop = CancellationToken::new();
    let work = async {
        test(dispatch).await;
        stop.cancel();
    };
    tokio::join!(Box::pin(dispatcher.run(stop.clone())), work);
}

fn job(prompt: &str) -> Job {
    let job = Job::plain(prompt, Duration::from_secs(5));
    Job { client: Client::known("thermostat"), task: Some("answer".to_owned()), ..job }
}

#[tokio::test]
async fn subscribers_receive_settled_decisions() {
    running(async |dispatch| {
        let mut feed = dispatch.settled();
        for (prompt, is_done) in [("one two", true), ("one /fail=broken", false)] {
            let answer = dispatch.submit(job(prompt)).unwrap();
            let id = answer.job;
            let (_, end) = answer.collect().await;
            let settled = feed.recv().await.unwrap();
            assert_eq!((settled.job, settled.app.as_str()), (id, "thermostat"));
            assert_eq!(settled.task.as_deref(), Some("answer"));
            assert_eq!(settled.verdict == Verdict::Done, is_done, "{:?}", settled.verdict);
            assert_eq!(settled.verdict, end.verdict);
            assert_eq!(settled.server, end.server);
            assert_eq!(settled.decision, end.decision);
            assert_eq!(settled.timing.queued, end.queued);
            assert!(settled.timing.total <= end.total);
        }
    })
    .await;
}

#[tokio::test]
async fn slow_subscribers_lose_the_oldest_decisions() {
    running(async |dispatch| {
        let mut feed = dispatch.settled();
        for _ in 0..SETTLED_WAITING_MAX + 3 {
            dispatch.submit(job("hello")).unwrap().collect().await;
        }
        assert_eq!(feed.recv().await.unwrap_err(), RecvError::Lagged(3));
        for _ in 0..SETTLED_WAITING_MAX {
            feed.recv().await.unwrap();
        }
        assert!(feed.is_empty());
    })
    .await;
}

#[tokio::test]
async fn the_feed_ends_with_the_dispatcher() {
    let mut kept = None;
    running(async |dispatch| {
        kept = Some((dispatch.settled(), dispatch));
    })
    .await;
    let (mut feed, dispatch) = kept.unwrap();
    assert_eq!(feed.recv().await.unwrap_err(), RecvError::Closed);
    assert_eq!(dispatch.settled().recv().await.unwrap_err(), RecvError::Closed);
}

/// A model whose thread holds on to its writer after the attempt was given up.
struct Stuck {
    model: Scripted,
    held: Mutex<Option<Out>>,
}

impl Generate for Stuck {
    fn generate<'a>(&'a self, _job: &'a Job, mut out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(async move {
            out.write("begun".to_owned()).await.map_err(|_| Fault::Cancelled)?;
            *self.held.lock().unwrap() = Some(out);
            std::future::pending().await
        })
    }

    fn context(&self) -> &ModelContext {
        self.model.context()
    }
}

#[tokio::test]
async fn an_answer_ends_though_its_backend_is_stuck() {
    let model = Scripted::new("small", 4, Crash::Report);
    let stuck = Arc::new(Stuck { model, held: Mutex::new(None) });
    over(stuck.clone(), async |dispatch| {
        let job = Job { streamed: true, time_left: Duration::from_millis(300), ..job("hello") };
        let answer = dispatch.submit(job).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), answer.collect()).await;
        let (text, end) = ended.unwrap();
        assert_eq!(text, "begun");
        assert_eq!(end.verdict, Verdict::Expired);
        let mut late = stuck.held.lock().unwrap().take().unwrap();
        assert!(late.write_blocking("late".to_owned()).is_err());
    })
    .await;
}

/// The set that the dispatcher starts with here replaces one that it has adopted before.
#[tokio::test]
async fn another_set_of_backends_replaces_the_first() {
    let up = |name: &str| {
        let model: Arc<dyn Generate> = Arc::new(Scripted::new(name, 4, Crash::Report));
        watch::channel(BackendState::Up(model))
    };
    let ((old_up, old), (_new_up, new_link)) = (up("old"), up("new"));
    let (_pressure, pressure) = watch::channel(DevicePressure::default());
    let keep = LearnedStore::new(None, None);
    let (dispatch, mut dispatcher) =
        new(Arc::default(), vec![backend("new", new_link)], pressure, keep);
    dispatcher.replace_backends(vec![backend("old", old)]);
    let names = || dispatch.backends().into_iter().map(|b| b.server).collect::<Vec<_>>();
    assert_eq!(names(), ["old"]);
    let stop = CancellationToken::new();
    let work = async {
        let (_, end) = dispatch.submit(job("one two")).unwrap().collect().await;
        assert_eq!((end.verdict, end.server.as_deref()), (Verdict::Done, Some("new")));
        assert_eq!(names(), ["new"]);
        // nothing waits for a change of the removed one any more
        assert_eq!(old_up.receiver_count(), 0);
        stop.cancel();
    };
    tokio::join!(Box::pin(dispatcher.run(stop.clone())), work);
}

#[tokio::test]
async fn a_request_without_an_end_is_overdue() {
    let (_pressure, pressure) = watch::channel(DevicePressure::default());
    let keep = LearnedStore::new(None, None);
    let (dispatch, mut dispatcher) = new(Arc::default(), Vec::new(), pressure, keep);
    assert_eq!(dispatcher.overdue(), Duration::ZERO);
    let _answer = dispatch.submit(Job { time_left: Duration::from_millis(1), ..job("a") }).unwrap();
    let _later = dispatch.submit(job("b")).unwrap();
    for _ in 0..2 {
        // the scheduler is not told: it would end the request
        let order = dispatcher.inbox.recv().await.unwrap();
        dispatcher.arrived(order);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let overdue = dispatcher.overdue();
    assert!(
        overdue >= Duration::from_millis(15) && overdue < Duration::from_secs(5),
        "{overdue:?}"
    );
}
