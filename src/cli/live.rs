//! `simulate --engine`: the configured models answer prompts in real time; only the board's heat is
//! simulated, from the load of this machine's processors.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock;
use crate::config::{Config, dry};
use crate::daemon::Core;
use crate::device::Sensors;
use crate::dispatch::{Dispatch, JobEnd, LearnedStore};
use crate::limits::{ENGINE_LOAD_MAX, SAMPLE_EVERY};
use crate::model::context::Locality;
use crate::model::health::Health;
use crate::pressure::level::{DevicePressure, PressureStage};
use crate::pressure::{Gauge, SensorSample, Zone};
use crate::request::client::Client;
use crate::request::job::Job;
use crate::scheduler::Verdict;
use crate::simulate::board::{Chip, SimulatedBoard};
use crate::simulate::load::{Arrival, Demand, day};
use crate::simulate::world::{DayResult, Second};
use crate::strategy;
use crate::time::Time;

/// Name of the scripted remote model that is added to a configuration without one.
const REMOTE: &str = "remote";
/// Seconds between two progress lines.
const PROGRESS_EVERY: usize = 30;
/// Text of the prompts; about four bytes for each token.
const WORDS: &str = "The pump in hall four is running and the pressure is good. ";

/// A request and its end; none if it was refused at once.
type LiveAnswer = (Arrival, Option<JobEnd>);

/// Simulates a day of that demand in real time.
///
/// # Errors
/// If no engine of this device can be started.
pub(super) async fn live(
    board: &SimulatedBoard,
    demand: Demand,
    seed: u64,
    config: Config,
) -> anyhow::Result<DayResult> {
    let (pressures, pressure) = watch::channel(DevicePressure::default());
    let config = with_remote(config);
    let core = Core::start(&config, pressure, LearnedStore::default(), None);
    let board = with_measured_rates(&core.dispatch, board).await?;
    let orders = day(&board, demand, seed);
    eprintln!(
        "{} prompts in {:.0} s; prefill {:.0}, decode {:.0} tokens/s",
        orders.len(),
        demand.length.as_secs_f64(),
        board.prefill,
        board.decode
    );
    let mut day = Day {
        out: DayResult { jobs: orders.len(), ..DayResult::default() },
        chip: Chip::new(board),
        gauge: Gauge::default(),
        sensors: Sensors::new(Path::new("/"), Path::new(".")),
        pressures,
        board,
    };
    day.pass(&core.dispatch, orders).await;
    core.stop().await;
    Ok(day.out)
}

/// The configuration, with a scripted remote model if it has no remote one.
fn with_remote(mut config: Config) -> Config {
    if config.catalog.servers.iter().all(|server| server.locality == Locality::Device) {
        let scripted = dry(config.clone()).catalog.servers.into_iter();
        config.catalog.servers.extend(scripted.map(|server| crate::catalog::server::ServerEntry {
            name: REMOTE.to_owned(),
            locality: Locality::Cloud,
            ..server
        }));
    }
    config
}

/// The board with the measured rates of the first engine of this device, once all models are ready.
async fn with_measured_rates(
    dispatch: &Dispatch,
    board: &SimulatedBoard,
) -> anyhow::Result<SimulatedBoard> {
    let ready = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        // bounded by the timeout around it
        while !dispatch.backends().iter().all(|backend| backend.health == Health::Ready) {
            ticks.tick().await;
        }
    };
    let _ = tokio::time::timeout(ENGINE_LOAD_MAX, ready).await;
    let backends = dispatch.backends();
    let here = backends.iter().filter(|backend| backend.locality == Locality::Device);
    let rates = here.filter_map(|backend| {
        let runtime = &backend.context.as_ref()?.runtime;
        runtime.prefill_tokens_per_s.zip(runtime.decode_tokens_per_s)
    });
    match rates.into_iter().next() {
        Some((prefill, decode)) => Ok(SimulatedBoard { prefill, decode, ..*board }),
        None => bail!("no engine of this device is ready; run `pilotlight doctor`"),
    }
}

struct Day {
    board: SimulatedBoard,
    chip: Chip,
    gauge: Gauge,
    sensors: Sensors,
    pressures: watch::Sender<DevicePressure>,
    out: DayResult,
}

