//! The loop between the doors and the judge: it takes requests, asks the scheduler, carries out
//! what it says. It reads the clock and starts the attempts; it decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::generate::{Chunk, Fault, Generate, Out, Usage, channel};
use crate::health::Health;
use crate::limits::{DRAIN_MAX, INBOX_MAX};
use crate::model::{ModelContext, Reach};
use crate::prompt::{Code, Job, JobId, Refusal};
use crate::scheduler::decision::Decision;
use crate::scheduler::{
    BackendId, Card, Effect, Event, Scheduler, Sent, Ticket, Verdict, may_reach,
};
use crate::time::Time;

/// A model as the dispatcher holds it.
pub struct Backend {
    /// Its name in `mcp.json`.
    pub server: String,
    /// How far away it is.
    pub reach: Reach,
    /// What answers, while it is up.
    pub link: watch::Receiver<Link>,
}

/// The present state of a backend.
#[derive(Clone)]
pub enum Link {
    /// It can't be asked.
    Down(Health),
    /// It can.
    Up(Arc<dyn Generate>),
}

impl Link {
    /// The same as a word and a reason.
    pub fn health(&self) -> Health {
        match self {
            Link::Down(health) => health.clone(),
            Link::Up(_) => Health::Ready,
        }
    }
}

/// The doors' way in.
#[derive(Clone)]
pub struct Dispatch {
    orders: mpsc::Sender<Order>,
    next: Arc<AtomicU64>,
    backends: Arc<Vec<BackendView>>,
    load: watch::Receiver<(usize, usize)>,
}

struct BackendView {
    server: String,
    reach: Reach,
    link: watch::Receiver<Link>,
}

/// What is known of one backend, for people.
#[derive(Clone)]
pub struct Seen {
    /// Its name in `mcp.json`.
    pub server: String,
    /// How far away it is.
    pub reach: Reach,
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
    end: oneshot::Receiver<End>,
    arrived: Instant,
    first: Option<Duration>,
    guard: Guard,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct End {
    /// How.
    pub verdict: Verdict,
    /// What it took, if it was answered.
    pub usage: Option<Usage>,
    /// Where it went and why.
    pub decision: Decision,
    /// The server that had it last.
    pub server: Option<String>,
    /// How far away that server is.
    pub reach: Option<Reach>,
    /// Time before its first attempt.
    pub queued: Duration,
    /// Time to the first piece.
    pub first: Option<Duration>,
    /// Time from arrival to end.
    pub total: Duration,
}

struct Order {
    job: Job,
    out: Out,
    end: oneshot::Sender<End>,
    gone: CancellationToken,
}

/// Tells the dispatcher that the asker has gone, unless the job has ended.
struct Guard(CancellationToken);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Dispatch {
    /// Hands a job in.
    ///
    /// # Errors
    /// [`Code::Busy`] if too many requests stand at the doors, [`Code::Unavailable`] if the
    /// service has stopped.
    pub fn submit(&self, mut job: Job) -> Result<Answer, Refusal> {
        job.id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let id = job.id;
        let (out, chunks) = channel();
        let (end, ended) = oneshot::channel();
        let gone = CancellationToken::new();
        let guard = Guard(gone.clone());
        let order = Order { job, out, end, gone };
        self.orders.try_send(order).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Code::Busy, "too many requests at once; come back later")
                    .retry_after(Duration::from_millis(500))
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        let arrived = clock();
        Ok(Answer { job: id, chunks, end: ended, arrived, first: None, guard })
    }

    /// Every backend as it is now.
    pub fn backends(&self) -> Vec<Seen> {
        let seen = |view: &BackendView| {
            let link = view.link.borrow();
            let context = match &*link {
                Link::Up(generate) => Some(generate.context().clone()),
                Link::Down(_) => None,
            };
            Seen { server: view.server.clone(), reach: view.reach, health: link.health(), context }
        };
        self.backends.iter().map(seen).collect()
    }

    /// Whether at least one backend can be asked.
    pub fn is_ready(&self) -> bool {
        self.backends.iter().any(|view| matches!(&*view.link.borrow(), Link::Up(_)))
    }

