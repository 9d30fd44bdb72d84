//! Seeded days: a random world drives the judge, and keeps its own books of what was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pilotlight::limits::{ATTEMPTS_MAX, RUNNING_JOBS_MAX, WAITING_BYTES_MAX, WAITING_JOBS_MAX};
use pilotlight::model::context::Locality;
use pilotlight::model::generate::Fault;
use pilotlight::pressure::level::{DevicePressure, PressureCause, PressureStage};
use pilotlight::request::client::Client;
use pilotlight::request::job::{JobId, Mode, Priority};
use pilotlight::request::refusal::{Code, Refusal};
use pilotlight::request::skill::{CLASSIFY, GENERATE};
use pilotlight::scheduler::{
    Answered, BackendId, BackendProfile, Effect, Event, JobSpec, Scheduler, Sent, Verdict, explain,
};
use pilotlight::time::Time;

const DAYS: u64 = 2_000;
/// Days on which a promise was broken once.
const ONCE_BROKEN: [u64; 3] = [16_701, 17_908, 71_875];
const EVENTS: usize = 300;

/// What the world knows of a job.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
struct Book {
    due: Time,
    /// Of the prompt.
    bytes: usize,
    mode: Mode,
    /// The furthest locality that may have it.
    furthest: Locality,
    starts: usize,
    runs_on: Option<BackendId>,
    settled: bool,
    sent: bool,
    skill: &'static str,
    /// Nothing of it is handed out before its end.
    whole: bool,
    margin: f32,
    /// What was said with too little confidence, by whom.
    unsure: Vec<(BackendId, f32)>,
    /// Who gave an answer that is taken.
    answered: Option<BackendId>,
    /// Its attempt was told to stop, and will say so.
    recalled: bool,
    /// How often that came about.
    recalls: usize,
    priority: Priority,
}

