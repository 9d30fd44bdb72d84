//! What the doors hold: the way in, a request that was taken, and how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::model::context::{Locality, ModelContext};
use crate::model::generate::{BoxFuture, Chunk, Out, Usage, channel};
use crate::model::health::Health;
use crate::model::link::{BackendHandle, BackendState};
use crate::money::Span;
use crate::money::account::SpendingAccount;
use crate::redact::{Hidden, Redactor};
use crate::request::job::{Job, JobId, Mode};
use crate::request::refusal::{Code, Refusal};
use crate::scheduler::Verdict;
use crate::scheduler::decision::{Decision, Pressure, Reason, Route};

/// The doors' way in.
#[derive(Clone)]
pub struct Dispatch {
    orders: mpsc::Sender<Submission>,
    next: Arc<AtomicU64>,
    status: LoopStatus,
    redactor: Arc<Redactor>,
}

/// What was spent in the present hour, day and month, in US dollars, calls under way at the most
/// that they can cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spending {
    /// This hour.
    pub hour: f64,
    /// Today.
    pub day: f64,
    /// This month.
    pub month: f64,
}

impl Spending {
    pub(super) fn of(books: &SpendingAccount) -> Spending {
        let spent = |span| books.spent(None, span).dollars();
        Spending { hour: spent(Span::Hour), day: spent(Span::Day), month: spent(Span::Month) }
    }

    /// Each with the word for its span.
    pub fn by_span(&self) -> [(&'static str, f64); 3] {
        [(Span::Hour, self.hour), (Span::Day, self.day), (Span::Month, self.month)]
            .map(|(span, usd)| (span.name(), usd))
    }
}

/// What the loop publishes.
#[derive(Clone)]
pub(super) struct LoopStatus {
    /// The present set, in order of preference.
    pub(super) backends: watch::Receiver<Arc<Vec<BackendView>>>,
    /// Jobs that wait and jobs that run.
    pub(super) load: watch::Receiver<(usize, usize)>,
    /// See [`Dispatch::rate`].
    pub(super) rate: watch::Receiver<Option<f64>>,
    pub(super) spent: watch::Receiver<Spending>,
}

/// What is read of these backends from outside of the loop.
pub(super) fn views(backends: &[BackendHandle]) -> Arc<Vec<BackendView>> {
    let view = |b: &BackendHandle| BackendView {
        server: b.server.clone(),
        locality: b.locality,
        link: b.link.clone(),
    };
    Arc::new(backends.iter().map(view).collect())
}

pub(super) struct BackendView {
    server: String,
    locality: Locality,
    link: watch::Receiver<BackendState>,
}

/// What is known of one backend, for people.
#[derive(Clone)]
pub struct BackendStatus {
    /// Its name in `mcp.json`.
    pub server: String,
    /// How far away it is.
    pub locality: Locality,
    /// Whether it can be asked.
    pub health: Health,
    /// What it states of itself, if it is up.
    pub context: Option<ModelContext>,
}

/// A request that was taken: its pieces as they come, then its end.
pub struct Answer {
    /// The job's name.
    pub job: JobId,
    chunks: mpsc::Receiver<Chunk>,
    end: oneshot::Receiver<JobEnd>,
    arrived: Instant,
    first: Option<Duration>,
    /// Known once the pieces are over.
    ended: Option<JobEnd>,
    /// What has to be done for it, if it is not the dispatcher's loop that does it.
    work: Option<BoxFuture<'static, JobEnd>>,
    guard: CancelGuard,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct JobEnd {
    /// How.
    pub verdict: Verdict,
    /// What it took, if it was answered.
    pub usage: Option<Usage>,
    /// The answer, if it was kept back until it was clear that it counts: [`Answer::next`] hands it
    /// out as the only piece.
    pub(crate) kept: Option<String>,
    /// Where it went and why.
    pub decision: Decision,
    /// The server that had it last.
    pub server: Option<String>,
    /// How far away that server is.
    pub locality: Option<Locality>,
    /// Time before its first attempt.
    pub queued: Duration,
    /// Time to the first piece.
    pub first: Option<Duration>,
    /// Time from arrival to end.
    pub total: Duration,
}

pub(super) struct Submission {
    pub(super) job: Job,
    pub(super) out: Out,
    pub(super) end: oneshot::Sender<JobEnd>,
    pub(super) gone: CancellationToken,
    /// The prompt for a cloud, if something of it is to be hidden.
    pub(super) hidden: Option<Arc<Hidden>>,
}

/// Tells the dispatcher that the asker has gone, unless the job has ended.
struct CancelGuard(CancellationToken);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Dispatch {
    /// The way in to the loop that reads these orders.
    pub(super) fn new(
        orders: mpsc::Sender<Submission>,
        status: LoopStatus,
        redactor: Redactor,
    ) -> Dispatch {
        let (next, redactor) = (Arc::new(AtomicU64::new(1)), Arc::new(redactor));
        Dispatch { orders, next, status, redactor }
    }

    /// Submits a job that one model answers.
    ///
    /// # Errors
    /// [`Code::Busy`] if too many requests are being handed in, [`Code::Unavailable`] if the
    /// service has stopped.
    pub fn submit(&self, mut job: Job) -> Result<Answer, Refusal> {
        job.id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let id = job.id;
        let (out, chunks) = channel();
        let (end, ended) = oneshot::channel();
        let gone = CancellationToken::new();
        let guard = CancelGuard(gone.clone());
        let hidden = if job.mode == Mode::LocalOnly { None } else { self.redactor.hide(&job) };
        let order = Submission { job, out, end, gone, hidden: hidden.map(Arc::new) };
        self.orders.try_send(order).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Code::Busy, "too many requests at once; come back later")
                    .retry_after(Duration::from_millis(500))
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        let arrived = clock::now();
        let work = None;
        Ok(Answer { job: id, chunks, end: ended, arrived, first: None, ended: None, work, guard })
    }

