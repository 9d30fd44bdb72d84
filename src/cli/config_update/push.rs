//! `config push`: publishes a signed configuration, in stages if wanted, and watches until the devices have
//! kept, refused or rolled it back.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::link::{Link, LinkEvent, settings, take, with};
use super::screen::Screen;
use super::signed::{self, PushedUpdate};
use super::table;
use crate::cli::{BROKE, DONE, WRONG};
use crate::fleet::target::TargetKind;
use crate::limits::rollout::{
    ASKED_AGAIN_EVERY, PUBLISHED_MAX, PUBLISHES_AT_ONCE, PUSH_SECONDS_MAX, PUSH_TIME, REDRAW_EVERY,
    STAGES_MAX,
};
use crate::model::generate::BoxFuture;
use crate::mqtt::{Bus, Outgoing, Undeliverable};
use crate::rollout::devices::Devices;
use crate::rollout::stages::{Ending, Plan, Rollout, RolloutEffect};
use crate::rollout::summary::{NO_ANSWER, NOT_BEGUN, NOT_OFFERED, OFFLINE, Summary};
use crate::rollout::update::{device_topic, topic_of};

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 every device that is there has kept it; 2 some have refused it or rolled it \
                        back; 1 an error, an interruption, or devices that did not end in time."
)]
pub(in crate::cli) struct PushArgs {
    /// update.signed, or update.json with its signature beside it.
    file: PathBuf,
    /// Public key of the signature, or its file (default: the .pub file of this key beside the update or
    /// in the present folder, if there is one).
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// Offer it to this share of the devices at first.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: Option<u8>,
    /// Then to this share, once all devices of the stage before have kept it; can be given several times.
    #[arg(long, value_name = "PERCENT", requires = "percent", value_parser = clap::value_parser!(u8).range(1..=100))]
    then: Vec<u8>,
    /// Stop when more than this many devices have refused it, rolled it back or not ended in time (default:
    /// 0 with --percent, else no limit).
    #[arg(long, value_name = "N")]
    max_failures: Option<usize>,
    /// Longest wait for the devices of a stage; 0 is --no-wait.
    #[arg(long, value_name = "SECONDS", default_value_t = PUSH_TIME.as_secs(), value_parser = clap::value_parser!(u64).range(0..=PUSH_SECONDS_MAX))]
    timeout: u64,
    /// Publish it and do not wait for devices.
    #[arg(long, conflicts_with_all = ["percent", "max_failures"])]
    no_wait: bool,
    /// Print a JSON line for each change, and one with the summary.
    #[arg(long)]
    json: bool,
}

/// Pushes an update.
///
/// # Errors
/// If each device would refuse it, the broker is not reachable or does not take it, or it concerns no
/// device.
pub(super) async fn push(path: Option<&Path>, args: &PushArgs) -> anyhow::Result<u8> {
    let plan = args.plan()?;
    let update = signed::read(&args.file, args.public_key.as_deref())?;
    if update.target.kind() == TargetKind::Device && plan.percents != [100] {
        bail!("the update is for one device, which has no stages; leave out --percent");
    }
    if let Some(warning) = &update.warning {
        print_error!("warning: {warning}");
    }
    let Some(mqtt) = settings(path)? else { return Ok(WRONG) };
    if args.is_blind() {
        return with(&mqtt, false, async |link| args.publish(link, &update).await).await;
    }
    let pushed = async |link: &mut Link| {
        let Some(devices) = link.discover().await? else {
            bail!("interrupted; nothing is published")
        };
        let rollout = Rollout::new(update.target.clone(), update.mark, plan, devices);
        check(&rollout, &update, link)?;
        Pushing::new(link, rollout, &update, args.json).run().await
    };
    with(&mqtt, true, pushed).await
}

impl PushArgs {
    fn is_blind(&self) -> bool {
        self.no_wait || self.timeout == 0
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let percents: Vec<u8> = self.percent.iter().chain(&self.then).copied().collect();
        let is_staged = !percents.is_empty();
        if is_staged && self.is_blind() {
            bail!("a stage begins when the one before is over: --percent needs a --timeout");
        }
        if !percents.is_sorted_by(|one, next| one < next) {
            bail!("each --then must be more than the share before");
        }
        if percents.len() > STAGES_MAX {
            bail!("at most {STAGES_MAX} stages are possible");
        }
        Ok(Plan {
            percents: if is_staged { percents } else { vec![100] },
            max_failures: self.max_failures.or(is_staged.then_some(0)),
            time: Duration::from_secs(self.timeout),
        })
    }