impl Day {
    async fn pass(&mut self, dispatch: &Dispatch, orders: Vec<Arrival>) {
        let began = Instant::from(clock::now());
        let count = orders.len();
        let (ends_in, mut ends) = mpsc::channel(count.max(1));
        let mut asked = JoinSet::new();
        for order in orders {
            let (dispatch, ends_in) = (dispatch.clone(), ends_in.clone());
            asked.spawn(async move {
                tokio::time::sleep_until(began + order.at).await;
                let end = match strategy::submit(&dispatch, job_of(&order)).await {
                    Ok(answer) => Some(answer.collect().await.1),
                    Err(_) => None,
                };
                // the channel holds the ends of all requests
                let _ = ends_in.send((order, end)).await;
            });
        }
        let mut ticks = tokio::time::interval_at(began, SAMPLE_EVERY);
        let mut left = count;
        while left > 0 {
            tokio::select! {
                _ = ticks.tick() => self.second(began.elapsed(), dispatch.load()),
                Some(answered) = ends.recv() => {
                    left -= 1;
                    self.settled(&answered);
                }
            }
        }
        self.out.hours = began.elapsed().as_secs_f64() / 3600.0;
    }

    /// One second: the chip warms, and the pressure level is published to engines and scheduler.
    fn second(&mut self, at: Duration, (waiting, running): (usize, usize)) {
        let busy = self.sensors.read(None).busy.unwrap_or(0.0);
        self.chip.pass(SAMPLE_EVERY, busy, at);
        let celsius = self.chip.celsius;
        let passive = Some(self.board.trip_c);
        let zone =
            Zone { name: "chip".to_owned(), celsius: Some(celsius), passive, ..Zone::default() };
        let sample = SensorSample { zones: vec![zone], ..SensorSample::default() };
        let before = self.pressures.borrow().stage;
        let pressure = self.gauge.on(&sample, Time::default() + at);
        let was_closed = before >= PressureStage::Closed;
        self.out.mode_changes +=
            usize::from(was_closed != (pressure.stage >= PressureStage::Closed));
        self.pressures.send_replace(pressure);
        if celsius >= self.board.trip_c {
            self.out.hot_s += SAMPLE_EVERY.as_secs_f64();
        }
        self.out.peak_c = self.out.peak_c.max(celsius);
        self.out.seconds.push(Second {
            celsius,
            duty: pressure.duty.into(),
            waiting: waiting + running,
            ..Second::default()
        });
        if self.out.seconds.len().is_multiple_of(PROGRESS_EVERY) {
            let duty = pressure.duty * 100.0;
            let (away, missed) = (self.out.away, self.out.missed);
            eprintln!(
                "{:.0} s: {celsius:.1} °C, duty {duty:.0} %, {waiting} waiting, {away} offloaded, \
                 {missed} deadlines missed",
                at.as_secs_f64()
            );
        }
    }

    fn settled(&mut self, (order, end): &LiveAnswer) {
        let away =
            end.as_ref().is_some_and(|end| end.locality.is_some_and(|r| r != Locality::Device));
        let in_time = |end: &JobEnd| end.verdict == Verdict::Done && end.total <= order.time_left;
        let missed = !end.as_ref().is_some_and(in_time);
        self.out.away += usize::from(away);
        self.out.missed += usize::from(missed);
        if let Some(usage) = end.as_ref().and_then(|end| end.usage.as_ref()) {
            let tokens = u64::from(usage.prompt_tokens + usage.completion_tokens);
            self.out.tokens += tokens;
            self.out.away_tokens += if away { tokens } else { 0 };
        }
        if let (true, Some(end)) = (away, end) {
            *self.out.reasons.entry(end.decision.reason.name().to_owned()).or_default() += 1;
        }
        if let Some(second) = self.out.seconds.last_mut() {
            second.away += usize::from(away);
            second.here += usize::from(!away && !missed);
            second.missed += usize::from(missed);
        }
    }
}

/// A job with a prompt of about this many tokens, whose prefix all jobs of its priority share.
fn job_of(order: &Arrival) -> Job {
    let Arrival { priority, prompt, cached, .. } = *order;
    let bytes = |tokens: u32| 4 * tokens as usize;
    let shared: String = WORDS.chars().cycle().take(bytes(cached)).collect();
    let own = format!(" {} {}: ", order.at.as_micros(), order.app);
    let rest = WORDS.chars().cycle().take(bytes(prompt - cached).saturating_sub(own.len()));
    let text = format!("{priority:?}. {shared}{own}{}", rest.collect::<String>());
    let mut job = Job::plain(text, order.time_left);
    job.client = Client::known(format!("app-{}", order.app));
    (job.priority, job.mode, job.streamed) = (priority, order.mode, !order.whole);
    job.sampling.max_tokens = Some(order.most);
    job
}