impl Book {
    /// An answer is whose it is said to be, and who has any word is not left without one.
    fn check_word(&self, job: JobId, verdict: &Verdict, backend: Option<&BackendId>) {
        let surest = self.unsure.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(who, _)| who);
        match verdict {
            Verdict::Done => assert_eq!(
                backend,
                self.answered.as_ref().or(surest),
                "{job:?} was answered by another"
            ),
            Verdict::Cancelled => {}
            _ => assert!(self.unsure.is_empty(), "{job:?} had a word and was told none"),
        }
    }
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    now: Time,
    /// All backends that there ever are.
    known: Vec<BackendProfile>,
    /// The present catalog.
    catalog: Vec<BackendId>,
    up: BTreeSet<BackendId>,
    books: BTreeMap<JobId, Book>,
    next: u64,
    drained: usize,
    log: Vec<String>,
    device_pressure: DevicePressure,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let reaches = [Locality::Device, Locality::Peer, Locality::Cloud];
        let known: Vec<BackendProfile> = (0..random.usize(1..5))
            .map(|n| BackendProfile {
                preemptive: random.bool(),
                read_ms: Some(random.f64()),
                write_ms: Some(random.f64() * 30.0),
                max_tokens: 64,
                slots: random.u32(1..4),
                // without a bound the large prompts wait too
                context_tokens: if random.bool() { u32::MAX } else { random.u32(10..2000) },
                json_schema: random.bool(),
                tools: random.bool(),
                skills: Some(
                    [GENERATE, CLASSIFY]
                        .into_iter()
                        .filter(|_| random.u8(0..5) > 0)
                        .map(str::to_owned)
                        .collect(),
                ),
                fallbacks: (0..random.usize(0..8) / 3)
                    .map(|_| format!("server-{}", random.usize(0..5)))
                    .collect(),
                ..BackendProfile::unknown(&format!("server-{n}"), *random.choice(&reaches).unwrap())
            })
            .collect();
        let catalog = known.iter().map(|profile| profile.server.clone()).collect();
        World {
            seed,
            random,
            now: Time(0),
            known,
            catalog,
            up: BTreeSet::new(),
            books: BTreeMap::new(),
            next: 0,
            drained: 0,
            log: Vec::new(),
            device_pressure: DevicePressure::default(),
        }
    }

    fn event(&mut self, scheduler: &Scheduler) -> Event {
        match self.random.u8(0..100) {
            0..45 => self.arrive(),
            45..75 => self.end().unwrap_or(Event::Tick),
            75..80 => self.leave().unwrap_or(Event::Tick),
            80..87 => self.turn(),
            87..90 => self.device_pressure(),
            90..93 => self.change_catalog(),
            _ => {
                if let Some(wake) = scheduler.wake_at(self.now) {
                    self.now = self.now.max(wake);
                }
                Event::Tick
            }
        }
    }

    fn arrive(&mut self) -> Event {
        let random = &mut self.random;
        let job = JobId(self.next);
        self.next += 1;
        let modes = [Mode::LocalOnly, Mode::PreferLocal, Mode::PreferCloud, Mode::CloudOnly];
        let classes = [Priority::Interactive, Priority::Normal, Priority::Batch];
        let furthest = [Locality::Cloud, Locality::Cloud, Locality::Peer, Locality::Device];
        // often enough that several wait at once
        let bytes = if random.u8(0..6) == 0 {
            random.usize(0..WAITING_BYTES_MAX / 3)
        } else {
            random.usize(1..9000)
        };
        let skill = if random.u8(0..3) == 0 { CLASSIFY } else { GENERATE };
        let margin = if skill == CLASSIFY { random.f32() } else { 0.0 };
        let spec = JobSpec {
            job,
            client: Client::known(format!("app-{}", random.u8(0..3))),
            template: format!("app-{}", random.u8(0..3)),
            is_word: skill == CLASSIFY,
            is_buffered: random.bool() || skill == CLASSIFY,
            max_tokens: None,
            skills: vec![skill.to_owned()],
            margin,
            ruled: false,
            due: self.now + Duration::from_micros(random.u64(1..3_000_000)),
            priority: *random.choice(&classes).unwrap(),
            mode: *random.choice(&modes).unwrap(),
            model: (random.u8(0..10) == 0).then(|| format!("server-{}", random.u8(0..6))),
            wants_json: random.u8(0..4) == 0,
            wants_tools: random.u8(0..4) == 0,
            bytes,
            input_max: 100,
            hops: random.u8(0..6),
            furthest: *random.choice(&furthest).unwrap(),
            unfit: (random.u8(0..8) == 0).then(|| Refusal::new(Code::Incapable, "unredactable")),
        };
        let book = Book {
            due: spec.due,
            bytes: spec.bytes,
            mode: spec.mode,
            furthest: if spec.unfit.is_some() { Locality::Device } else { spec.furthest },
            starts: 0,
            runs_on: None,
            settled: false,
            sent: false,
            skill,
            whole: spec.is_buffered,
            margin,
            unsure: Vec::new(),
            answered: None,
            recalled: false,
            recalls: 0,
            priority: spec.priority,
        };
        self.books.insert(job, book);
        Event::Arrived(spec)
    }

    fn pick(&mut self, of: impl Fn(&Book) -> bool) -> Option<JobId> {
        let jobs: Vec<JobId> = self.books.iter().filter(|(_, b)| of(b)).map(|(j, _)| *j).collect();
        self.random.choice(&jobs).copied()
    }

    fn end(&mut self) -> Option<Event> {
        let job = self.pick(|book| book.runs_on.is_some())?;
        if self.books[&job].recalled && self.random.u8(0..4) > 0 {
            let book = self.books.get_mut(&job)?;
            (book.runs_on, book.recalled) = (None, false);
            return Some(Event::Ended { job, outcome: Err((Fault::Cancelled, Sent::Nothing)) });
        }
        let fault = match self.random.u8(0..12) {
            0 => Fault::Crashed("x".into()),
            1 => Fault::unavailable("x"),
            2 => Fault::TimedOut("x".into()),
            3 => Fault::ProtocolError("x".into()),
            4 => Fault::Rejected(Refusal::new(Code::Incapable, "x")),
            5 => Fault::Rejected(Refusal::new(Code::Invalid, "x")),
            6 => Fault::Rejected(Refusal::new(Code::Forbidden, "x")),
            7 => Fault::Cancelled,
            _ => {
                let sure = self.random.f32();
                let book = self.books.get_mut(&job)?;
                book.recalled = false;
                let backend = book.runs_on.take()?;
                let confidence = (book.skill == CLASSIFY).then_some(sure);
                match confidence {
                    Some(sure) if sure < book.margin => book.unsure.push((backend, sure)),
                    _ => book.answered = Some(backend),
                }
                return Some(Event::Ended {
                    job,
                    outcome: Ok(Answered { confidence, ..Answered::default() }),
                });
            }
        };
        // nothing of these is handed out before the end
        let whole = self.books[&job].whole;
        let sent = if self.random.bool() && !whole { Sent::Some } else { Sent::Nothing };
        let book = self.books.get_mut(&job)?;
        (book.runs_on, book.recalled) = (None, false);
        book.sent = sent == Sent::Some;
        Some(Event::Ended { job, outcome: Err((fault, sent)) })
    }

    fn leave(&mut self) -> Option<Event> {
        self.pick(|book| !book.settled).map(Event::Gone)
    }

    fn turn(&mut self) -> Event {
        let id = self.random.choice(&self.catalog).unwrap().clone();
        if self.up.remove(&id) {
            return Event::Down(id);
        }
        self.up.insert(id.clone());
        Event::Up(self.profile(&id).clone())
    }

    fn profile(&self, id: &BackendId) -> &BackendProfile {
        self.known.iter().find(|profile| profile.server == *id).unwrap()
    }

    /// Some of all backends in a random order, at least one.
    fn change_catalog(&mut self) -> Event {
        let mut some = self.known.clone();
        self.random.shuffle(&mut some);
        some.truncate(self.random.usize(1..=some.len()));
        let ids: Vec<BackendId> = some.iter().map(|profile| profile.server.clone()).collect();
        // one that was removed is down when it comes back
        self.up.retain(|id| ids.contains(id));
        self.catalog = ids;
        Event::Catalog(some)
    }

    fn device_pressure(&mut self) -> Event {
        let random = &mut self.random;
        let stages = [
            PressureStage::Calm,
            PressureStage::Calm,
            PressureStage::Paced,
            PressureStage::Shed,
            PressureStage::Closed,
        ];
        let stage = *random.choice(&stages).unwrap();
        let causes = [PressureCause::Heat, PressureCause::Memory, PressureCause::Disk];
        let calm = stage == PressureStage::Calm;
        self.device_pressure = DevicePressure {
            duty: if calm { 1.0 } else { random.f32() },
            stage,
            cause: if calm { PressureCause::Load } else { *random.choice(&causes).unwrap() },
            ..DevicePressure::default()
        };
        Event::Strained(self.device_pressure)
    }

    /// Writes the effects into the books and checks every promise.
    fn take(&mut self, effects: Vec<Effect>, scheduler: &Scheduler) {
        self.log.extend(effects.iter().map(|e| format!("{:?} {e:?}", self.now)));
        for effect in effects {
            match effect {
                Effect::Start { job, backend, .. } => self.started(job, &backend),
                Effect::Stop { job } => {
                    let book = self.books.get_mut(&job).unwrap();
                    assert!(book.runs_on.take().is_some(), "{job:?} was stopped and did not run");
                    book.recalled = false;
                }
                Effect::Settle { job, verdict, backend, decision } => {
                    let book = self.books.get_mut(&job).unwrap();
                    assert!(!book.settled, "{job:?} was settled twice");
                    assert!(book.runs_on.is_none(), "{job:?} was settled while it ran");
                    assert!(decision.attempts.len() <= ATTEMPTS_MAX);
                    assert_eq!(
                        decision.attempts.len(),
                        book.starts,
                        "the record counts the attempts"
                    );
                    let early = verdict == Verdict::Expired && self.now < book.due;
                    assert!(!early, "{job:?} expired before its deadline");
                    book.settled = true;
                    book.check_word(job, &verdict, backend.as_ref());
                    let again = explain(&decision);
                    let said = Ok((decision.route, decision.reason));
                    assert_eq!(
                        again, said,
                        "seed {}: {job:?} {verdict:?} {decision:#?}",
                        self.seed
                    );
                }
                Effect::Recall { job } => {
                    let book = self.books.get_mut(&job).unwrap();
                    assert!(book.runs_on.is_some() && book.whole, "{job:?} can't be called back");
                    assert!(!book.recalled, "{job:?} was called back twice");
                    book.recalled = true;
                    book.recalls += 1;
                    assert_eq!(book.recalls, 1, "{job:?} changed its route twice");
                    assert_eq!(book.mode, Mode::PreferLocal);
                }
                Effect::Unload(_) | Effect::Load(_) | Effect::Book(_) | Effect::Width { .. } => {}
                Effect::Drained => self.drained += 1,
            }
        }
        self.check(scheduler);
    }

    fn started(&mut self, job: JobId, backend: &BackendId) {
        let profile = self.profile(backend).clone();
        let up = self.up.contains(backend);
        let book = self.books.get_mut(&job).unwrap();
        assert!(!book.settled && book.runs_on.is_none(), "{job:?} started twice");
        assert!(!book.sent, "{job:?} was moved after a part of it was sent");
        assert!(up, "{job:?} was given to a backend that is down");
        assert!(self.now < book.due, "{job:?} started after its deadline");
        let allowed = match book.mode {
            Mode::LocalOnly => profile.locality == Locality::Device,
            Mode::CloudOnly => profile.locality != Locality::Device,
            Mode::PreferLocal | Mode::PreferCloud => true,
        };
        let asked_again = book.unsure.iter().any(|(unsure, _)| unsure == backend);
        assert!(!asked_again, "{job:?} was given to who was not sure of it");
        let can = profile.skills.as_ref().unwrap().iter().any(|skill| skill == book.skill);
        assert!(can, "{job:?} went to a model without the talent");
        let allowed = allowed && profile.locality <= book.furthest;
        assert!(allowed, "{job:?} with {:?} went to {:?}", book.mode, profile.locality);
        let here = profile.locality == Locality::Device;
        let shed = here
            && self.device_pressure.stage >= PressureStage::Shed
            && book.priority == Priority::Batch;
        assert!(!shed, "{job:?} started here while batch jobs must wait");
        book.runs_on = Some(backend.clone());
        book.starts += 1;
        let running = self.books.values().filter(|b| b.runs_on.as_ref() == Some(backend)).count();
        assert!(running <= profile.slots as usize, "more than its slots");
    }

    fn check(&self, scheduler: &Scheduler) {
        let (waiting, running) = scheduler.load();
        assert!(waiting <= WAITING_JOBS_MAX && running <= RUNNING_JOBS_MAX);
        let waits = self.books.values().filter(|b| !b.settled && b.runs_on.is_none());
        assert!(waits.map(|b| b.bytes).sum::<usize>() <= WAITING_BYTES_MAX);
        let open = self.books.values().filter(|b| !b.settled).count();
        assert_eq!(waiting + running, open, "a job was lost or kept");
        let late = self.books.values().any(|b| !b.settled && b.due <= self.now);
        assert!(!late, "a job was left beyond its deadline");
    }
}

