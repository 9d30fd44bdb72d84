//! One simulated day: prompts arrive, an engine and a remote model answer, the chip warms, a policy
//! decides, and the world counts the results.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::board::{Chip, SimulatedBoard};
use super::engine::{SimulatedEngine, Work};
use super::load::Arrival;
use super::policy::{AWAY, Decider, HERE, Policy, decider, remote_time};
use crate::model::batch::BatchRates;
use crate::model::context::Locality;
use crate::model::generate::Fault;
use crate::pressure::level::{DevicePressure, PressureStage};
use crate::pressure::{Amount, Gauge, SensorSample, Zone};
use crate::request::client::Client;
use crate::request::job::JobId;
use crate::scheduler::decision::Reason;
use crate::scheduler::{
    Answered, BackendProfile, Effect, Event, JobSpec, Sent, TokenTimes, Verdict,
};
use crate::time::Time;

/// How often the sensors are read.
const SAMPLED: Duration = Duration::from_secs(1);
/// Bytes of text to a token.
const BYTES_PER_TOKEN: u32 = 4;
/// Period and length of the times when another program takes the memory, in seconds.
const MEMORY_EVERY_S: u64 = 2400;
const MEMORY_SHORT_S: u64 = 60;
/// Speed that is left to an engine while memory is short.
const SWAPPING: f64 = 0.3;
/// Jobs at once of the remote model.
const REMOTE_SLOTS: u32 = 32;

/// Parameters of a day besides its prompts.
#[derive(Debug, Clone)]
pub struct DaySetup {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Slots of the engine, which computes the most urgent of its jobs.
    pub slots: u32,
    /// Speeds of the engine's batches; none for one that computes one job at a time.
    pub batch: BatchRates,
    /// Whether another program takes the memory now and then.
    pub memory_runs_short: bool,
    /// Samples of a real device, one a second, in place of the board's own heat and memory; after
    /// the last they begin again.
    pub trace: Option<Arc<Vec<SensorSample>>>,
}

/// Results of a day.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DayResult {
    /// Prompts that arrived.
    pub jobs: usize,
    /// Of these, answered by the remote model.
    pub away: usize,
    /// Of these, offloaded for load although in hindsight the engine had time.
    pub needless: usize,
    /// Not answered in time.
    pub missed: usize,
    /// Tokens of prompts and answers: in all, and at the remote model.
    pub tokens: u64,
    /// See `tokens`.
    pub away_tokens: u64,
    /// Seconds above the trip point.
    pub hot_s: f64,
    /// How often the device was closed or opened.
    pub mode_changes: usize,
    /// Length of the day.
    pub hours: f64,
    /// Highest temperature.
    pub peak_c: f64,
    /// Reasons of offloads, with counts.
    pub reasons: BTreeMap<String, usize>,
    /// The state at each second.
    pub seconds: Vec<Second>,
}

impl DayResult {
    /// Adds the results of another day; the seconds are those of the last.
    pub fn add(&mut self, other: DayResult) {
        self.jobs += other.jobs;
        self.away += other.away;
        self.needless += other.needless;
        self.missed += other.missed;
        self.tokens += other.tokens;
        self.away_tokens += other.away_tokens;
        self.hot_s += other.hot_s;
        self.mode_changes += other.mode_changes;
        self.hours += other.hours;
        self.peak_c = self.peak_c.max(other.peak_c);
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        self.seconds = other.seconds;
    }
}

/// One second of a day.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Second {
    /// Degrees Celsius.
    pub celsius: f64,
    /// Share of the time that the engine may compute.
    pub duty: f64,
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs settled in this second: by the engine, by the remote model, and missed.
    pub here: usize,
    /// See `here`.
    pub away: usize,
    /// See `here`.
    pub missed: usize,
}

struct World<'a> {
    given: &'a DaySetup,
    orders: &'a [Arrival],
    board: &'a SimulatedBoard,
    decider: Box<dyn Decider>,
    random: Rng,
    now: Time,
    chip: Chip,
    gauge: Gauge,
    device_pressure: DevicePressure,
    engine: SimulatedEngine,
    /// End of each answer of the remote model.
    remote: BTreeMap<JobId, Time>,
    recalled: Vec<JobId>,
    out: DayResult,
    /// Cumulative capacity of the engine, in milliseconds of work.
    capacity: Vec<(Time, f64)>,
    /// Jobs that the engine answered: deadline, arrival and work of each.
    done_here: Vec<(Time, Time, f64)>,
    left_for_load: Vec<(Time, Time, f64)>,
    waiting: usize,
}

