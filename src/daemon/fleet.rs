//! Signed configurations: takes updates from the broker, has them checked, and carries out what the state
//! machine of [`crate::fleet::update`] decides: fetch, store, try, keep or go back, and report.

mod checks;
mod pull;
mod requests;
mod stored;
mod trial;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use self::checks::Offered;
use self::pull::Pull;
pub(super) use self::stored::StoredUpdates;
use self::stored::{remote_of, rolled_back_last};
use self::trial::Trial;
use super::core::Core;
use super::reload::Live;
use crate::clock;
use crate::dispatch::Settled;
use crate::fleet::digest::Digest;
use crate::fleet::moment::Moment;
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::signature::Received;
use crate::fleet::update::{ConfigPlace, UpdateEffect, UpdateEvent, UpdateMachine, UpdateStep};
use crate::ingress::updates::UpdateRequest;
use crate::limits::fleet::{PROBE_MAX, SIGNED_BYTES_MAX};
use crate::model::generate::Fault;
use crate::mqtt::{Incoming, Subscription};
use crate::scheduler::Verdict;
use crate::store::slots::{ConfigSlot, DiskFolder, Slots};
use crate::store::trust_file;
use crate::time::Time;

/// The signed configurations of a device with a trust policy.
pub(super) struct Fleet {
    trust_file: PathBuf,
    /// None while a thread writes.
    slots: Option<Slots<DiskFolder>>,
    machine: UpdateMachine,
    started: Instant,
    /// Updates from the broker, if the device has one.
    desired: Option<Subscription>,
    requests: mpsc::Receiver<UpdateRequest>,
    settled: broadcast::Receiver<Arc<Settled>>,
    offered: Option<Offered>,
    /// The downloads of its models.
    pull: Option<Pull>,
    /// The digest of the update whose state is reported.
    reported: Option<Digest>,
    /// An update that came during the trial of another one; it is checked after that.
    waiting: Option<Bytes>,
    trial: Option<Trial>,
}

/// What concerns the signed configurations.
pub(super) enum FleetEvent {
    Message(Incoming),
    Asked(UpdateRequest),
    Settled(Arc<Settled>),
    /// A changed model is down.
    Down(String),
    /// The downloads have ended.
    Pulled(Result<(), String>),
    Tick,
}