    /// Publishes the update alone.
    async fn publish(&self, link: &Link, update: &PushedUpdate) -> anyhow::Result<u8> {
        let topic = topic_of(&link.prefix, &update.target);
        let version = update.mark.version;
        published(&link.bus, topic.clone(), update.payload.clone()).await?;
        let text = format!("{topic}: version {version} is published");
        let value = json!({"ending": "published", "version": version, "topic": topic});
        Screen::new(self.json, false, false).end(&value, &[text])?;
        Ok(DONE)
    }
}

/// What the devices have reported against this push.
fn check(rollout: &Rollout, update: &PushedUpdate, link: &Link) -> anyhow::Result<()> {
    let (target, version) = (&update.target, update.mark.version);
    let all = rollout.concerned().count();
    if all == 0 {
        let problems = link.bus.report().problems();
        let why = if problems.is_empty() {
            format!(
                "{} others have; see pilotlight config watch. At a broker with access rules the manager \
                 must be allowed to read {}/+/config/reported",
                rollout.devices.reported().count(),
                link.prefix
            )
        } else {
            problems.join("; ")
        };
        bail!("no device of the {target} has reported: {why}. To publish it anyway: --no-wait");
    }
    let is_off = |(name, _)| rollout.devices.is_offline(name);
    if rollout.stage() != (1, 1, 100) && rollout.concerned().all(is_off) {
        bail!(
            "none of the {all} devices is there, and a first stage needs one: push without --percent"
        );
    }
    let outdated: Vec<_> = rollout.outdated().collect();
    let Some((name, report)) = outdated.first() else { return Ok(()) };
    let (count, kept) = (outdated.len(), report.version);
    let text = format!(
        "{count} of {all} devices have kept version {kept} or a higher one, such as {name}, and would \
         refuse version {version} (old-version)"
    );
    if count == all {
        bail!("{text}; sign it with a higher version");
    }
    print_error!("warning: {text}");
    Ok(())
}

/// Publishes a retained message and waits until the broker has acknowledged it.
///
/// # Errors
/// If the broker refuses it or does not answer.
fn published(bus: &Bus, topic: String, payload: Bytes) -> BoxFuture<'static, anyhow::Result<()>> {
    let message = Outgoing { topic: topic.clone(), payload, retain: true, ..Outgoing::default() };
    let sent = bus.publish(message);
    let bus = bus.clone();
    Box::pin(async move {
        let answered = sent.map_err(|_| anyhow::anyhow!("{topic}: the outbox is full"))?;
        let answer = tokio::time::timeout(PUBLISHED_MAX, answered).await;
        let answer = answer.with_context(|| {
            format!("{topic}: the broker has not acknowledged it within {PUBLISHED_MAX:?}")
        })?;
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Undeliverable::TooLarge { size, most })) => {
                bail!(
                    "{topic}: it has {size} bytes, and the broker accepts {most}; raise its maximum"
                )
            }
            Ok(Err(Undeliverable::Refused)) | Err(_) => {
                bail!("the broker has not taken it: {}", bus.report().problems().join("; "))
            }
        }
    })
}

/// A push that is going on.
struct Pushing<'l> {
    link: &'l mut Link,
    rollout: Rollout,
    payload: Bytes,
    target: String,
    version: u64,
    topic: String,
    screen: Screen,
    queue: VecDeque<RolloutEffect>,
    in_flight: FuturesUnordered<BoxFuture<'static, (RolloutEffect, anyhow::Result<()>)>>,
    /// Whether it was sent to the topic of the target, and whether the broker has it there.
    is_sent: bool,
    is_out: bool,
    stage: usize,
    problem: Option<String>,
}

impl<'l> Pushing<'l> {
    fn new(link: &'l mut Link, rollout: Rollout, update: &PushedUpdate, is_json: bool) -> Self {
        Pushing {
            topic: topic_of(&link.prefix, &update.target),
            link,
            rollout,
            payload: update.payload.clone(),
            target: update.target.to_string(),
            version: update.mark.version,
            screen: Screen::new(is_json, true, false),
            queue: VecDeque::new(),
            in_flight: FuturesUnordered::new(),
            is_sent: false,
            is_out: false,
            stage: 0,
            problem: None,
        }
    }

