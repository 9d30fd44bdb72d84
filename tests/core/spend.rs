//! Money: no cap is ever passed, whatever happens in whatever order, and a sudden end forgets nothing.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "amounts of a test are small"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::cloud::{Act, Cloud, answer, entry, head, piece};
use crate::support::service::{Service, signal};
use pilotlight::model::context::Locality;
use pilotlight::model::generate::Fault;
use pilotlight::money::account::{LedgerEntry, SpendingAccount};
use pilotlight::money::{Caps, Hour, Limits, Price, SPANS, Usd};
use pilotlight::request::client::Client;
use pilotlight::request::job::{Job, JobId, Mode};
use pilotlight::request::refusal::{Code, Refusal};
use pilotlight::scheduler::decision::Reason;
use pilotlight::scheduler::{
    Answered, BackendId, BackendProfile, Effect, Event, JobSpec, Scheduler, Sent, TokenTimes,
    Verdict, explain,
};
use pilotlight::time::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

const LOCAL: &str = "local";

fn cents(n: u32) -> Usd {
    Usd::at_least(f64::from(n) / 100.0)
}

/// A cent for each token of an answer, nothing for a prompt.
fn price() -> Price {
    Price::of_million(0.0, 10_000.0).unwrap()
}

fn cards() -> Vec<BackendProfile> {
    let dear = |name: &str, slots| BackendProfile {
        price: price(),
        slots,
        max_tokens: 100,
        ..BackendProfile::unknown(name, Locality::Cloud)
    };
    vec![BackendProfile::unknown("local", Locality::Device), dear("near", 3), dear("far", 2)]
}

fn caps() -> Caps {
    let cap = |hour, day, month| Limits {
        hour: Some(cents(hour)),
        day: Some(cents(day)),
        month: Some(cents(month)),
    };
    Caps {
        device: cap(300, 500, 900),
        per_app: cap(120, 300, 400),
        apps: BTreeMap::from([("app-0".to_owned(), cap(10_000, 10_000, 10_000))]),
    }
}

fn scheduler_with(caps: Caps) -> Scheduler {
    let mut scheduler = Scheduler::new(cards()).with_budget(caps, SpendingAccount::default());
    for profile in cards() {
        scheduler.handle_event(Event::Up(profile), Time(0));
    }
    scheduler
}

fn spec(job: u64, app: u8, tokens: u32, mode: Mode, due: Time) -> JobSpec {
    let mut plain = Job::plain("hello", Duration::from_secs(1));
    (plain.id, plain.client, plain.mode) = (JobId(job), Client::known(format!("app-{app}")), mode);
    plain.sampling.max_tokens = Some(tokens);
    JobSpec { due, ..JobSpec::of(&plain, Time(0)) }
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Ask {
        app: u8,
        tokens: u32,
        mode: Mode,
    },
    /// The oldest attempt under way ends, having used this share of its tokens, or with a fault.
    End {
        used: f64,
        fault: u8,
    },
    Gone {
        nth: usize,
    },
    Pass {
        seconds: u32,
    },
    /// The clock is set back by so many hours.
    Back {
        hours: u32,
    },
    /// The service ends all at once and begins again with its books.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![
        Just(Mode::CloudOnly),
        Just(Mode::PreferCloud),
        Just(Mode::PreferLocal),
        Just(Mode::LocalOnly)
    ];
    prop_oneof![
        6 => (0..4_u8, 1..100_u32, mode).prop_map(|(app, tokens, mode)| Step::Ask { app, tokens, mode }),
        5 => (0.0..=1.0, 0..9_u8).prop_map(|(used, fault)| Step::End { used, fault }),
        1 => (0..8_usize).prop_map(|nth| Step::Gone { nth }),
        2 => (1..9_000_u32).prop_map(|seconds| Step::Pass { seconds }),
        1 => (1..60_u32).prop_map(|hours| Step::Back { hours }),
        1 => Just(Step::Crash),
    ]
}

/// What was really spent, kept by the test: each call with what it may have cost, or has.
#[derive(Default)]
struct Truth {
    calls: Vec<(String, Hour, Usd)>,
    /// By job: where its call stands in `calls`, its backend and its most tokens.
    running: BTreeMap<u64, (Option<usize>, BackendId, u32)>,
    on_disk: Vec<LedgerEntry>,
}