fn day(seed: u64) -> (Vec<String>, World) {
    let mut world = World::new(seed);
    let mut scheduler = Scheduler::new(world.known.clone());
    for _ in 0..EVENTS {
        let step = world.random.u64(0..20_000);
        // like the dispatcher, never sleep past the time that was asked for
        let wake = scheduler.wake_at(world.now).unwrap_or(Time(u64::MAX));
        world.now = (world.now + Duration::from_micros(step)).min(wake);
        let event = world.event(&scheduler);
        let effects = scheduler.handle_event(event, world.now);
        world.take(effects, &scheduler);
    }
    let effects = scheduler.handle_event(Event::Drain, world.now);
    world.take(effects, &scheduler);
    while let Some(wake) = scheduler.wake_at(world.now) {
        world.now = wake;
        let effects = scheduler.handle_event(Event::Tick, world.now);
        world.take(effects, &scheduler);
    }
    (world.log.clone(), world)
}

#[test]
fn every_day_keeps_every_promise() {
    for seed in (0..DAYS).chain(ONCE_BROKEN) {
        let (_, world) = day(seed);
        assert!(world.books.values().all(|b| b.settled), "seed {seed}: a job had no answer");
        assert_eq!(world.drained, 1, "seed {seed}");
    }
}

#[test]
fn the_same_events_give_the_same_decisions() {
    for seed in 0..50 {
        assert_eq!(day(seed).0, day(seed).0, "seed {seed}");
    }
}