    async fn run(mut self) -> anyhow::Result<u8> {
        let effects = self.rollout.begin(self.link.now());
        self.follow(effects)?;
        let mut asking = tokio::time::interval(ASKED_AGAIN_EVERY);
        asking.reset();
        let mut drawing = tokio::time::interval(REDRAW_EVERY);
        // ends with the roll-out, which has a time limit for each stage
        while self.is_going_on() {
            self.send();
            let until = self.link.at(self.rollout.until());
            let is_open = self.rollout.ending().is_none();
            let is_sending = !self.in_flight.is_empty();
            tokio::select! {
                event = self.link.next() => self.take(event?)?,
                Some((effect, result)) = self.in_flight.next(), if is_sending => match result {
                    Ok(()) if effect == RolloutEffect::OfferAll => self.is_out = true,
                    Ok(()) if effect == RolloutEffect::WithdrawAll => self.is_out = false,
                    Ok(()) => {}
                    Err(error) => self.failed(format!("{error:#}"))?,
                },
                () = tokio::time::sleep_until(until), if is_open => {
                    let effects = self.rollout.tick(self.link.now());
                    self.follow(effects)?;
                }
                _ = asking.tick() => self.link.ask_again(self.rollout.awaited()),
                _ = drawing.tick() => self.draw()?,
            }
        }
        self.finish()
    }

    fn is_going_on(&self) -> bool {
        self.rollout.ending().is_none() || !self.queue.is_empty() || !self.in_flight.is_empty()
    }

    /// Publishes what waits, a few messages at a time: the rest of the outbox is for nobody else, but each
    /// message is as large as the update.
    fn send(&mut self) {
        while self.in_flight.len() < PUBLISHES_AT_ONCE
            && let Some(effect) = self.queue.pop_front()
        {
            let prefix = &self.link.prefix;
            let (topic, payload) = match &effect {
                RolloutEffect::Offer(name) => (device_topic(prefix, name), self.payload.clone()),
                RolloutEffect::OfferAll => {
                    self.is_sent = true;
                    (self.topic.clone(), self.payload.clone())
                }
                RolloutEffect::Withdraw(name) => (device_topic(prefix, name), Bytes::new()),
                RolloutEffect::WithdrawAll => (self.topic.clone(), Bytes::new()),
            };
            let published = published(&self.link.bus, topic, payload);
            self.in_flight.push(Box::pin(async move { (effect, published.await) }));
        }
    }

    /// Takes effects. After the end of the roll-out nothing further is offered: what waits to be sent is
    /// dropped, and was not published.
    fn follow(&mut self, effects: Vec<RolloutEffect>) -> anyhow::Result<()> {
        self.queue.extend(effects);
        if self.rollout.ending().is_some_and(|ending| ending != Ending::Through) {
            let mut unsent = BTreeSet::new();
            self.queue.retain(|effect| match effect {
                RolloutEffect::Offer(name) => {
                    unsent.insert(name.clone());
                    false
                }
                RolloutEffect::OfferAll => false,
                RolloutEffect::Withdraw(_) | RolloutEffect::WithdrawAll => true,
            });
            let is_sent = self.is_sent;
            self.queue.retain(|effect| match effect {
                RolloutEffect::Withdraw(name) => !unsent.contains(name),
                RolloutEffect::WithdrawAll => is_sent,
                RolloutEffect::Offer(_) | RolloutEffect::OfferAll => true,
            });
        }
        let (stage, stages, percent) = self.rollout.stage();
        if stage != self.stage && stages > 1 && self.rollout.ending().is_none() {
            self.stage = stage;
            let text = format!("stage {stage} of {stages}: {percent} % of the devices");
            let value = json!({"stage": stage, "of": stages, "percent": percent});
            self.screen.note("stage", &text, &value)?;
        }
        self.screen.touch();
        Ok(())
    }

    fn take(&mut self, event: LinkEvent) -> anyhow::Result<()> {
        match event {
            LinkEvent::Interrupted => {
                let effects = self.rollout.end(Ending::Interrupted);
                self.follow(effects)
            }
            LinkEvent::Message(message) => {
                let devices: &mut Devices = &mut self.rollout.devices;
                let Some(name) = take(message, &self.link.prefix, devices) else {
                    return Ok(());
                };
                let effects = self.rollout.heard(&name, self.link.now());
                if let Some(state) = self.rollout.state_of(&name)
                    && let Some(report) = self.rollout.devices.report_of(&name)
                {
                    self.screen.change(&name, state, report)?;
                }
                self.follow(effects)
            }
        }
    }