impl Truth {
    fn see(&mut self, effects: Vec<Effect>, tokens: &BTreeMap<u64, (String, u32)>, hour: Hour) {
        for effect in effects {
            match effect {
                Effect::Start { job, backend, hold, .. } => {
                    let (app, most) = &tokens[&job.0];
                    let is_dear = backend.as_str() != LOCAL;
                    assert_eq!(hold.is_some(), is_dear, "a call begins with a line in the books");
                    self.on_disk.extend(hold);
                    let at = is_dear.then(|| {
                        self.calls.push((app.clone(), hour, cents(*most)));
                        self.calls.len() - 1
                    });
                    self.running.insert(job.0, (at, backend, *most));
                }
                Effect::Stop { job } => {
                    self.running.remove(&job.0);
                }
                Effect::Book(line) => self.on_disk.push(line),
                Effect::Settle { decision, .. } => {
                    let again = explain(&decision).unwrap();
                    assert_eq!(again, (decision.route, decision.reason), "{decision:?}");
                }
                _ => {}
            }
        }
    }

    /// What was spent in the span of this hour.
    fn spent(&self, app: Option<&str>, span: pilotlight::money::Span, hour: Hour) -> Usd {
        let of = |call: &&(String, Hour, Usd)| {
            app.is_none_or(|app| call.0 == app) && call.1.number(span) == hour.number(span)
        };
        self.calls.iter().filter(of).fold(Usd::NONE, |sum, call| sum.plus(call.2))
    }