#[test]
fn an_idle_model_never_lets_a_job_wait() {
    let profile = BackendProfile { slots: 2, ..BackendProfile::unknown("only", Locality::Device) };
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut scheduler = Scheduler::new(vec![profile.clone()]);
        scheduler.handle_event(Event::Up(profile.clone()), Time(0));
        let mut running = Vec::new();
        for id in 0..100 {
            let now = Time(id * 10);
            let event = if random.bool() || running.is_empty() {
                Event::Arrived(JobSpec {
                    job: JobId(id),
                    due: Time(u64::MAX / 2),
                    priority: Priority::Normal,
                    mode: Mode::PreferLocal,
                    model: None,
                    wants_json: false,
                    wants_tools: false,
                    client: Client::known("app"),
                    template: "app".into(),
                    is_word: false,
                    is_buffered: true,
                    max_tokens: None,
                    skills: vec![GENERATE.to_owned()],
                    margin: 0.0,
                    ruled: false,
                    bytes: 10,
                    input_max: 10,
                    hops: 0,
                    furthest: Locality::Cloud,
                    unfit: None,
                })
            } else {
                let job = running.swap_remove(random.usize(0..running.len()));
                Event::Ended { job, outcome: Ok(Answered::default()) }
            };
            for effect in scheduler.handle_event(event, now) {
                if let Effect::Start { job, .. } = effect {
                    running.push(job);
                }
            }
            let (waiting, runs) = scheduler.load();
            assert!(waiting == 0 || runs == 2, "seed {seed}: {waiting} wait and {runs} run");
        }
    }
}