    /// Waits until at least one backend can be asked.
    pub async fn ready(&self) {
        let waits = self.backends.iter().map(|view| {
            let mut link = view.link.clone();
            Box::pin(async move {
                if link.wait_for(|l| matches!(l, Link::Up(_))).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        });
        if self.backends.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(waits).await;
    }

    /// Jobs that wait and jobs that run.
    pub fn load(&self) -> (usize, usize) {
        *self.load.borrow()
    }
}

impl Answer {
    /// The next piece; none after the last.
    pub async fn next(&mut self) -> Option<Chunk> {
        let chunk = loop {
            let chunk = self.chunks.recv().await?;
            if !chunk.text.is_empty() {
                break chunk;
            }
        };
        if self.first.is_none() {
            self.first = Some(self.arrived.elapsed());
        }
        Some(chunk)
    }

    /// How it ended. Pieces that were not read are lost.
    pub async fn end(mut self) -> End {
        self.chunks.close();
        let end = (&mut self.end).await.unwrap_or_else(|_| End::stopped());
        drop(self.guard);
        End { first: self.first, total: self.arrived.elapsed(), ..end }
    }

    /// Reads all pieces into one text, then the end.
    pub async fn collect(mut self) -> (String, End) {
        let mut text = String::new();
        while let Some(chunk) = self.next().await {
            text.push_str(&chunk.text);
        }
        (text, self.end().await)
    }
}

impl End {
    /// The end of a job that the dispatcher forgot because it was stopped itself.
    fn stopped() -> End {
        let decision = Decision {
            route: "none".to_owned(),
            reason: crate::scheduler::decision::Reason::Draining,
            attempts: Vec::new(),
            pressure: crate::scheduler::decision::Pressure::default(),
        };
        End {
            verdict: Verdict::Refused(stopped()),
            usage: None,
            decision,
            server: None,
            reach: None,
            queued: Duration::ZERO,
            first: None,
            total: Duration::ZERO,
        }
    }
}

fn stopped() -> Refusal {
    Refusal::new(Code::Unavailable, "the service is stopping")
}

#[expect(clippy::disallowed_methods, reason = "the dispatcher is the one that reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

/// Makes the way in and the loop; the loop must be run.
pub fn new(backends: Vec<Backend>) -> (Dispatch, Dispatcher) {
    let (orders, inbox) = mpsc::channel(INBOX_MAX);
    let (load_out, load) = watch::channel((0, 0));
    let view = |b: &Backend| BackendView {
        server: b.server.clone(),
        reach: b.reach,
        link: b.link.clone(),
    };
    let dispatch = Dispatch {
        orders,
        next: Arc::new(AtomicU64::new(1)),
        backends: Arc::new(backends.iter().map(view).collect()),
        load,
    };
    let dispatcher = Dispatcher {
        scheduler: Scheduler::new(backends.iter().map(card_of_unknown).collect()),
        origin: clock(),
        backends,
        inbox,
        jobs: BTreeMap::new(),
        attempts: JoinSet::new(),
        watches: JoinSet::new(),
        load: load_out,
        drained: false,
    };
    (dispatch, dispatcher)
}

fn card_of_unknown(backend: &Backend) -> Card {
    Card {
        server: backend.server.clone(),
        model: None,
        reach: backend.reach,
        slots: 1,
        context_tokens: u32::MAX,
        json_schema: true,
    }
}

/// The loop's state.
pub struct Dispatcher {
    scheduler: Scheduler,
    origin: Instant,
    backends: Vec<Backend>,
    inbox: mpsc::Receiver<Order>,
    jobs: BTreeMap<JobId, Held>,
    attempts: JoinSet<Attempted>,
    watches: JoinSet<Seized>,
    load: watch::Sender<(usize, usize)>,
    drained: bool,
}

/// A job that is not settled.
struct Held {
    /// With the attempt while one runs.
    waiting: Option<(Job, Out)>,
    end: oneshot::Sender<End>,
    arrived: Time,
    started: Option<Time>,
    backend: Option<usize>,
    stop: CancellationToken,
    usage: Option<Usage>,
}

struct Attempted {
    job: Job,
    out: Out,
    result: Result<Usage, Fault>,
}

/// What a watcher has seen.
enum Seized {
    Gone(JobId),
    Turned(usize),
    Settled,
}

impl Dispatcher {
    /// Runs until `stop`, then until all work has ended or [`DRAIN_MAX`] has passed.
    pub async fn run(mut self, stop: CancellationToken) {
        for backend in 0..self.backends.len() {
            let event = self.state_of(backend);
            self.watch_backend(backend);
            self.judge(event);
        }
        let mut drain_until: Option<Instant> = None;
        while !self.drained {
            let wake = self.scheduler.wake_at(self.now()).map(|at| self.instant(at));
            let wake = [wake, drain_until].into_iter().flatten().min();
            let event = tokio::select! {
                Some(order) = self.inbox.recv() => Some(self.arrived(order)),
                Some(done) = self.attempts.join_next(), if !self.attempts.is_empty() => self.ended(done),
                Some(seen) = self.watches.join_next(), if !self.watches.is_empty() => self.seen(seen),
                () = sleep_until(wake), if wake.is_some() => Some(Event::Tick),
                () = stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(clock() + DRAIN_MAX);
                    Some(Event::Drain)
                }
            };
            if let Some(event) = event {
                self.judge(event);
            }
            if drain_until.is_some_and(|until| clock() >= until) {
                tracing::warn!(left = self.jobs.len(), "stopped before all work had ended");
                break;
            }
        }
        self.watches.shutdown().await;
        self.attempts.shutdown().await;
    }

    fn judge(&mut self, event: Event) {
        let effects = self.scheduler.on(event, self.now());
        for effect in effects {
            self.carry_out(effect);
        }
        self.load.send_replace(self.scheduler.load());
    }

    fn now(&self) -> Time {
        Time::default() + self.origin.elapsed()
    }

    fn instant(&self, at: Time) -> Instant {
        self.origin + Duration::from_micros(at.0)
    }

    fn arrived(&mut self, order: Order) -> Event {
        let now = self.now();
        let Order { job, out, end, gone } = order;
        let ticket = Ticket::of(&job, now);
        let id = job.id;
        let stop = CancellationToken::new();
        let held = Held {
            waiting: Some((job, out)),
            end,
            arrived: now,
            started: None,
            backend: None,
            stop: stop.clone(),
            usage: None,
        };
        self.jobs.insert(id, held);
        self.watches.spawn(async move {
            tokio::select! {
                () = gone.cancelled() => Seized::Gone(id),
                () = stop.cancelled() => Seized::Settled,
            }
        });
        Event::Arrived(ticket)
    }

    fn ended(&mut self, done: Result<Attempted, tokio::task::JoinError>) -> Option<Event> {
        let Attempted { job, out, result } = done
            .inspect_err(|error| tracing::error!(%error, "an attempt ended without saying how"))
            .ok()?;
        let id = job.id;
        let sent = if out.written() == 0 { Sent::Nothing } else { Sent::Some };
        let held = self.jobs.get_mut(&id)?;
        let outcome = match result {
            Ok(usage) => {
                held.usage = Some(usage);
                Ok(())
            }
            Err(fault) => {
                tracing::debug!(job = id.0, %fault, "an attempt failed");
                held.waiting = Some((job, out));
                Err((fault, sent))
            }
        };
        Some(Event::Ended { job: id, outcome })
    }

    fn seen(&mut self, seen: Result<Seized, tokio::task::JoinError>) -> Option<Event> {
        match seen.ok()? {
            Seized::Settled => None,
            Seized::Gone(job) => self.jobs.contains_key(&job).then_some(Event::Gone(job)),
            Seized::Turned(backend) => {
                let event = self.state_of(backend);
                self.watch_backend(backend);
                Some(event)
            }
        }
    }

    fn watch_backend(&mut self, backend: usize) {
        let mut link = self.backends[backend].link.clone();
        self.watches.spawn(async move {
            if link.changed().await.is_err() {
                // the supervisor has ended with the service
                std::future::pending::<()>().await;
            }
            Seized::Turned(backend)
        });
    }

    /// What is so now; the watcher made after this sees what comes later.
    fn state_of(&mut self, backend: usize) -> Event {
        let Backend { server, reach, link } = &mut self.backends[backend];
        match &*link.borrow_and_update() {
            Link::Down(_) => Event::Down(BackendId(backend)),
            Link::Up(generate) => {
                let context = generate.context();
                let card = Card {
                    server: server.clone(),
                    model: Some(context.identification.name.clone()),
                    reach: *reach,
                    slots: context.runtime.slots,
                    context_tokens: context.capabilities.context_tokens,
                    json_schema: context.capabilities.json_schema,
                };
                Event::Up(BackendId(backend), card)
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Start { job, backend, budget } => self.start(job, backend, budget),
            Effect::Stop { job } => {
                if let Some(held) = self.jobs.get(&job) {
                    held.stop.cancel();
                }
            }
            Effect::Settle { job, verdict, decision } => self.settle(job, verdict, decision),
            Effect::Drained => self.drained = true,
        }
    }

    fn start(&mut self, job: JobId, backend: BackendId, budget: Duration) {
        let now = self.now();
        let Some(held) = self.jobs.get_mut(&job) else { return };
        let Some((mut job, mut out)) = held.waiting.take() else { return };
        held.started.get_or_insert(now);
        held.backend = Some(backend.0);
        job.budget = budget;
        let to = &self.backends[backend.0];
        let link = to.link.borrow().clone();
        let may = may_reach(job.mode, to.reach);
        let stop = held.stop.clone();
        self.attempts.spawn(async move {
            let result = match link {
                Link::Up(_) if !may => {
                    Err(Fault::Broken("a private prompt was routed too far; it was not sent".into()))
                }
                Link::Up(generate) => tokio::select! {
                    result = generate.generate(&job, &mut out) => result,
                    () = stop.cancelled() => Err(Fault::Cancelled),
                },
                Link::Down(_) => Err(Fault::Away("it went away just now".into())),
            };
            Attempted { job, out, result }
        });
    }

    fn settle(&mut self, job: JobId, verdict: Verdict, decision: Decision) {
        let now = self.now();
        let Some(held) = self.jobs.remove(&job) else { return };
        held.stop.cancel();
        let backend = held.backend.map(|b| &self.backends[b]);
        tracing::debug!(job = job.0, route = decision.route, reason = ?decision.reason, "settled");
        let end = End {
            verdict,
            usage: held.usage,
            decision,
            server: backend.map(|b| b.server.clone()),
            reach: backend.map(|b| b.reach),
            queued: held.started.unwrap_or(now).since(held.arrived),
            first: None,
            total: now.since(held.arrived),
        };
        // the asker may have gone
        let _ = held.end.send(end);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
