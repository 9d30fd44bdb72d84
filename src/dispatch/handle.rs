//! The handle of the dispatcher for client protocols; an accepted request, and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::policy;
use super::settled::{Settled, SettledTiming, feed};
use crate::catalog::catalog::Catalog;
use crate::clock;
use crate::limits::SCHEMA_COMPILES_MAX;
use crate::model::context::Locality;
use crate::model::generate::{BoxFuture, Usage};
use crate::model::link::{BackendHandle, BackendState};
use crate::model::out::{Chunk, Out, channel};
use crate::money::Span;
use crate::money::account::{ClockState, SpendingAccount};
use crate::redact::Redaction;
use crate::request::job::{Job, JobId};
use crate::request::refusal::{Code, Refusal};
use crate::scheduler::Verdict;
use crate::scheduler::decision::{Decision, Pressure, Reason, Route};
use crate::status::{BackendStatus, Spending};

/// The handle of the dispatcher; cheap to clone.
#[derive(Clone)]
pub struct Dispatch {
    orders: mpsc::Sender<Submission>,
    adoptions: mpsc::Sender<Adoption>,
    pulses: mpsc::Sender<PulseRequest>,
    next: Arc<AtomicU64>,
    status: LoopStatus,
    compiles: Arc<Semaphore>,
}

/// The spending of the present hour, day and month. A running call counts with the most that it can
/// cost.
pub(super) fn spending(account: &SpendingAccount) -> Spending {
    let spent = |span| account.spent(None, span).dollars();
    Spending { hour: spent(Span::Hour), day: spent(Span::Day), month: spent(Span::Month) }
}

/// The state that the dispatcher publishes.
#[derive(Clone)]
pub(super) struct LoopStatus {
    /// The catalog in force.
    pub(super) catalog: watch::Receiver<Arc<Catalog>>,
    /// The present set of backends, in order of preference.
    pub(super) backends: watch::Receiver<Arc<Vec<BackendView>>>,
    /// Jobs that wait and jobs that run.
    pub(super) load: watch::Receiver<(usize, usize)>,
    /// See [`Dispatch::rate`].
    pub(super) rate: watch::Receiver<Option<f64>>,
    pub(super) spent: watch::Receiver<Spending>,
    pub(super) clock: watch::Receiver<ClockState>,
    /// Weak, so that the feed ends with the dispatcher.
    pub(super) settled: broadcast::WeakSender<Arc<Settled>>,
}

/// The parts of these backends that are read outside of the dispatcher's loop.
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

/// An accepted request: the pieces of its answer as they come, then its end.
pub struct Answer {
    /// The job.
    pub job: JobId,
    chunks: mpsc::Receiver<Chunk>,
    end: oneshot::Receiver<JobEnd>,
    arrived: Instant,
    first: Option<Duration>,
    /// Known after the last piece.
    ended: Option<JobEnd>,
    /// The future that makes the answer, if the dispatcher does not: several models at one prompt.
    work: Option<BoxFuture<'static, JobEnd>>,
    guard: CancelGuard,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct JobEnd {
    /// The verdict of the scheduler.
    pub verdict: Verdict,
    /// What the answer took, if there is one.
    pub usage: Option<Usage>,
    /// The text of a buffered answer, which [`Answer::next`] returns as the only piece.
    pub(crate) buffered: Option<String>,
    /// The decision record: where the job went and why.
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
    /// What of the job may leave this device, by this catalog.
    pub(super) redaction: Redaction,
    pub(super) catalog: Arc<Catalog>,
}

/// Another catalog with its backends, in order of preference.
pub(super) struct Adoption {
    pub(super) catalog: Arc<Catalog>,
    pub(super) backends: Vec<BackendHandle>,
    pub(super) done: oneshot::Sender<()>,
}

/// A request for a sign of life; the answer is how long the most overdue job is past its deadline, zero if
/// none is.
pub(super) type PulseRequest = oneshot::Sender<Duration>;

/// Tells the dispatcher that the client has gone, unless the job has ended.
struct CancelGuard(CancellationToken);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Dispatch {
    /// The handle of the dispatcher that reads these orders.
    pub(super) fn new(
        orders: mpsc::Sender<Submission>,
        adoptions: mpsc::Sender<Adoption>,
        pulses: mpsc::Sender<PulseRequest>,
        status: LoopStatus,
    ) -> Dispatch {
        let next = Arc::new(AtomicU64::new(1));
        let compiles = Arc::new(Semaphore::new(SCHEMA_COMPILES_MAX));
        Dispatch { orders, adoptions, pulses, next, status, compiles }
    }