    fn check(&self, caps: &Caps, hour: Hour) {
        for span in SPANS {
            let most = caps.device.of(span).unwrap();
            assert!(self.spent(None, span, hour) <= most, "{span:?}");
            for app in ["app-0", "app-1", "app-2", "app-3"] {
                let most = caps.of(app).of(span).unwrap();
                assert!(self.spent(Some(app), span, hour) <= most, "{app} {span:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The test's own books, in which every call has cost what it really did and every one that is
    /// not known the most, never pass a cap; and those on disk say the same.
    #[test]
    fn no_cap_is_ever_passed(steps in prop::collection::vec(step(), 1..120)) {
        let mut scheduler = scheduler_with(caps());
        let mut truth = Truth::default();
        let mut tokens = BTreeMap::new();
        let (mut now, mut clock, mut seen) = (Time(0), 86_400_u64 * 20_000, Hour::default());
        for (n, step) in steps.into_iter().enumerate() {
            let event = match step {
                Step::Ask { app, tokens: most, mode } => {
                    tokens.insert(n as u64, (format!("app-{app}"), most));
                    let due = now + Duration::from_secs(2_000);
                    Event::Arrived(spec(n as u64, app, most, mode, due))
                }
                Step::End { used, fault } => {
                    let Some((job, (at, _, most))) = truth.running.pop_first() else { continue };
                    let used = (f64::from(most) * used) as u32;
                    let (outcome, cost) = ending_of(fault, used, most);
                    if let Some(at) = at {
                        truth.calls[at].2 = cost;
                    }
                    Event::Ended { job: JobId(job), outcome }
                }
                Step::Gone { nth } => {
                    let Some(job) = truth.running.keys().nth(nth).copied() else { continue };
                    Event::Gone(JobId(job))
                }
                Step::Pass { seconds } => {
                    now = now + Duration::from_secs(u64::from(seconds));
                    clock += u64::from(seconds);
                    Event::Tick
                }
                Step::Back { hours } => {
                    clock -= u64::from(hours) * 3600;
                    Event::Tick
                }
                Step::Crash => {
                    let mut books = SpendingAccount::default();
                    truth.on_disk.iter().for_each(|line| books.write(line));
                    // the last hour that was written down
                    seen = books.now();
                    scheduler = Scheduler::new(cards()).with_budget(caps(), books);
                    for profile in cards() {
                        scheduler.handle_event(Event::Up(profile), now);
                    }
                    truth.running.clear();
                    Event::Tick
                }
            };
            // a clock that was set back counts from where it was
            seen = seen.max(Hour::at(clock));
            let turned = scheduler.handle_event(Event::Clock(Hour::at(clock)), now);
            truth.see(turned, &tokens, seen);
            let effects = scheduler.handle_event(event, now);
            truth.see(effects, &tokens, seen);
            truth.check(&caps(), seen);
            for span in SPANS {
                prop_assert_eq!(scheduler.account().spent(None, span), truth.spent(None, span, seen));
            }
        }
    }
}

/// How an attempt ends, and what it has cost at the most.
fn ending_of(fault: u8, used: u32, most: u32) -> (Result<Answered, (Fault, Sent)>, Usd) {
    let unfit = |code| Fault::Rejected(Refusal::new(code, ""));
    let fault = match fault {
        0 => (Fault::unavailable(String::new()), Usd::NONE),
        1 => (unfit(Code::Incapable), Usd::NONE),
        2 => (unfit(Code::Forbidden), cents(most)),
        3 => (Fault::TimedOut(String::new()), cents(most)),
        4 => (Fault::Crashed(String::new()), cents(most)),
        _ => {
            let spent = TokenTimes { completion_tokens: used, ..TokenTimes::default() };
            let answered = Answered { spent: Some(spent), ..Answered::default() };
            return (Ok(answered), cents(used));
        }
    };
    (Err((fault.0, Sent::Nothing)), fault.1)
}

/// The reasons that a record gives where money decides.
#[test]
fn an_empty_purse_is_a_reason() {
    let empty =
        Caps { device: Limits { day: Some(cents(5)), ..Limits::default() }, ..Caps::default() };
    let due = Time(9_000_000);
    let check = |mode, tokens, expected: (&str, Reason)| {
        let mut scheduler = scheduler_with(empty.clone());
        let mut effects =
            scheduler.handle_event(Event::Arrived(spec(1, 0, tokens, mode, due)), Time(0));
        if effects.iter().any(|effect| matches!(effect, Effect::Start { .. })) {
            let ended = Event::Ended { job: JobId(1), outcome: Ok(Answered::default()) };
            effects = scheduler.handle_event(ended, Time(1));
        }
        let settled = effects.into_iter().find_map(|effect| match effect {
            Effect::Settle { decision, verdict, .. } => Some((decision, verdict)),
            _ => None,
        });
        let (decision, verdict) = settled.unwrap();
        assert_eq!((decision.route.name(), decision.reason), expected, "{mode:?} {tokens}");
        if let Verdict::Refused(refusal) = verdict {
            assert_eq!(refusal.code, Code::Unavailable);
            assert!(refusal.message.contains("0.06 USD"), "{refusal}");
            // no day's budget is enough for it
            assert_eq!(refusal.retry_after, None);
        }
    };
    check(Mode::CloudOnly, 5, ("cloud", Reason::Mode));
    check(Mode::CloudOnly, 6, ("none", Reason::Budget));
    check(Mode::PreferCloud, 6, ("local", Reason::Budget));
    check(Mode::PreferLocal, 6, ("local", Reason::Feasible));
}

/// Who can't be paid now waits if a call under way may turn out cheaper.
#[test]
fn who_may_be_paid_later_waits() {
    let five = Limits { day: Some(cents(5)), ..Limits::default() };
    let mut scheduler = scheduler_with(Caps { device: five, ..Caps::default() });
    let ask = |job| Event::Arrived(spec(job, 0, 4, Mode::CloudOnly, Time(9_000_000)));
    let started = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::Start { .. })).count()
    };
    assert_eq!(started(&scheduler.handle_event(ask(1), Time(0))), 1);
    let effects = scheduler.handle_event(ask(2), Time(0));
    assert!(effects.is_empty(), "{effects:?}");
    let spent = Some(TokenTimes { completion_tokens: 1, ..TokenTimes::default() });
    let cheap = Ok(Answered { spent, ..Answered::default() });
    let effects = scheduler.handle_event(Event::Ended { job: JobId(1), outcome: cheap }, Time(1));
    assert_eq!(started(&effects), 1, "{effects:?}");
}

/// Whatever a backend states of its answer, the bill is at most the hold; and a backend without a price
/// bills nothing.
#[test]
fn no_statement_costs_more_than_was_held() {
    let due = Time(9_000_000);
    for (mode, held) in [(Mode::CloudOnly, cents(7)), (Mode::LocalOnly, Usd::NONE)] {
        let mut scheduler = scheduler_with(caps());
        scheduler.handle_event(Event::Arrived(spec(1, 0, 7, mode, due)), Time(0));
        assert_eq!(scheduler.account().spent(None, SPANS[0]), held);
        let most = u32::MAX;
        let spent = TokenTimes {
            prompt_tokens: most,
            completion_tokens: most,
            cached_tokens: most,
            forced_tokens: most,
            prefill_ms: f64::NAN,
            decode_ms: f64::NEG_INFINITY,
        };
        let outcome = Ok(Answered { cost: Usd::MOST, spent: Some(spent), ..Answered::default() });
        scheduler.handle_event(Event::Ended { job: JobId(1), outcome }, Time(1));
        for span in SPANS {
            assert_eq!(scheduler.account().spent(None, span), held, "{mode:?} {span:?}");
        }
    }
}

/// A cloud whose answers cost what was held for them: half a dollar.
fn half_a_dollar(url: &str) -> Value {
    let mut big = entry(url);
    big["price"] = json!({"input": 0, "output": 1000});
    (big["max_output_tokens"], big["silence_ms"]) = (json!(500), json!(60_000));
    big
}

fn catalog(url: &str, budget: &Value) -> Value {
    let mut catalog = crate::support::service::catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["providers"] = json!({"big": half_a_dollar(url)});
    catalog["pilotlight"]["policy"] = json!({"budget": budget});
    catalog
}

/// A client that opens a connection for each request and then closes it, so that every caller gets one of
/// the service's. It is shared: it reads the system's certificates when it is made, and while a thousand did
/// so the first connections passed the time for a request's head.
fn many() -> reqwest::Client {
    pilotlight::net::tls::install_provider();
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

/// Asks until the answer is not that there is no room.
async fn ask_until_told(client: &reqwest::Client, service: &Service) -> Value {
    let far = json!({
        "model": "big", "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"mode": "cloud-only", "deadline_ms": "60000"},
    });
    // bounded by the time of the longest answers
    for _ in 0..3000 {
        let asked = client.post(service.url("/v1/chat/completions")).json(&far).send();
        // on a busy machine a connection may be closed for another before its request has arrived
        let answer = match asked.await {
            Err(error) if error.is_request() => continue,
            answer => answer.unwrap(),
        };
        let reply: Value = answer.json().await.unwrap();
        let reason = reply["pilotlight"]["decision"]["reason"].clone();
        if reply["choices"].is_array() || reason == "budget" {
            return reply;
        }
        assert_eq!(reply["error"]["code"], "busy", "{reply}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("there was never any room")
}

/// A thousand at once at a cap that allows a hundred.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once_pass_no_cap() {
    let cloud = Cloud::start([answer(&["well"])]).await;
    let catalog = catalog(&cloud.url, &json!({"usd_per_day": 50}));
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    let client = many();
    let asking = (0..1000).map(|_| ask_until_told(&client, &service));
    let replies = futures::future::join_all(asking).await;
    let paid = replies.iter().filter(|reply| reply["choices"].is_array()).count();
    assert_eq!((paid, cloud.asked().len()), (100, 100));
    let state = service.state().await.unwrap();
    assert_eq!(state["spent_usd"]["day"], 50.0, "{state}");
}

/// The service is killed while calls are under way; the next one knows what they may have cost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sudden_end_forgets_nothing() {
    let begun = head("200 OK", "text/event-stream", "") + &piece("we");
    let cloud = Cloud::start([answer(&["well"]), answer(&["well"]), Act::Hang(begun.into())]).await;
    let catalog = catalog(&cloud.url, &json!({"usd_per_day": 4}));
    let state = tempfile::tempdir().unwrap();
    let place = [("PILOTLIGHT_STATE", state.path().to_str().unwrap())];
    let mut service = Service::launch(&catalog, "off", &place);
    service.ready_all().await;
    let client = many();
    ask_until_told(&client, &service).await;
    ask_until_told(&client, &service).await;
    let asking = futures::future::join_all((0..4).map(|_| ask_until_told(&client, &service)));
    tokio::select! {
        _ = asking => panic!("a cloud that hangs has answered"),
        () = async {
            while cloud.asked().len() < 6 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    signal(service.child.id().unwrap() as i32, nix::sys::signal::Signal::SIGKILL);
    service.child.wait().await.unwrap();

    let service = Service::launch(&catalog, "off", &place);
    service.ready_all().await;
    let state = service.state().await.unwrap();
    // two answers and four calls of which nothing is known
    assert_eq!(state["spent_usd"]["day"], 3.0, "{state}");
    assert_eq!(state["spent_usd"]["month"], 3.0, "{state}");
    let cloud = Cloud::start([answer(&["well"])]).await;
    drop(service);
    let catalog = self::catalog(&cloud.url, &json!({"usd_per_day": 4}));
    let service = Service::launch(&catalog, "off", &place);
    service.ready_all().await;
    let asking = (0..5).map(|_| ask_until_told(&client, &service));
    let replies = futures::future::join_all(asking).await;
    let paid = replies.iter().filter(|reply| reply["choices"].is_array()).count();
    assert_eq!((paid, cloud.asked().len()), (2, 2), "{replies:?}");
}

/// What can't be written into the books is not spent; without a cap there is nothing to be kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_books_nothing_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("state");
    std::fs::write(&place, "a file where the folder should be").unwrap();
    let place = [("PILOTLIGHT_STATE", place.to_str().unwrap())];
    for (budget, calls) in [(json!({"usd_per_day": 50}), 0), (json!({}), 1)] {
        let cloud = Cloud::start([answer(&["well"])]).await;
        let service = Service::launch(&catalog(&cloud.url, &budget), "off", &place);
        service.ready_all().await;
        let far = json!({"mode": "cloud-only", "deadline_ms": "1500"});
        let prompt = json!([{"role": "user", "content": "hello"}]);
        let ask = json!({"model": "big", "messages": prompt, "metadata": far});
        let (_, reply) = service.chat(ask).await;
        assert_eq!(reply["choices"].is_array(), calls > 0, "{reply}");
        assert_eq!(cloud.asked().len(), calls, "{budget}: {reply}");
    }
}
