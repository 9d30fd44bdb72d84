//! Signed configurations: takes updates from the broker, has them checked, and carries out what the state
//! machine of [`crate::fleet::update`] decides: fetch, store, try, keep or go back, and report.

mod trial;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use self::trial::Trial;
use super::core::Core;
use super::reload::Live;
use crate::clock;
use crate::config::Config;
use crate::config::source::{RemoteConfig, local_value};
use crate::dispatch::Settled;
use crate::fleet::check;
use crate::fleet::check::Verified;
use crate::fleet::digest::Digest;
use crate::fleet::envelope::UpdateConfig;
use crate::fleet::local::LocalConfig;
use crate::fleet::moment::Moment;
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::signature::Received;
use crate::fleet::trust::Trust;
use crate::fleet::update::{ConfigPlace, UpdateEffect, UpdateEvent, UpdateMachine, UpdateStep};
use crate::limits::CONFIG_BYTES_MAX;
use crate::limits::fleet::{PROBE_MAX, SIGNATURE_BYTES_MAX, UPDATE_BYTES_MAX};
use crate::model::generate::Fault;
use crate::mqtt::{Incoming, Subscription};
use crate::net::public;
use crate::scheduler::Verdict;
use crate::store::slots::{ConfigSlot, DiskFolder, FOLDER, Slots};
use crate::store::{files, trust_file};
use crate::time::Time;

/// The signed configurations of a device with a trust policy.
pub(super) struct Fleet {
    trust_file: PathBuf,
    /// None while a thread writes.
    slots: Option<Slots<DiskFolder>>,
    machine: UpdateMachine,
    started: Instant,
    desired: Subscription,
    settled: broadcast::Receiver<Arc<Settled>>,
    offered: Option<Offered>,
    trial: Option<Trial>,
}

/// An update whose envelope is accepted.
struct Offered {
    verified: Verified,
    trust: Arc<Trust>,
    /// Its configuration, once it is here.
    text: Option<String>,
}

/// The state on disk, and the configuration that counts.
pub(super) struct StoredUpdates {
    trust_file: PathBuf,
    trust: Arc<Trust>,
    slots: Slots<DiskFolder>,
}

/// What concerns the signed configurations.
pub(super) enum FleetEvent {
    Message(Incoming),
    Settled(Arc<Settled>),
    /// A changed model is down.
    Down(String),
    Tick,
}

impl StoredUpdates {
    /// Opens the state of a device with a trust policy; none without one, or if it can't be used, which is
    /// in the log.
    pub(super) fn open(config: &Config) -> Option<StoredUpdates> {
        let trust_file = config.trust.clone()?;
        let Some(state) = &config.state else {
            tracing::error!("remote configurations need a state folder; set PILOTLIGHT_STATE");
            return None;
        };
        let trust = match trust_file::read(&trust_file) {
            Ok(trust) => Arc::new(trust),
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!("remote configurations are refused: {mistake}");
                }
                return None;
            }
        };
        match DiskFolder::to_write(&state.join(FOLDER)).and_then(Slots::open) {
            Ok(slots) => {
                for damage in &slots.damages {
                    tracing::warn!("{damage}");
                }
                Some(StoredUpdates { trust_file, trust, slots })
            }
            Err(error) => {
                tracing::error!(%error, "the state of remote configurations can't be used");
                None
            }
        }
    }

    /// The fleet of the device.
    pub(super) fn fleet(&self) -> Option<&str> {
        self.trust.fleet.as_deref()
    }

    /// The remote configuration that counts; none if a program that it names has changed, which is in the
    /// log.
    pub(super) fn live(&self) -> Option<RemoteConfig> {
        let slot = self.slots.live().remote()?;
        let checked = trust_file::check_programs(&check::commands_of(&slot.config, &self.trust));
        if let Err(error) = checked {
            let version = slot.version;
            tracing::error!(version, %error, "the signed update is not used, the local file is");
            return None;
        }
        Some(remote_of(slot, &self.trust))
    }
}

fn remote_of(slot: &ConfigSlot, trust: &Arc<Trust>) -> RemoteConfig {
    let (version, text) = (slot.version, slot.config.clone());
    RemoteConfig { version, text, trust: Arc::clone(trust) }
}