/// Simulates a day under a policy.
pub fn run(
    board: &SimulatedBoard,
    orders: &[Arrival],
    policy: Policy,
    given: &DaySetup,
) -> DayResult {
    let profiles =
        [profile(board, Locality::Device, given), profile(board, Locality::Cloud, given)];
    let mut world = World {
        given,
        orders,
        board,
        decider: decider(policy, &profiles),
        random: Rng::with_seed(given.seed),
        now: Time::default(),
        chip: Chip::new(*board),
        gauge: Gauge::default(),
        device_pressure: DevicePressure::default(),
        engine: SimulatedEngine::new(given.batch.clone()),
        remote: BTreeMap::new(),
        recalled: Vec::new(),
        out: DayResult { jobs: orders.len(), ..DayResult::default() },
        capacity: vec![(Time::default(), 0.0)],
        done_here: Vec::new(),
        left_for_load: Vec::new(),
        waiting: 0,
    };
    let [here, away] = profiles;
    world.tell(Event::Up(here));
    world.tell(Event::Up(away));
    world.live(policy == Policy::Ours);
    world.out
}

fn profile(board: &SimulatedBoard, locality: Locality, given: &DaySetup) -> BackendProfile {
    let here = locality == Locality::Device;
    BackendProfile {
        slots: if here { given.slots } else { REMOTE_SLOTS },
        batch: if here { given.batch.clone() } else { BatchRates::default() },
        preemptive: here,
        read_ms: here.then_some(1e3 / board.prefill),
        write_ms: here.then_some(1e3 / board.decode),
        context_tokens: 4096,
        ..BackendProfile::unknown(if here { HERE } else { AWAY }, locality)
    }
}

impl<'a> World<'a> {
    fn live(&mut self, is_watched: bool) {
        let end = self.orders.last().map_or(Duration::ZERO, |last| last.at + last.time_left);
        let end = Time::default() + end + SAMPLED;
        let mut next = 0;
        let mut sample = Time::default();
        while self.now < end {
            let arrival = self.orders.get(next).map(|order| Time::default() + order.at);
            let wake = self.decider.wake_at(self.now);
            let engine = self.engine_ends();
            let remote = self.remote.values().min().copied();
            let all = [arrival, Some(sample), wake, engine, remote, self.recall_ends()];
            let Some(then) = all.into_iter().flatten().min() else { break };
            self.pass(then.max(self.now));
            if arrival == Some(then) {
                self.arrive(next);
                next += 1;
            } else if sample == then {
                self.sample(is_watched);
                sample = self.now + SAMPLED;
            } else if self.finish().is_none() {
                self.tell(Event::Tick);
            }
        }
        self.out.hours = self.now.since(Time::default()).as_secs_f64() / 3600.0;
        self.count_needless();
    }

    fn memory_is_short(&self) -> bool {
        let second = self.now.0 / 1_000_000;
        self.given.memory_runs_short && second % MEMORY_EVERY_S >= MEMORY_EVERY_S - MEMORY_SHORT_S
    }

    /// Milliseconds of work in a millisecond.
    fn speed(&self) -> f64 {
        let swapping = if self.memory_is_short() { SWAPPING } else { 1.0 };
        self.chip.speed() * f64::from(self.device_pressure.duty) * swapping
    }

    fn engine_ends(&mut self) -> Option<Time> {
        let speed = self.speed().max(1e-9);
        self.engine.set_pace(self.now, speed);
        let ms = self.engine.first_end_ms()? / speed;
        Some(self.now + Duration::from_secs_f64((ms / 1e3).clamp(1e-6, 1e6)))
    }

    fn recall_ends(&self) -> Option<Time> {
        (!self.recalled.is_empty()).then_some(self.now)
    }

    fn pass(&mut self, then: Time) {
        let time = then.since(self.now);
        let ms = time.as_secs_f64() * 1e3;
        let speed = self.speed();
        self.engine.advance(ms * speed);
        let busy = if self.engine.is_empty() { 0.0 } else { f64::from(self.device_pressure.duty) };
        if self.given.trace.is_none() {
            self.chip.pass(time, busy, self.now.since(Time::default()));
        }
        if self.chip.celsius >= self.board.trip_c {
            self.out.hot_s += time.as_secs_f64();
        }
        self.out.peak_c = self.out.peak_c.max(self.chip.celsius);
        self.now = then;
        let done = self.capacity.last().map_or(0.0, |(_, done)| *done);
        self.capacity.push((then, done + ms * speed));
    }