    /// The broker has not taken a message.
    fn failed(&mut self, why: String) -> anyhow::Result<()> {
        self.problem.get_or_insert(why);
        let effects = self.rollout.end(Ending::NotPublished);
        self.follow(effects)
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        let (rollout, head) = (&self.rollout, self.head());
        self.screen.draw(|| {
            let summary = rollout.summary();
            let mut lines = vec![head, table::bar(&summary), table::counts(&summary)];
            lines.extend(table::times(&summary));
            lines.extend(table::reasons(&summary));
            lines
        })?;
        Ok(())
    }

    fn head(&self) -> String {
        let (stage, stages, percent) = self.rollout.stage();
        let count = table::devices(self.rollout.concerned().count());
        let mut head = format!("version {} for the {}, {count}", self.version, self.target);
        if stages > 1 {
            head.push_str(&[", stage ", &stage.to_string(), " of ", &stages.to_string()].concat());
            head.push_str(&[" (", &percent.to_string(), " %)"].concat());
        }
        if let Some(left) = self.rollout.failures_left() {
            head.push_str(&[", ", &left.to_string(), " more may fail"].concat());
        }
        head
    }

    fn finish(mut self) -> anyhow::Result<u8> {
        let summary = self.rollout.summary();
        let ending = self.rollout.ending().unwrap_or(Ending::Interrupted);
        let code = code(ending, &summary);
        let mut lines = vec![self.head(), table::bar(&summary), table::counts(&summary)];
        lines.extend(table::times(&summary));
        lines.extend(table::reasons(&summary));
        lines.extend(self.advice(ending, &summary));
        let value = self.value(ending, &summary, code);
        self.screen.end(&value, &lines)?;
        if let Some(problem) = &self.problem {
            print_error!("error: {problem}");
        }
        Ok(code)
    }

    fn value(&self, ending: Ending, summary: &Summary, code: u8) -> Value {
        let (stage, stages, percent) = self.rollout.stage();
        let mut value = json!({
            "ending": name_of(ending), "exit_code": code, "target": self.target,
            "version": self.version, "topic": self.topic, "is_published": self.is_out,
            "stage": stage, "stages": stages, "percent": percent, "problem": self.problem,
        });
        if let (Some(value), Value::Object(more)) = (value.as_object_mut(), json!(summary)) {
            value.extend(more);
        }
        value
    }

    /// What the end means, and what to do.
    fn advice(&self, ending: Ending, summary: &Summary) -> Vec<String> {
        let mut lines = Vec::new();
        let topic = &self.topic;
        let has_failed = summary.failures() + summary.count(NO_ANSWER) > 0;
        match ending {
            Ending::Stopped => lines.push(
                "stopped: more devices have failed than may (--max-failures). Nothing further is \
                 published, and the topics of this push are cleared"
                    .to_owned(),
            ),
            Ending::Interrupted => {
                lines.push("interrupted; the same push goes on with it".to_owned());
            }
            Ending::NotPublished => lines.push("the broker has not taken all messages".to_owned()),
            Ending::Through => {}
        }
        let missing = summary.count(OFFLINE) + summary.count(NO_ANSWER);
        if self.is_out && (ending != Ending::Through || missing > 0) {
            lines.push(format!(
                "it is on {topic}: devices take it when they connect. To remove it: mosquitto_pub -r -n \
                 -t {topic}"
            ));
        } else if !self.is_out {
            let rest =
                summary.count(NOT_OFFERED) + summary.count(NOT_BEGUN) + summary.count(OFFLINE);
            lines.push(format!("{} not begun, and not offered it any more", table::devices(rest)));
        }
        if has_failed {
            lines.push(
                "what has failed runs the configuration before. Next: mend the configuration, sign it with \
                 a higher version and push it"
                    .to_owned(),
            );
        }
        if has_failed && summary.kept() > 0 {
            lines.push(format!(
                "{} with version {}. To take it back: sign the configuration before with a higher \
                 version and push it, or pilotlight config rollback on the device",
                table::devices(summary.kept()),
                self.version
            ));
        }
        lines
    }
}

fn name_of(ending: Ending) -> &'static str {
    match ending {
        Ending::Through => "through",
        Ending::Stopped => "stopped",
        Ending::Interrupted => "interrupted",
        Ending::NotPublished => "not-published",
    }
}

fn code(ending: Ending, summary: &Summary) -> u8 {
    match ending {
        Ending::Through | Ending::Stopped if summary.failures() > 0 => WRONG,
        Ending::Through if summary.count(NO_ANSWER) == 0 => DONE,
        Ending::Through | Ending::Stopped | Ending::NotPublished | Ending::Interrupted => BROKE,
    }
}
