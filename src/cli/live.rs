//! `simulate --engine`: the configured models answer real prompts in real time, on a board of which
//! only the heat is simulated: it warms as this machine's processors are busy.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::catalog::catalog::Catalog;
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
use crate::request::job::Job;
use crate::scheduler::Verdict;
use crate::simulate::board::{Chip, SimulatedBoard};
use crate::simulate::load::{Arrival, Demand, day};
use crate::simulate::world::{Outcome, Second};
use crate::strategy;
use crate::time::Time;

/// A model that is somewhere else, if the configuration has none.
const ELSEWHERE: &str = "elsewhere";
/// How often the day's progress is told.
const TOLD_EVERY: usize = 30;
/// What prompts are made of: about a token for four bytes.
const WORDS: &str = "The pump in hall four is running and the pressure is good. ";

/// A prompt and what became of it; none if it was not even taken.
type LiveAnswer = (Arrival, Option<JobEnd>);

/// Lives through a day of that demand, in real time.
///
/// # Errors
/// If no engine of this device can be started.
pub(super) async fn live(
    board: &SimulatedBoard,
    demand: Demand,
    seed: u64,
    config: Config,
) -> anyhow::Result<Outcome> {
    let (strains, strain) = watch::channel(DevicePressure::default());
    let core = Core::start(&with_another(config), strain, LearnedStore::default(), None);
    let board = as_fast_as(&core.dispatch, board).await?;
    let orders = day(&board, demand, seed);
    eprintln!(
        "{} prompts in {:.0} s; the engine reads {:.0} and writes {:.0} tokens a second",
        orders.len(),
        demand.length.as_secs_f64(),
        board.prefill,
        board.decode
    );
    let mut day = Day {
        out: Outcome { jobs: orders.len(), ..Outcome::default() },
        chip: Chip::new(board),
        gauge: Gauge::default(),
        sensors: Sensors::new(Path::new("/"), Path::new(".")),
        strains,
        board,
    };
    day.pass(&core.dispatch, orders).await;
    core.stop().await;
    Ok(day.out)
}

/// The catalog, with a scripted model elsewhere if it has none.
fn with_another(config: Config) -> Catalog {
    let mut catalog = config.catalog.clone();
    if catalog.servers.iter().all(|server| server.locality == Locality::Device) {
        let scripted = dry(config).catalog.servers.into_iter();
        catalog.servers.extend(scripted.map(|server| crate::catalog::server::ServerEntry {
            name: ELSEWHERE.to_owned(),
            locality: Locality::Cloud,
            ..server
        }));
    }
    catalog
}

/// The board with the rates of the first engine here, once all models have come up.
async fn as_fast_as(dispatch: &Dispatch, board: &SimulatedBoard) -> anyhow::Result<SimulatedBoard> {
    let ready = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        // bounded by the timeout around it
        while !dispatch.backends().iter().all(|seen| seen.health == Health::Ready) {
            ticks.tick().await;
        }
    };
    let _ = tokio::time::timeout(ENGINE_LOAD_MAX, ready).await;
    let seen = dispatch.backends();
    let here = seen.iter().filter(|seen| seen.locality == Locality::Device);
    let rates = here.filter_map(|seen| {
        let runtime = &seen.context.as_ref()?.runtime;
        runtime.prefill_tokens_per_s.zip(runtime.decode_tokens_per_s)
    });
    match rates.into_iter().next() {
        Some((prefill, decode)) => Ok(SimulatedBoard { prefill, decode, ..*board }),
        None => bail!("no engine of this device came up and stated its rates; try `doctor`"),
    }
}

struct Day {
    board: SimulatedBoard,
    chip: Chip,
    gauge: Gauge,
    sensors: Sensors,
    strains: watch::Sender<DevicePressure>,
    out: Outcome,
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
                let end = match strategy::submit(&dispatch, job_of(&order)) {
                    Ok(answer) => Some(answer.collect().await.1),
                    Err(_) => None,
                };
                // there is room for all
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

    /// A second passes: the chip warms, and the engines and the judge are told.
    fn second(&mut self, at: Duration, (waiting, running): (usize, usize)) {
        let busy = self.sensors.read(None).busy.unwrap_or(0.0);
        self.chip.pass(SAMPLE_EVERY, busy, at);
        let celsius = self.chip.celsius;
        let passive = Some(self.board.trip_c);
        let zone =
            Zone { name: "chip".to_owned(), celsius: Some(celsius), passive, ..Zone::default() };
        let sample = SensorSample { zones: vec![zone], ..SensorSample::default() };
        let before = self.strains.borrow().stage;
        let strain = self.gauge.on(&sample, Time::default() + at);
        let was_closed = before >= PressureStage::Closed;
        self.out.mode_changes += usize::from(was_closed != (strain.stage >= PressureStage::Closed));
        self.strains.send_replace(strain);
        if celsius >= self.board.trip_c {
            self.out.hot_s += SAMPLE_EVERY.as_secs_f64();
        }
        self.out.peak_c = self.out.peak_c.max(celsius);
        self.out.seconds.push(Second {
            celsius,
            duty: strain.duty.into(),
            waiting: waiting + running,
            ..Second::default()
        });
        if self.out.seconds.len().is_multiple_of(TOLD_EVERY) {
            let duty = strain.duty * 100.0;
            let (away, missed) = (self.out.away, self.out.missed);
            eprintln!(
                "{:.0} s: {celsius:.1} °C, duty {duty:.0} %, {waiting} waiting, {away} answered \
                 elsewhere, {missed} missed",
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
            *self.out.reasons.entry(end.decision.reason.word()).or_default() += 1;
        }
        if let Some(second) = self.out.seconds.last_mut() {
            second.away += usize::from(away);
            second.here += usize::from(!away && !missed);
            second.missed += usize::from(missed);
        }
    }
}

/// A prompt of about so many tokens, whose beginning others of its class share.
fn job_of(order: &Arrival) -> Job {
    let Arrival { priority, prompt, cached, .. } = *order;
    let bytes = |tokens: u32| 4 * tokens as usize;
    let shared: String = WORDS.chars().cycle().take(bytes(cached)).collect();
    let own = format!(" {} {}: ", order.at.as_micros(), order.app);
    let rest = WORDS.chars().cycle().take(bytes(prompt - cached).saturating_sub(own.len()));
    let text = format!("{priority:?}. {shared}{own}{}", rest.collect::<String>());
    let mut job = Job::plain(text, order.time_left);
    job.app = format!("app-{}", order.app);
    (job.priority, job.mode, job.streamed) = (priority, order.mode, !order.whole);
    job.sampling.max_tokens = Some(order.most);
    job
}