    fn sample(&mut self, is_watched: bool) {
        if is_watched {
            let sample = self.sensed();
            let device_pressure = self.gauge.on(&sample, self.now);
            let was_closed = self.device_pressure.stage >= PressureStage::Closed;
            self.out.mode_changes +=
                usize::from(was_closed != (device_pressure.stage >= PressureStage::Closed));
            self.device_pressure = device_pressure;
            self.tell(Event::Strained(device_pressure));
        }
        let second = Second {
            celsius: self.chip.celsius,
            duty: f64::from(self.device_pressure.duty),
            waiting: self.waiting,
            ..Second::default()
        };
        self.out.seconds.push(second);
    }

    /// The sensor sample: of the recorded trace, or of the simulated board.
    fn sensed(&mut self) -> SensorSample {
        if let Some(trace) = self.given.trace.as_ref().filter(|trace| !trace.is_empty()) {
            let second = usize::try_from(self.now.0 / 1_000_000).unwrap_or(0);
            let sample = trace[second % trace.len()].clone();
            let hottest = sample.zones.iter().filter_map(|zone| zone.celsius).reduce(f64::max);
            self.chip.celsius = hottest.unwrap_or(self.chip.celsius);
            return sample;
        }
        let celsius = Some(self.chip.celsius + self.random.f64() - 0.5);
        let passive = Some(self.board.trip_c);
        let zone = Zone { name: "chip".to_owned(), celsius, passive, ..Zone::default() };
        let available = if self.memory_is_short() { 100 << 20 } else { 2 << 30 };
        let memory = Some(Amount { total: 4 << 30, available });
        SensorSample { zones: vec![zone], memory, ..SensorSample::default() }
    }

    fn arrive(&mut self, at: usize) {
        let order = &self.orders[at];
        let bytes = (order.prompt * BYTES_PER_TOKEN) as usize;
        let kind = order.priority;
        let spec = JobSpec {
            job: JobId(at as u64),
            client: Client::known(format!("app-{}", order.app)),
            template: format!("{kind:?}"),
            due: self.now + order.time_left,
            priority: order.priority,
            mode: order.mode,
            model: None,
            wants_json: false,
            wants_tools: false,
            is_word: false,
            is_buffered: order.whole,
            max_tokens: Some(order.most),
            skills: Vec::new(),
            margin: 0.0,
            ruled: false,
            bytes,
            input_max: u32::try_from(bytes).unwrap_or(u32::MAX),
            hops: 0,
            furthest: Locality::Cloud,
            unfit: None,
        };
        self.waiting += 1;
        self.out.tokens += u64::from(order.prompt + order.answer);
        self.tell(Event::Arrived(spec));
    }

