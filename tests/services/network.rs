//! A network that is slow, or goes without a word: name servers, and lines that are dead and don't say so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::cloud::{Cloud, answer, open_as, trusting};
use crate::support::contract::{job, run};
use crate::support::figures::{median, memory, threads};
use crate::support::network::{Far, NameServer, Naming, in_own_network, ip};
use crate::support::pace::{stretched, watch};
use crate::support::service::Service;
use crate::support::storm;
use futures::StreamExt;
use pilotlight::model::generate::{Fault, Generate};
use serde_json::{Value, json};

/// Asked at the same time.
const AT_ONCE: usize = 16;
/// The same where none shall wait for another: as many as a provider's entry allows.
const SLOTS: usize = 8;

/// What `count` requests of one model came to, each with its time.
async fn ask(model: &dyn Generate, count: usize) -> Vec<(Result<String, Fault>, Duration)> {
    let one = async |_| {
        let began = Instant::now();
        let said = run(model, &job("hello", 4)).await;
        (said.map(|(text, _)| text), began.elapsed())
    };
    futures::stream::iter(0..count).map(one).buffer_unordered(AT_ONCE).collect().await
}

/// Says how long they took, and gives the longest.
fn took(what: &str, asked: &[(Result<String, Fault>, Duration)]) -> Duration {
    let mut ms: Vec<f64> = asked.iter().map(|(_, took)| took.as_secs_f64() * 1e3).collect();
    let longest = asked.iter().map(|(_, took)| *took).max().unwrap();
    let answered = asked.iter().filter(|(said, _)| said.is_ok()).count();
    let middle = median(&mut ms);
    println!(
        "{what}: {answered} of {} answered, median {middle:.1} ms, longest {longest:?}",
        ms.len()
    );
    longest
}

/// The entry of a provider that proves itself by this certificate, and how long it may be silent.
fn trusted(url: &str, certificate: &str, silence_ms: u64) -> (Value, tempfile::TempDir) {
    let (mut entry, folder) = trusting(url, certificate);
    entry["silence_ms"] = json!(silence_ms);
    (entry, folder)
}

#[test]
fn a_slow_name_server_is_waited_for_once() {
    in_own_network("network::a_slow_name_server_is_waited_for_once", async {
        let names = NameServer::start(Naming::Never).await;
        let (cloud, certificate) = Cloud::start_named("cloud.test", [answer(&["x"])]).await;
        let (entry, _folder) = trusted(&cloud.url, &certificate, 400);
        let model = open_as(&entry);
        watch();
        let me = std::process::id();
        let (before, resident) = (threads(me), memory(me).resident);

        let asked = ask(model.as_ref(), storm()).await;
        let longest = took("name server silent", &asked);
        let most = Duration::from_millis(400) + stretched(Duration::from_secs(1));
        assert!(longest < most, "{longest:?}");
        // away: the system has given up by itself
        let told =
            |said: &Result<_, Fault>| matches!(said.as_ref().unwrap_err().name(), "hung" | "away");
        assert!(asked.iter().all(|(said, _)| told(said)), "{asked:?}");
        let more = threads(me) - before;
        assert!(more <= 1, "{more} threads more: one lookup at a time");
        let grown = memory(me).resident - resident;
        println!("{more} threads and {grown:.1} MiB more, {} queries", names.asked());

        names.now(Naming::Fails);
        let (entry, _folder) = trusted(&cloud.url, &certificate, 2000);
        let model = open_as(&entry);
        let asked = ask(model.as_ref(), storm()).await;
        took("name server fails", &asked);
        let told = |said: &Result<_, Fault>| said.as_ref().unwrap_err().name() == "away";
        assert!(asked.iter().all(|(said, _)| told(said)), "{asked:?}");

        for ms in [200, 0] {
            names.now(Naming::After(Duration::from_millis(ms)));
            let asked = ask(model.as_ref(), storm()).await;
            took(&format!("name server after {ms} ms"), &asked);
            assert!(asked.iter().all(|(said, _)| said.is_ok()), "{asked:?}");
        }
        // the addresses from before are good enough
        for manner in [Naming::Fails, Naming::Never] {
            names.now(manner);
            let asked = ask(model.as_ref(), storm()).await;
            let longest = took(&format!("known from before, now {manner:?}"), &asked);
            assert!(asked.iter().all(|(said, _)| said.is_ok()), "{asked:?}");
            let most = Duration::from_millis(500) + stretched(Duration::from_secs(1));
            assert!(longest < most, "{longest:?}");
        }
    });
}

/// What the service told those of `count` askers who got no answer; each has heard in time.
async fn failed(service: &Service, count: usize, deadline_ms: u64) -> Vec<Value> {
    let one = async |n: usize| {
        let (status, answer) = service.cloud_in_time(&format!("request {n}"), deadline_ms).await;
        (status != 200).then_some(answer)
    };
    let told = futures::stream::iter(0..count).map(one).buffer_unordered(SLOTS);
    told.filter_map(futures::future::ready).collect().await
}