    /// An answer that `work` makes while it is read.
    pub(crate) fn answer_of(&self, work: BoxFuture<'static, JobEnd>) -> Answer {
        let id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        Answer { work: Some(work), ..Answer::closed(id) }
    }

    /// Every backend as it is now.
    pub fn backends(&self) -> Vec<BackendStatus> {
        let seen = |view: &BackendView| {
            let link = view.link.borrow();
            let context = match &*link {
                BackendState::Up(generate) => Some(generate.context().clone()),
                BackendState::Down(_) => None,
            };
            BackendStatus {
                server: view.server.clone(),
                locality: view.locality,
                health: link.health(),
                context,
            }
        };
        self.status.backends.borrow().iter().map(seen).collect()
    }

    /// Whether at least one backend can be asked.
    pub fn is_ready(&self) -> bool {
        self.status
            .backends
            .borrow()
            .iter()
            .any(|view| matches!(&*view.link.borrow(), BackendState::Up(_)))
    }

    /// Waits until at least one backend can be asked.
    pub async fn ready(&self) {
        let mut sets = self.status.backends.clone();
        loop {
            let present = Arc::clone(&sets.borrow_and_update());
            let up = async {
                let waits = present.iter().map(|view| {
                    let mut link = view.link.clone();
                    Box::pin(async move {
                        if link.wait_for(|l| matches!(l, BackendState::Up(_))).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    })
                });
                if present.is_empty() {
                    return std::future::pending().await;
                }
                futures::future::select_all(waits).await;
            };
            let changed = async {
                if sets.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = up => return,
                () = changed => {}
            }
        }
    }

    /// The rate at which an engine here wrote last against what is usual for it.
    pub fn rate(&self) -> watch::Receiver<Option<f64>> {
        self.status.rate.clone()
    }

    /// What was spent.
    pub fn spending(&self) -> Spending {
        *self.status.spent.borrow()
    }

    /// Jobs that wait and jobs that run.
    pub fn load(&self) -> (usize, usize) {
        *self.status.load.borrow()
    }
}

impl Answer {
    /// One of which no pieces come.
    fn closed(job: JobId) -> Answer {
        let ((_, chunks), (_, end)) = (channel(), oneshot::channel());
        let guard = CancelGuard(CancellationToken::new());
        let (arrived, first, ended, work) = (clock::now(), None, None, None);
        Answer { job, chunks, end, arrived, first, ended, work, guard }
    }

    /// What stops the work on it; its end still comes.
    pub(crate) fn stopper(&self) -> CancellationToken {
        self.guard.0.clone()
    }

    async fn ending(&mut self) -> JobEnd {
        match self.work.take() {
            Some(work) => work.await,
            None => (&mut self.end).await.unwrap_or_else(|_| JobEnd::stopped()),
        }
    }

    /// The next piece; none after the last.
    pub async fn next(&mut self) -> Option<Chunk> {
        let chunk = loop {
            match self.chunks.recv().await {
                Some(chunk) if chunk.text.is_empty() => {}
                Some(chunk) => break chunk,
                None => break self.kept().await?,
            }
        };
        if self.first.is_none() {
            self.first = Some(self.arrived.elapsed());
        }
        Some(chunk)
    }

    /// The answer that was kept back, once.
    async fn kept(&mut self) -> Option<Chunk> {
        if self.ended.is_none() {
            self.ended = Some(self.ending().await);
        }
        let text = self.ended.as_mut()?.kept.take().filter(|text| !text.is_empty())?;
        Some(Chunk { n: 0, text })
    }

    /// How it ended. Pieces that were not read are lost.
    pub async fn end(mut self) -> JobEnd {
        self.chunks.close();
        let end = match self.ended.take() {
            Some(end) => end,
            None => self.ending().await,
        };
        drop(self.guard);
        JobEnd { first: end.first.or(self.first), total: self.arrived.elapsed(), ..end }
    }

    /// Reads all pieces into one text, then the end.
    pub async fn collect(mut self) -> (String, JobEnd) {
        let mut text = String::new();
        while let Some(chunk) = self.next().await {
            text.push_str(&chunk.text);
        }
        (text, self.end().await)
    }
}

impl JobEnd {
    /// The end of a job that the dispatcher forgot because it was stopped itself.
    fn stopped() -> JobEnd {
        JobEnd::refused(stopped(), Reason::Draining)
    }

    /// The end of a job that was not taken.
    pub(crate) fn refused(refusal: Refusal, reason: Reason) -> JobEnd {
        let decision = Decision {
            route: Route::None,
            reason,
            attempts: Vec::new(),
            predicted_ms: None,
            pressure: Pressure::default(),
            strategy: None,
            steps: Vec::new(),
            figures: None,
        };
        JobEnd {
            verdict: Verdict::Refused(refusal),
            usage: None,
            kept: None,
            decision,
            server: None,
            locality: None,
            queued: Duration::ZERO,
            first: None,
            total: Duration::ZERO,
        }
    }
}

fn stopped() -> Refusal {
    Refusal::new(Code::Unavailable, "the service is stopping")
}