impl Fleet {
    /// The signed configurations of a service that has started; updates come from `desired`.
    pub(super) fn new(stored: StoredUpdates, desired: Subscription, core: &Core) -> Fleet {
        let StoredUpdates { trust_file, trust, slots } = stored;
        let mut machine = UpdateMachine::default();
        machine.set_bounds(trust.trial);
        Fleet {
            trust_file,
            slots: Some(slots),
            machine,
            started: clock::now(),
            desired,
            settled: core.dispatch.settled(),
            offered: None,
            trial: None,
        }
    }

    /// Keeps the latest time that was seen: a clock that is set back makes no old update valid again.
    async fn see(&mut self) {
        if let Err(error) = self.on_disk(|slots| slots.see(now())).await {
            tracing::warn!(error, "the latest time seen can't be written");
        }
    }

    /// Goes on with the trial that the last start of the service has not ended.
    pub(super) async fn begin(&mut self, live: &mut Live, core: &mut Core) {
        self.see().await;
        let found = self.slots.as_ref().and_then(|slots| {
            let (slot, tries_left) = slots.on_trial()?;
            Some((slot.version, tries_left))
        });
        if let Some((version, tries_left)) = found {
            tracing::warn!(
                version,
                tries_left,
                "a configuration was on trial when the service ended"
            );
            self.handle(UpdateEvent::Found { version, tries_left }, live, core).await;
        }
    }

    /// Waits for what concerns the signed configurations.
    pub(super) async fn next(&mut self) -> FleetEvent {
        let wake =
            self.machine.wake_at().map(|at| self.started + std::time::Duration::from_micros(at.0));
        let tick = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let is_watching = self.trial.as_ref().is_some_and(Trial::is_adopted);
        let down = async {
            match &self.trial {
                Some(trial) if is_watching => trial.a_model_is_down().await,
                Some(_) | None => std::future::pending().await,
            }
        };
        let settled = async {
            // bounded by the feed: what was missed is passed over
            loop {
                match self.settled.recv().await {
                    Ok(settled) if is_watching => return settled,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return std::future::pending().await,
                }
            }
        };
        tokio::select! {
            Some(message) = self.desired.recv() => FleetEvent::Message(message),
            settled = settled => FleetEvent::Settled(settled),
            name = down => FleetEvent::Down(name),
            () = tick => FleetEvent::Tick,
        }
    }

    /// Does what the event asks for.
    pub(super) async fn take(&mut self, event: FleetEvent, live: &mut Live, core: &mut Core) {
        let event = match event {
            FleetEvent::Message(message) => {
                self.see().await;
                self.received(message, live)
            }
            FleetEvent::Settled(settled) => self.job_event(&settled),
            FleetEvent::Down(name) => {
                Some(UpdateEvent::Failed(format!("the changed model {name} has ended")))
            }
            FleetEvent::Tick => Some(UpdateEvent::Tick),
        };
        if let Some(event) = event {
            self.handle(event, live, core).await;
        }
    }

    /// A job of the trial: good, or failed by a changed model.
    fn job_event(&self, settled: &Settled) -> Option<UpdateEvent> {
        let is_changed = |server: &String| self.trial.as_ref().is_some_and(|t| t.has(server));
        match &settled.verdict {
            Verdict::Done => Some(UpdateEvent::GoodJob),
            Verdict::Failed(Fault::Crashed(_) | Fault::TimedOut(_) | Fault::ProtocolError(_)) => {
                let server = settled.server.as_ref().filter(|server| is_changed(server))?;
                Some(UpdateEvent::Failed(format!(
                    "the changed model {server} has failed a request"
                )))
            }
            Verdict::Failed(_) | Verdict::Refused(_) | Verdict::Expired | Verdict::Cancelled => {
                None
            }
        }
    }