    /// The catalog in force.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.status.catalog.borrow())
    }

    /// Puts another catalog with its backends into force, in one step between two events: jobs that run
    /// end at the backends that they have, and all that wait are decided anew. Ends once it is in force,
    /// or with the dispatcher.
    pub async fn adopt(&self, catalog: Arc<Catalog>, backends: Vec<BackendHandle>) {
        let (done, is_done) = oneshot::channel();
        if self.adoptions.send(Adoption { catalog, backends, done }).await.is_ok() {
            // without an answer the dispatcher has ended
            let _ = is_done.await;
        }
    }

    /// Waits for a turn of the dispatcher's loop, for ever if that is stuck; returns how long the most
    /// overdue job is past its deadline. None if the dispatcher has ended.
    pub async fn pulse(&self) -> Option<Duration> {
        let (answer, answered) = oneshot::channel();
        self.pulses.send(answer).await.ok()?;
        answered.await.ok()
    }

    /// Compiles the schemas of a job that are not compiled yet, on a thread for blocking work: its cost
    /// is bounded, but longer than the runtime may be kept from others. Counts against the deadline.
    ///
    /// # Errors
    /// [`Code::Invalid`] with the field of a schema that is not supported, [`Code::Busy`] if it has no
    /// turn before the deadline.
    pub(crate) async fn compile_schemas(&self, mut job: Job) -> Result<Job, Refusal> {
        let schemas = job.uncompiled_schemas();
        if schemas.is_empty() {
            return Ok(job);
        }
        let began = clock::now();
        let turns = Arc::clone(&self.compiles);
        let mut work = JoinSet::new();
        let work_done = async {
            let turn = turns.acquire_owned().await;
            work.spawn_blocking(move || {
                let _turn = turn;
                schemas.into_iter().try_for_each(|(field, schema)| {
                    schema.compile().map_err(|e| Refusal::field(Code::Invalid, field, e))
                })
            });
            work.join_next().await
        };
        match tokio::time::timeout(job.time_left, work_done).await {
            Ok(Some(Ok(result))) => result?,
            Ok(Some(Err(_)) | None) => {
                let message = "the schemas of this request cannot be compiled";
                return Err(Refusal::new(Code::Invalid, message));
            }
            Err(_) => {
                let message = "too many schemas of other requests are being compiled; retry later";
                return Err(
                    Refusal::new(Code::Busy, message).retry_after(Duration::from_millis(500))
                );
            }
        }
        job.time_left = job.time_left.saturating_sub(began.elapsed());
        Ok(job)
    }

    /// Submits a job that one model answers; the pieces are read from the [`Answer`].
    ///
    /// # Errors
    /// [`Code::Busy`] if too many requests are being handed in, [`Code::Unavailable`] if the
    /// service has stopped.
    pub fn submit(&self, job: Job) -> Result<Answer, Refusal> {
        let (out, chunks) = channel();
        self.send(job, out, chunks)
    }

    /// Submits a job whose pieces go straight to `out`. Of the [`Answer`], only the end is left to
    /// read, and the text if it was buffered.
    ///
    /// # Errors
    /// As [`Dispatch::submit`].
    pub fn submit_to(&self, job: Job, out: Out) -> Result<Answer, Refusal> {
        self.send(job, out, channel().1)
    }

    fn send(
        &self,
        mut job: Job,
        out: Out,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<Answer, Refusal> {
        job.id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let id = job.id;
        let (end, to_end) = oneshot::channel();
        let gone = CancellationToken::new();
        let guard = CancelGuard(gone.clone());
        let catalog = self.catalog();
        let redaction = policy::apply(&catalog, &mut job);
        let order = Submission { job, out, end, gone, redaction, catalog };
        self.orders.try_send(order).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Code::Busy, "too many requests at once; retry later")
                    .retry_after(Duration::from_millis(500))
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        let (arrived, first, ended, work) = (clock::now(), None, None, None);
        Ok(Answer { job: id, chunks, end: to_end, arrived, first, ended, work, guard })
    }

    /// An answer that the future `work` makes while it is read.
    pub(crate) fn answer_of(&self, work: BoxFuture<'static, JobEnd>) -> Answer {
        let job = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let ((_, chunks), (_, end)) = (channel(), oneshot::channel());
        let guard = CancelGuard(CancellationToken::new());
        let (arrived, first, ended) = (clock::now(), None, None);
        Answer { job, chunks, end, arrived, first, ended, work: Some(work), guard }
    }