#[test]
fn a_service_lives_with_a_slow_name_server() {
    in_own_network("network::a_service_lives_with_a_slow_name_server", async {
        let names = NameServer::start(Naming::Never).await;
        let (cloud, certificate) = Cloud::start_named("cloud.test", [answer(&["x"])]).await;
        let (entry, _folder) = trusted(&cloud.url, &certificate, 30_000);
        let catalog =
            json!({"pilotlight": {"providers": {"big": entry}, "device": {"name": "dev"}}});
        let service = Service::launch(&catalog, "off", &[("PILOTLIGHT_LOG", "error")]);
        service.ready().await;
        let pid = service.child.id().unwrap();
        let (before, resident) = (threads(pid), memory(pid).resident);
        assert_eq!(failed(&service, storm(), 800).await.len(), storm());
        let (more, grown) = (threads(pid) - before, memory(pid).resident - resident);
        println!("name server silent: all ended, {more} threads and {grown:.1} MiB more");
        // the lookup, and what the service does beside
        assert!(more <= 3, "{more} threads more");

        names.now(Naming::After(Duration::from_millis(100)));
        let back = Instant::now();
        // the system's resolver asks again after 5 s, the model has to rest before it is tried, and is
        // not asked by many at once at first
        for (what, count) in [("answered", 1), ("all answered", SLOTS)] {
            while !failed(&service, count, 3000).await.is_empty() {
                let most = stretched(Duration::from_secs(40));
                assert!(back.elapsed() < most, "it is not found again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            println!("{what} again after {:?}", back.elapsed());
        }
        for manner in [Naming::After(Duration::from_millis(300)), Naming::Never] {
            names.now(manner);
            let failed = failed(&service, storm(), 3000).await;
            println!("now {manner:?}: {} of {} answered", storm() - failed.len(), storm());
            assert!(failed.is_empty(), "{failed:?}");
        }
        let began = Instant::now();
        assert!(service.stop().await, "it did not end well");
        assert!(began.elapsed() < stretched(Duration::from_secs(3)), "it waited for a name server");
    });
}

#[test]
fn a_service_ends_though_its_broker_is_still_looked_up() {
    in_own_network("network::a_service_ends_though_its_broker_is_still_looked_up", async {
        let names = NameServer::start(Naming::Never).await;
        let catalog = crate::support::service::catalog(&["--scripted", "small"]);
        let service = Service::launch(&catalog, "mqtt://broker.test", &[]);
        service.until("looking for its broker", |_| names.asked() > 0).await;
        let began = Instant::now();
        assert!(service.stop().await, "it did not end well");
        assert!(
            began.elapsed() < stretched(Duration::from_secs(3)),
            "it took {:?}",
            began.elapsed()
        );
    });
}

/// The board goes from one network to another, and its lines from before are dead without a word.
#[test]
fn a_line_that_died_without_a_word_is_given_up() {
    in_own_network("network::a_line_that_died_without_a_word_is_given_up", async {
        watch();
        let far = Far::start();
        let address = |n: usize| format!("10.9.0.{}/24", 10 + n % 2);
        ip(&format!("addr add {} dev near", address(0)));
        let (entry, _folder) = trusted(&far.url, &far.certificate, 500);
        let model: Arc<dyn Generate> = open_as(&entry);
        for _ in 0..2 {
            let asked = ask(model.as_ref(), 1).await;
            assert!(asked[0].0.is_ok(), "{asked:?}");
        }
        let asked = ask(model.as_ref(), storm()).await;
        took("one network", &asked);
        assert!(asked.iter().all(|(said, _)| said.is_ok()), "{asked:?}");
        assert_eq!(far.opened(), 1, "one line is used again and again");
        let (mut lost, mut dead) = (0, Vec::new());
        for n in 1.. {
            ip(&format!("addr del {} dev near", address(n - 1)));
            ip(&format!("addr add {} dev near", address(n)));
            let roamed = Instant::now();
            loop {
                let asked = ask(model.as_ref(), AT_ONCE).await;
                let longest = asked.iter().map(|(_, took)| *took).max().unwrap();
                let most = Duration::from_millis(500) + stretched(Duration::from_secs(1));
                assert!(longest < most, "{longest:?}");
                let ok = asked.iter().filter(|(said, _)| said.is_ok()).count();
                lost += AT_ONCE - ok;
                if ok == AT_ONCE {
                    break;
                }
                assert!(
                    roamed.elapsed() < stretched(Duration::from_secs(10)),
                    "the dead line is still used"
                );
            }
            dead.push(roamed.elapsed().as_secs_f64());
            if lost >= storm() {
                break;
            }
        }
        println!(
            "{} times to another network: {lost} requests lost, each told in time; answered again after {:.1} s",
            dead.len(),
            median(&mut dead)
        );
        assert!(far.opened() > dead.len(), "the line from before came back");
    });
}