    /// Checks signature and envelope of an update.
    fn received(&mut self, message: Incoming, live: &Live) -> Option<UpdateEvent> {
        message.ack.ack();
        let payload = match message.payload {
            // the retained message was removed
            Ok(payload) if payload.is_empty() => return None,
            Ok(payload) => payload,
            Err(bytes) => {
                let most = SIGNATURE_BYTES_MAX + UPDATE_BYTES_MAX;
                let refusal = UpdateRefusal::TooLarge { bytes, most };
                return Some(UpdateEvent::Refused { version: None, refusal });
            }
        };
        let trust = match trust_file::read(&self.trust_file) {
            Ok(trust) => Arc::new(trust),
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!("an update is not taken: {mistake}");
                }
                return None;
            }
        };
        self.machine.set_bounds(trust.trial);
        let config = live.local();
        let file = files::read(&config.path, CONFIG_BYTES_MAX).unwrap_or_default();
        let group = config.catalog.device.group.as_deref();
        let slots = self.slots.as_ref()?;
        let memory = slots.memory(&config.device, group, now(), Digest::of(&file));
        let checked =
            Received::of(&payload).and_then(|received| check::check(&received, &trust, &memory));
        let verified = match checked {
            Ok(verified) => verified,
            Err(refusal) => return Some(UpdateEvent::Refused { version: None, refusal }),
        };
        let version = verified.envelope.version.into();
        let (text, place) = match &verified.envelope.config {
            UpdateConfig::Inline(text) => (Some(text.clone()), ConfigPlace::Inline),
            UpdateConfig::Url(_) => (None, ConfigPlace::Remote),
        };
        tracing::info!(
            version,
            key = verified.authority.key,
            "an update is accepted for its trial"
        );
        self.offered = Some(Offered { verified, trust, text });
        Some(UpdateEvent::Verified { version, place })
    }

    async fn handle(&mut self, event: UpdateEvent, live: &mut Live, core: &mut Core) {
        let mut effects = VecDeque::from(self.machine.handle(event, self.now()));
        // bounded by the states of the machine, each of which is left once
        while let Some(effect) = effects.pop_front() {
            let result = self.carry_out(effect, live, core).await;
            if let Some(event) = result {
                effects.extend(self.machine.handle(event, self.now()));
            }
        }
    }

    async fn carry_out(
        &mut self,
        effect: UpdateEffect,
        live: &mut Live,
        core: &mut Core,
    ) -> Option<UpdateEvent> {
        let done = |step, result| Some(UpdateEvent::Done(step, result));
        match effect {
            UpdateEffect::Report => live.report(&self.machine.report()),
            UpdateEffect::Fetch => return done(UpdateStep::Fetch, self.fetch().await),
            UpdateEffect::Check => return Some(self.check(live).await),
            UpdateEffect::Stage => return done(UpdateStep::Stage, self.stage().await),
            UpdateEffect::BeginTry => {
                return match self.on_disk(Slots::begin_try).await {
                    Ok(Some(tries_left)) => Some(UpdateEvent::TryBegun { tries_left }),
                    Ok(None) => done(UpdateStep::BeginTry, Err("no try is left".to_owned())),
                    Err(why) => done(UpdateStep::BeginTry, Err(why)),
                };
            }
            UpdateEffect::Switch => return done(UpdateStep::Switch, self.start(live, core).await),
            UpdateEffect::Probe => {
                let trial = self.trial.as_ref()?;
                let answered = tokio::time::timeout(PROBE_MAX, trial.probe()).await;
                let late = || Err("a changed model did not answer in time".to_owned());
                return done(UpdateStep::Probe, answered.unwrap_or_else(|_| late()));
            }
            UpdateEffect::RunGolden => {
                let trial = self.trial.as_mut()?;
                let scored = tokio::time::timeout(PROBE_MAX, trial.score(live, core)).await;
                return Some(scored.map_or(UpdateEvent::Tick, UpdateEvent::Golden));
            }
            UpdateEffect::Adopt => {
                if let Some(trial) = &mut self.trial {
                    trial.adopt(live, core).await;
                }
                self.settled = core.dispatch.settled();
            }
            UpdateEffect::Keep => {
                let kept = self.on_disk(|slots| slots.keep(now())).await;
                if kept.is_ok()
                    && let Some(trial) = self.trial.take()
                {
                    live.keep(trial.remote);
                }
                return done(UpdateStep::Keep, kept);
            }
            UpdateEffect::Drop { why } => {
                tracing::error!(why, "the configuration on trial is dropped");
                if let Err(error) = self.on_disk(move |slots| slots.drop_trial(&why, now())).await {
                    tracing::error!(error, "the state of remote configurations can't be written");
                }
            }
            UpdateEffect::SwitchBack => {
                if let Some(trial) = self.trial.take() {
                    trial.go_back(live, core).await;
                }
            }
            UpdateEffect::RollBack => {
                let back = self.on_disk(|slots| slots.roll_back(false, now())).await;
                return done(UpdateStep::RollBack, back);
            }
        }
        None
    }

    async fn fetch(&mut self) -> Result<(), String> {
        let offered = self.offered.as_mut().ok_or("there is no update")?;
        if let UpdateConfig::Url(place) = &offered.verified.envelope.config {
            let fetched = public::fetch(place, &offered.trust.neighbours).await;
            offered.text = Some(fetched.map_err(|error| format!("{error:#}"))?);
        }
        Ok(())
    }

    /// Checks the meaning of the update's configuration, and that this device can load it.
    async fn check(&self, live: &Live) -> UpdateEvent {
        let Some(Offered { verified, trust, text: Some(text) }) = &self.offered else {
            let refusal = UpdateRefusal::WrongContent("there is no configuration".to_owned());
            return UpdateEvent::Refused { version: None, refusal };
        };
        let version = verified.envelope.version.into();
        let refused = |refusal| UpdateEvent::Refused { version: Some(version), refusal };
        let config = live.local();
        let file = match local_value(config) {
            Ok(file) => file,
            Err(why) => return refused(UpdateRefusal::WrongContent(format!("mcp.json: {why}"))),
        };
        let running = self.slots.as_ref().and_then(|slots| slots.live().remote());
        let running = running.and_then(|slot| serde_json::from_str(&slot.config).ok());
        let running = running.unwrap_or_else(|| file.clone());
        let variables = crate::config::variables().unwrap_or_default();
        let local = LocalConfig {
            file: &file,
            catalog: &config.catalog,
            variables: &variables,
            running: &running,
        };
        if let Err(refusal) = check::meaning(verified, text, trust, local) {
            return refused(refusal);
        }
        let commands = check::commands_of(text, trust);
        let work = tokio::task::spawn_blocking(move || trust_file::check_programs(&commands));
        match work.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return refused(UpdateRefusal::WrongContent(error.to_string())),
            Err(error) => return refused(UpdateRefusal::WrongContent(error.to_string())),
        }
        let remote = RemoteConfig { version, text: text.clone(), trust: Arc::clone(trust) };
        match live.check_update(&remote) {
            Ok(_) => UpdateEvent::Accepted,
            Err(mistakes) => refused(UpdateRefusal::BadConfig(mistakes)),
        }
    }

    async fn stage(&mut self) -> Result<(), String> {
        let offered = self.offered.as_ref().ok_or("there is no update")?;
        let text = offered.text.clone().unwrap_or_default();
        let (slot, time) = (ConfigSlot::of(&offered.verified, text), offered.verified.time);
        self.on_disk(move |slots| slots.stage(&slot, time)).await
    }

    /// Starts the models of the configuration on trial.
    async fn start(&mut self, live: &mut Live, core: &mut Core) -> Result<(), String> {
        let trust = match self.offered.take() {
            Some(offered) => offered.trust,
            None => trust_file::read(&self.trust_file).map(Arc::new).map_err(|mistakes| {
                mistakes.first().map(ToString::to_string).unwrap_or_default()
            })?,
        };
        let slots = self.slots.as_ref().ok_or("the state is not there")?;
        let (slot, _) = slots.on_trial().ok_or("no configuration is on trial")?;
        let started = Trial::start(remote_of(slot, &trust), live, core);
        let started = tokio::time::timeout(PROBE_MAX, started).await;
        self.trial = Some(started.map_err(|_| "its models did not start in time")??);
        Ok(())
    }

    /// Changes the state on a thread: each change waits for the disk.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        change: impl FnOnce(&mut Slots<DiskFolder>) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let mut slots = self.slots.take().ok_or("the state is not there")?;
        let work = tokio::task::spawn_blocking(move || {
            let result = change(&mut slots);
            (slots, result)
        });
        let (slots, result) = work.await.map_err(|error| error.to_string())?;
        self.slots = Some(slots);
        result.map_err(|error| error.to_string())
    }

    fn now(&self) -> Time {
        Time::default() + self.started.elapsed()
    }
}

/// The time of the clock.
fn now() -> Moment {
    Moment(clock::since_epoch().as_secs())
}