    /// The present status of every backend.
    pub fn backends(&self) -> Vec<BackendStatus> {
        let status = |view: &BackendView| {
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
        self.status.backends.borrow().iter().map(status).collect()
    }

    /// Waits until at least one backend can be asked.
    pub async fn ready(&self) {
        let mut sets = self.status.backends.clone();
        // ends when a backend is up
        loop {
            let present = Arc::clone(&sets.borrow_and_update());
            let changed = async {
                if sets.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = any_up(&present) => return,
                () = changed => {}
            }
        }
    }

    /// The last token rate of an engine on this device relative to its usual rate.
    pub fn rate(&self) -> watch::Receiver<Option<f64>> {
        self.status.rate.clone()
    }

    /// Subscribes to the decisions that are settled from this moment on. A subscriber that is more than
    /// [`SETTLED_WAITING_MAX`](crate::limits::SETTLED_WAITING_MAX) behind loses the oldest and is told
    /// how many.
    pub fn settled(&self) -> broadcast::Receiver<Arc<Settled>> {
        self.status.settled.upgrade().unwrap_or_else(feed).subscribe()
    }

    /// The present spending.
    pub fn spending(&self) -> Spending {
        *self.status.spent.borrow()
    }

    /// How the clock agrees with the ledger of spending.
    pub fn clock_state(&self) -> ClockState {
        *self.status.clock.borrow()
    }

    /// The numbers of jobs that wait and that run.
    pub fn load(&self) -> (usize, usize) {
        *self.status.load.borrow()
    }
}

/// Waits until one of these backends can be asked.
async fn any_up(backends: &[BackendView]) {
    let waits = backends.iter().map(|view| {
        let mut link = view.link.clone();
        Box::pin(async move {
            if link.wait_for(|l| matches!(l, BackendState::Up(_))).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    if backends.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(waits).await;
}

impl Answer {
    /// Cancelling this token stops the work on the answer; its end still comes.
    pub(crate) fn stopper(&self) -> CancellationToken {
        self.guard.0.clone()
    }

    async fn ending(&mut self) -> JobEnd {
        match self.work.take() {
            Some(work) => work.await,
            None => (&mut self.end).await.unwrap_or_else(|_| JobEnd::stopped()),
        }
    }

    /// Waits for the next piece; none after the last.
    pub async fn next(&mut self) -> Option<Chunk> {
        let chunk = loop {
            let is_open = self.ended.is_none() && self.work.is_none();
            tokio::select! {
                biased;
                chunk = self.chunks.recv() => match chunk {
                    Some(chunk) if chunk.text.is_empty() => {}
                    Some(chunk) => break chunk,
                    None => break self.buffered().await?,
                },
                // an abandoned backend may hold the channel for longer; what was sent is still read
                end = &mut self.end, if is_open => {
                    self.ended = Some(end.unwrap_or_else(|_| JobEnd::stopped()));
                    self.chunks.close();
                }
            }
        };
        if self.first.is_none() {
            self.first = Some(self.arrived.elapsed());
        }
        Some(chunk)
    }

    /// The text of a buffered answer, once.
    async fn buffered(&mut self) -> Option<Chunk> {
        if self.ended.is_none() {
            self.ended = Some(self.ending().await);
        }
        let text = self.ended.as_mut()?.buffered.take().filter(|text| !text.is_empty())?;
        Some(Chunk { n: 0, text })
    }

    /// Waits for the end. Pieces that were not read are lost.
    pub async fn end(mut self) -> JobEnd {
        self.chunks.close();
        let end = match self.ended.take() {
            Some(end) => end,
            None => self.ending().await,
        };
        drop(self.guard);
        JobEnd { first: end.first.or(self.first), total: self.arrived.elapsed(), ..end }
    }

    /// Reads all pieces into one text and waits for the end.
    pub async fn collect(mut self) -> (String, JobEnd) {
        let mut text = String::new();
        while let Some(chunk) = self.next().await {
            text.push_str(&chunk.text);
        }
        (text, self.end().await)
    }
}

impl JobEnd {
    /// The entry of the feed for this job, which ends at this moment.
    pub(super) fn settled(&self, job: JobId, origin: (String, Option<String>)) -> Settled {
        let (app, task) = origin;
        Settled {
            job,
            app,
            task,
            verdict: self.verdict.clone(),
            server: self.server.clone(),
            decision: self.decision.clone(),
            timing: SettledTiming { queued: self.queued, first: self.first, total: self.total },
            at: clock::time_of_day(),
        }
    }

    /// The end of a job whose dispatcher was stopped.
    fn stopped() -> JobEnd {
        JobEnd::refused(stopped(), Reason::Draining)
    }

    /// The end of a job that was not accepted.
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
            buffered: None,
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