    /// The arrival of a job: identifiers are indices.
    fn order(&self, job: JobId) -> &'a Arrival {
        &self.orders[usize::try_from(job.0).unwrap_or(usize::MAX)]
    }

    fn work(&self, job: JobId) -> Work {
        let order = self.order(job);
        let read = f64::from(order.prompt - order.cached) / self.board.prefill * 1e3;
        Work { read, write: f64::from(order.answer) / self.board.decode * 1e3 }
    }

    /// Ends one attempt that is complete by now.
    fn finish(&mut self) -> Option<()> {
        if let Some(job) = self.recalled.pop() {
            self.engine.remove(job);
            let outcome = Err((Fault::Cancelled, Sent::Nothing));
            self.tell(Event::Ended { job, outcome });
            return Some(());
        }
        if let Some(job) = self.engine.take_done() {
            let order = self.order(job);
            // what the engine measures: computing at the speed of the chip, without its pauses
            let slow = 1.0 / self.chip.speed();
            let work = self.work(job);
            let spent = TokenTimes {
                prompt_tokens: order.prompt,
                cached_tokens: order.cached,
                completion_tokens: order.answer,
                prefill_ms: work.read * slow,
                decode_ms: work.write * slow,
                ..TokenTimes::default()
            };
            let answered = Answered { spent: Some(spent), ..Answered::default() };
            self.tell(Event::Ended { job, outcome: Ok(answered) });
            return Some(());
        }
        let job = self.remote.iter().find(|(_, at)| **at <= self.now).map(|(job, _)| *job)?;
        self.remote.remove(&job);
        let order = self.order(job);
        let tokens = TokenTimes {
            prompt_tokens: order.prompt,
            completion_tokens: order.answer,
            ..TokenTimes::default()
        };
        let answered = Answered { spent: Some(tokens), ..Answered::default() };
        self.tell(Event::Ended { job, outcome: Ok(answered) });
        Some(())
    }

    fn tell(&mut self, event: Event) {
        for effect in self.decider.handle_event(event, self.now) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Start { job, backend, priority, .. } if backend.as_str() == HERE => {
                let order = self.order(job);
                let due = Time::default() + order.at + order.time_left;
                self.engine.start((priority, due, job), self.work(job));
            }
            Effect::Start { job, .. } => {
                let tokens = self.order(job).answer;
                let time = remote_time(&mut self.random, tokens);
                self.remote.insert(job, self.now + time);
            }
            Effect::Stop { job } => {
                self.engine.remove(job);
                self.remote.remove(&job);
                self.recalled.retain(|recalled| *recalled != job);
            }
            Effect::Recall { job } => self.recalled.push(job),
            Effect::Settle { job, verdict, backend, decision } => {
                let away = backend.is_some_and(|backend| backend.as_str() == AWAY);
                self.settled(job, &verdict, away, decision.reason);
            }
            Effect::Width { width, .. } => self.engine.set_width(width),
            Effect::Load(_) | Effect::Unload(_) | Effect::Book(_) | Effect::Drained => {}
        }
    }

    fn settled(&mut self, job: JobId, verdict: &Verdict, away: bool, reason: Reason) {
        let order = self.order(job);
        let arrival = Time::default() + order.at;
        let due = arrival + order.time_left;
        let missed = *verdict != Verdict::Done || self.now > due;
        self.waiting -= 1;
        self.out.missed += usize::from(missed);
        let work = self.least_ms(self.work(job));
        if away {
            self.out.away += 1;
            self.out.away_tokens += u64::from(order.prompt + order.answer);
            *self.out.reasons.entry(reason.name().to_owned()).or_default() += 1;
            self.left_for_load.push((due, arrival, work));
        } else if !missed {
            self.done_here.push((due, arrival, work));
        }
        if let Some(second) = self.out.seconds.last_mut() {
            second.away += usize::from(away);
            second.here += usize::from(!away && !missed);
            second.missed += usize::from(missed);
        }
    }

    /// Time that a job takes from the engine, at the best in the middle of a full batch.
    fn least_ms(&self, work: Work) -> f64 {
        let batch = &self.given.batch;
        let width = batch.width();
        work.read + work.write * batch.slowdown(width) / f64::from(width)
    }

    /// Cumulative capacity of the engine at a time.
    fn capacity_at(&self, time: Time) -> f64 {
        let at = self.capacity.partition_point(|(then, _)| *then <= time);
        self.capacity[at.saturating_sub(1)].1
    }

    /// Counts the needless offloads: jobs for which, with all lengths known, the engine had time
    /// beside all that it answered; each by itself, served by earliest deadline.
    fn count_needless(&mut self) {
        let here = std::mem::take(&mut self.done_here);
        let gone = std::mem::take(&mut self.left_for_load);
        let fits = |job: &(Time, Time, f64)| {
            let near = |other: &&(Time, Time, f64)| {
                other.0 > job.1 && other.1 < job.0 + Duration::from_secs(240)
            };
            let mut jobs: Vec<(Time, Time, f64)> = here.iter().filter(near).copied().collect();
            jobs.push(*job);
            jobs.sort_by_key(|(due, arrival, _)| (*due, *arrival));
            // for each pair of an arrival and a deadline, what lies between must fit between
            jobs.iter().all(|(due, ..)| {
                let mut inside: Vec<(Time, f64)> = jobs
                    .iter()
                    .filter(|(other, ..)| other <= due)
                    .map(|(_, arrival, work)| (*arrival, *work))
                    .collect();
                inside.sort_by_key(|(arrival, _)| std::cmp::Reverse(*arrival));
                let end = self.capacity_at(*due);
                let mut sum = 0.0;
                inside.iter().all(|(arrival, work)| {
                    sum += work;
                    sum <= end - self.capacity_at(*arrival)
                })
            })
        };
        self.out.needless = gone.iter().filter(|job| fits(job)).count();
    }
}
