//! The feed of settled decisions, for pages and logs.

use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;

use super::handle::JobEnd;
use crate::clock;
use crate::limits::SETTLED_WAITING_MAX;
use crate::request::job::JobId;
use crate::scheduler::Verdict;
use crate::scheduler::decision::Decision;

/// A job that has ended, with the decision record.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// The application that asked.
    pub app: String,
    /// The task of the configuration, if the request named one.
    pub task: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// The server that had it last.
    pub server: Option<String>,
    /// Where it went and why.
    pub decision: Decision,
    /// How long it took.
    pub timing: SettledTiming,
    /// When it ended.
    pub at: SystemTime,
}

/// The times of a job that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledTiming {
    /// Time before its first attempt.
    pub queued: Duration,
    /// Time to the first piece of a buffered answer; that of a streamed one is known to its reader.
    pub first: Option<Duration>,
    /// Time from arrival to end.
    pub total: Duration,
}

impl Settled {
    /// The end of this job, which ends at this moment.
    pub(super) fn of(job: JobId, (app, task): (String, Option<String>), end: &JobEnd) -> Settled {
        Settled {
            job,
            app,
            task,
            verdict: end.verdict.clone(),
            server: end.server.clone(),
            decision: end.decision.clone(),
            timing: SettledTiming { queued: end.queued, first: end.first, total: end.total },
            at: clock::time_of_day(),
        }
    }
}

/// The sending end of a feed without subscribers.
pub(super) fn feed() -> broadcast::Sender<std::sync::Arc<Settled>> {
    broadcast::Sender::new(SETTLED_WAITING_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{broadcast::error::RecvError, watch};
    use tokio_util::sync::CancellationToken;

    use crate::backends::scripted::{Crash, Scripted};
    use crate::dispatch::{Dispatch, DispatchPolicy, LearnedStore, new};
    use crate::limits::SETTLED_WAITING_MAX;
    use crate::model::context::Locality;
    use crate::model::link::{BackendHandle, BackendState};
    use crate::money::Price;
    use crate::pressure::level::DevicePressure;
    use crate::request::job::Job;
    use crate::scheduler::Verdict;

    /// A dispatcher over one scripted model.
    async fn running(test: impl AsyncFnOnce(Dispatch)) {
        let scripted = Arc::new(Scripted::new("small", 4, Crash::Report));
        let (_up, link) = watch::channel(BackendState::Up(scripted));
        let (_pressure, pressure) = watch::channel(DevicePressure::default());
        let backend = BackendHandle {
            server: "small".to_owned(),
            locality: Locality::Device,
            skills: Vec::new(),
            fallbacks: Vec::new(),
            price: Price::default(),
            link,
            wanted: watch::Sender::new(true),
        };
        let keep = LearnedStore::new(None, None);
        let (dispatch, dispatcher) = new(vec![backend], pressure, keep, DispatchPolicy::default());
        let stop = CancellationToken::new();
        let work = async {
            test(dispatch).await;
            stop.cancel();
        };
        tokio::join!(dispatcher.run(stop.clone()), work);
    }

    fn job(prompt: &str) -> Job {
        let job = Job::plain(prompt, std::time::Duration::from_secs(5));
        Job { app: "thermostat".to_owned(), task: Some("answer".to_owned()), ..job }
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
}