impl Fleet {
    /// The signed configurations of a service that has started; updates come from the broker and from
    /// programs of the device.
    pub(super) fn new(
        stored: StoredUpdates,
        (desired, requests): (Option<Subscription>, mpsc::Receiver<UpdateRequest>),
        core: &Core,
    ) -> Fleet {
        let StoredUpdates { trust_file, trust, slots } = stored;
        let mut machine = UpdateMachine::default();
        machine.set_bounds(trust.trial);
        Fleet {
            trust_file,
            slots: Some(slots),
            machine,
            started: clock::now(),
            desired,
            requests,
            settled: core.dispatch.settled(),
            offered: None,
            pull: None,
            reported: None,
            waiting: None,
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
            Some((slot.version, slot.update, tries_left))
        });
        if let Some((version, update, tries_left)) = found {
            self.reported = Some(update);
            tracing::warn!(
                version,
                tries_left,
                "a configuration was on trial when the service ended"
            );
            let found = UpdateEvent::Found { version, tries_left };
            Box::pin(self.handle(found, live, core)).await;
        } else if let Some((version, update, reason)) =
            self.slots.as_ref().and_then(rolled_back_last)
        {
            // the manager of the fleet would else wait for an answer: the update is not tried again
            self.machine.restore(version, reason);
            self.reported = update;
            live.report(&self.machine.report(), update);
        } else {
            // the one that the operator may take back
            self.reported =
                self.slots.as_ref().and_then(|slots| slots.live().remote()).map(|slot| slot.update);
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
        let desired = async {
            match &mut self.desired {
                Some(desired) => desired.recv().await,
                None => std::future::pending().await,
            }
        };
        let pulled = async {
            match &mut self.pull {
                Some(pull) => pull.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = pulled => FleetEvent::Pulled(result),
            Some(message) = desired => FleetEvent::Message(message),
            Some(request) = self.requests.recv() => FleetEvent::Asked(request),
            settled = settled => FleetEvent::Settled(settled),
            name = down => FleetEvent::Down(name),
            () = tick => FleetEvent::Tick,
        }
    }

    /// Does what the event asks for.
    pub(super) async fn take(&mut self, event: FleetEvent, live: &mut Live, core: &mut Core) {
        let event = match event {
            FleetEvent::Message(message) => {
                message.ack.ack();
                self.receive(message.payload, live, core).await;
                None
            }
            FleetEvent::Asked(request) => {
                self.answer(request, live, core).await;
                None
            }
            FleetEvent::Settled(settled) => self.job_event(&settled),
            FleetEvent::Down(name) => {
                Some(UpdateEvent::Failed(format!("the changed model {name} has ended")))
            }
            FleetEvent::Pulled(result) => {
                self.pull = None;
                Some(UpdateEvent::Done(UpdateStep::Pull, result))
            }
            FleetEvent::Tick => Some(UpdateEvent::Tick),
        };
        if let Some(event) = event {
            Box::pin(self.handle(event, live, core)).await;
        }
        if self.machine.is_idle()
            && let Some(waiting) = self.waiting.take()
        {
            self.receive(Ok(waiting), live, core).await;
        }
    }

    /// Takes an update from the broker, or the length of one that is too large.
    async fn receive(&mut self, payload: Result<Bytes, usize>, live: &mut Live, core: &mut Core) {
        // the retained message was removed
        if payload.as_ref().is_ok_and(Bytes::is_empty) {
            return;
        }
        let result = self.consider(payload.as_deref().map_err(|bytes| *bytes), live, core).await;
        if let (Err(UpdateRefusal::Busy { version }), Ok(payload)) = (result, payload) {
            tracing::info!(version, "an update waits for the end of the trial of this version");
            self.waiting = Some(payload);
        }
    }

    /// Checks signature and envelope of an update, or of the length of one that is too large, and goes on
    /// with it.
    ///
    /// # Errors
    /// Why its envelope is refused.
    async fn consider(
        &mut self,
        update: Result<&[u8], usize>,
        live: &mut Live,
        core: &mut Core,
    ) -> Result<(), UpdateRefusal> {
        self.see().await;
        let most = SIGNED_BYTES_MAX;
        let accepted = match update {
            Ok(bytes) => self.accept(bytes, live),
            Err(bytes) => Err(UpdateRefusal::TooLarge { bytes, most }),
        };
        let pulled = self.pull.as_ref().and(self.machine.report().version);
        let (event, result) = match accepted {
            // the broker delivers it again while its models are downloaded
            Ok(offered) if pulled.is_some() && self.reported == Some(offered.verified.digest) => {
                return Ok(());
            }
            // an older one, retained on another topic, waits as during a trial
            Ok(offered) if pulled >= Some(offered.verified.envelope.version.into()) => {
                return Err(UpdateRefusal::Busy { version: pulled.unwrap_or_default() });
            }
            Ok(offered) => (self.offer(offered), Ok(())),
            Err(busy @ UpdateRefusal::Busy { .. }) => return Err(busy),
            Err(refusal) => {
                let event = UpdateEvent::Refused { version: None, refusal: refusal.clone() };
                (event, Err(refusal))
            }
        };
        // an update that the machine does not take is not what it reports
        if !self.machine.clone().handle(event.clone(), self.now()).is_empty() {
            let received = update.ok().and_then(|bytes| Received::of(bytes).ok());
            self.reported = received.map(|received| Digest::of(received.update));
        }
        Box::pin(self.handle(event, live, core)).await;
        result
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

    /// Goes on with an update whose envelope is accepted.
    fn offer(&mut self, offered: Offered) -> UpdateEvent {
        let version = offered.verified.envelope.version.into();
        let place = if offered.text.is_some() { ConfigPlace::Inline } else { ConfigPlace::Remote };
        let key = &offered.verified.authority.key;
        tracing::info!(version, key, "an update is accepted for its trial");
        self.offered = Some(offered);
        UpdateEvent::Verified { version, place }
    }

    /// Handles an event; returns why the last step failed, if one did.
    async fn handle(
        &mut self,
        event: UpdateEvent,
        live: &mut Live,
        core: &mut Core,
    ) -> Option<String> {
        let mut failure = None;
        let mut effects = VecDeque::from(self.machine.handle(event, self.now()));
        // bounded by the states of the machine, each of which is left once
        while let Some(effect) = effects.pop_front() {
            let Some(event) = self.carry_out(effect, live, core).await else { continue };
            if let UpdateEvent::Done(_, Err(why)) = &event {
                failure = Some(why.clone());
            }
            effects.extend(self.machine.handle(event, self.now()));
        }
        failure
    }

    async fn carry_out(
        &mut self,
        effect: UpdateEffect,
        live: &mut Live,
        core: &mut Core,
    ) -> Option<UpdateEvent> {
        let done = |step, result| Some(UpdateEvent::Done(step, result));
        match effect {
            UpdateEffect::Report => live.report(&self.machine.report(), self.reported),
            UpdateEffect::Fetch => {
                let offered = self.offered.as_mut()?;
                return done(UpdateStep::Fetch, offered.fetch().await);
            }
            UpdateEffect::Check => {
                let offered = self.offered.as_ref()?;
                let version = Some(offered.verified.envelope.version.into());
                return Some(match self.check(offered, live).await {
                    Ok(()) => UpdateEvent::Accepted,
                    Err(refusal) => UpdateEvent::Refused { version, refusal },
                });
            }
            UpdateEffect::Pull => return self.begin_pull(live),
            UpdateEffect::EndPull => {
                if let Some(pull) = self.pull.take() {
                    pull.end().await;
                }
            }
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
            UpdateEffect::RollBack { steps_down } => {
                let back = self.roll_back(steps_down, live, core).await;
                return done(UpdateStep::RollBack, back);
            }
        }
        None
    }

    /// Begins to download the models of the update; the step has ended if there are none.
    fn begin_pull(&mut self, live: &Live) -> Option<UpdateEvent> {
        match self.models_of(live) {
            Ok(Some(pull)) => {
                self.pull = Some(pull);
                None
            }
            Ok(None) => Some(UpdateEvent::Done(UpdateStep::Pull, Ok(()))),
            Err(why) => Some(UpdateEvent::Done(UpdateStep::Pull, Err(why))),
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
