//! Changes of the set of backends while jobs wait and run.
//!
//! Inside the scheduler a backend is a slot: its index in the vector of backends, in the order of
//! the catalog. A new catalog makes a new vector, and every index that is kept follows it. A
//! removed backend that still runs jobs is *retired*: its slot stands behind those of the catalog,
//! gets no more jobs, and is freed when its last job ends.

use std::collections::BTreeMap;

use super::event::Verdict;
use super::job::JobSpec;
use super::profile::{BackendId, BackendProfile};
use super::queued::{BackendSet, QueuedJob, SLOTS_MAX};
use super::route::{self, Sides};
use super::{BackendSlot, Scheduler};
use crate::decision::{Figures, Reason};
use crate::limits::{REASON_BYTES_MAX, SERVERS_MAX};
use crate::model::context::Locality;
use crate::model::generate::Fault;
use crate::money::Caps;
use crate::request::job::JobId;
use crate::request::refusal::{Refusal, one_line};
use crate::time::Time;

/// The slot of a backend after a change, by its slot before.
type Moves = Vec<Option<usize>>;

impl Scheduler {
    /// The slot of a backend of the catalog.
    pub(super) fn slot_of(&self, server: &str) -> Option<usize> {
        self.backends
            .iter()
            .position(|slot| !slot.retired && slot.profile.server.as_str() == server)
    }

    /// Takes a backend as up, with the profile that it states.
    pub(super) fn up(&mut self, mut profile: BackendProfile, now: Time) {
        let Some(slot) = self.slot_of(profile.server.as_str()) else { return };
        // a model that states the name of another server gets no requests for that server
        profile.model.take_if(|model| self.slot_of(model).is_some_and(|other| other != slot));
        self.rates_of(slot, &profile);
        let known = &mut self.backends[slot];
        known.profile = profile;
        (known.up, known.failed) = (true, None);
        known.width = u32::MAX;
        known.breaker.worked();
        self.sides = Sides::of(&self.backends);
        self.review_waiting(now);
    }

    /// Takes a backend as down.
    pub(super) fn down(&mut self, backend: &BackendId) {
        if let Some(slot) = self.slot_of(backend.as_str()) {
            (self.backends[slot].up, self.backends[slot].failed) = (false, None);
        }
    }

    /// Takes a backend as one that can't be started. Jobs that wait for it alone are refused at once.
    pub(super) fn not_started(&mut self, backend: &BackendId, reason: &str, now: Time) {
        let Some(slot) = self.slot_of(backend.as_str()) else { return };
        let reason = without_folders(&one_line(reason, REASON_BYTES_MAX));
        (self.backends[slot].up, self.backends[slot].failed) = (false, Some(reason));
        self.review_waiting(now);
    }

    /// The name of a backend, and where it is.
    pub(super) fn named(&self, backend: usize) -> (BackendId, Locality) {
        let profile = &self.backends[backend].profile;
        (profile.server.clone(), profile.locality)
    }

    /// Adopts a catalog. Of several backends with the same name the first counts, and of all at most
    /// the first [`SERVERS_MAX`]. Jobs that no backend can do any more are refused.
    pub(super) fn replace_catalog(&mut self, profiles: Vec<BackendProfile>, now: Time) {
        let mut wanted: Vec<BackendProfile> = Vec::new();
        for profile in profiles {
            let is_known = wanted.iter().any(|known| known.server == profile.server);
            if !is_known && wanted.len() < SERVERS_MAX {
                wanted.push(profile);
            }
        }
        let is_same = |slot: &BackendSlot, profile: &BackendProfile| {
            let before = &slot.profile;
            before.server == profile.server && before.locality == profile.locality
        };
        let stays = |slot: &BackendSlot| wanted.iter().any(|profile| is_same(slot, profile));
        let removed = (0..self.backends.len()).filter(|at| !stays(&self.backends[*at]));
        let busy: Vec<usize> = removed.filter(|at| self.running.count_at(*at) > 0).collect();
        let (retired, rest) = busy.split_at(busy.len().min(SLOTS_MAX - wanted.len()));
        for slot in rest {
            self.stop_all_at(*slot, now);
        }

        let mut old: Vec<Option<BackendSlot>> = self.backends.drain(..).map(Some).collect();
        let mut moves: Moves = vec![None; old.len()];
        let mut slots: Vec<BackendSlot> = Vec::new();
        for profile in wanted {
            let same =
                old.iter().position(|slot| slot.as_ref().is_some_and(|s| is_same(s, &profile)));
            let kept = same.and_then(|at| {
                moves[at] = Some(slots.len());
                old[at].take()
            });
            slots.push(match kept {
                Some(mut slot) => {
                    // its entry may have changed; a failure is told again
                    (slot.retired, slot.failed) = (false, None);
                    (slot.profile.price, slot.profile.fallbacks) =
                        (profile.price, profile.fallbacks);
                    slot
                }
                None => BackendSlot::new(profile),
            });
        }
        for at in retired {
            if let Some(mut slot) = old[*at].take() {
                (slot.retired, slot.up) = (true, false);
                moves[*at] = Some(slots.len());
                slots.push(slot);
            }
        }
        self.adopt(slots, &moves, old.into_iter().flatten());
        self.budgets_dirty = true;
        self.review_waiting(now);
    }

    /// Frees the slots of retired backends whose last job has ended.
    pub(super) fn free_retired(&mut self) {
        let is_idle =
            |(at, slot): (usize, &BackendSlot)| slot.retired && self.running.count_at(at) == 0;
        if !self.backends.iter().enumerate().any(is_idle) {
            return;
        }
        let (mut slots, mut gone, mut moves) = (Vec::new(), Vec::new(), Moves::new());
        for (at, slot) in std::mem::take(&mut self.backends).into_iter().enumerate() {
            let is_idle = slot.retired && self.running.count_at(at) == 0;
            moves.push((!is_idle).then_some(slots.len()));
            if is_idle { gone.push(slot) } else { slots.push(slot) }
        }
        self.adopt(slots, &moves, gone.into_iter());
    }

    /// Takes these slots, and lets every index follow; what was measured of the others is kept.
    fn adopt(
        &mut self,
        slots: Vec<BackendSlot>,
        moves: &[Option<usize>],
        gone: impl Iterator<Item = BackendSlot>,
    ) {
        for slot in gone {
            if let Some(measured) = &slot.profile.measured {
                self.learned.put(measured, slot.rates);
            }
        }
        let before: BackendSet = moves.iter().flatten().copied().collect();
        let count = slots.len();
        self.backends = slots;
        self.sides = Sides::of(&self.backends);
        self.running.moved(moves, count);
        self.queue.iter_mut().for_each(|entry| entry.moved(moves));
        let added: BackendSet = (0..count).filter(|at| !before.has(*at)).collect();
        let backends = &self.backends;
        for entry in self.queue.iter_mut() {
            meet(entry, added, backends);
        }
        for run in self.running.iter_mut() {
            meet(&mut run.entry, added, backends);
        }
        self.healthy = self.healthy.moved(moves);
    }

    /// Ends the jobs of a removed backend for which no slot is left.
    fn stop_all_at(&mut self, slot: usize, now: Time) {
        for job in self.running.names_at(slot) {
            let Some(run) = self.running.remove(job) else { continue };
            let fault = Fault::unavailable("its server was removed from the configuration");
            let reason = run.reason;
            self.stop(run, Verdict::Failed(fault), reason, now);
        }
    }

    /// Adopts other caps, and the reach and the redaction of waiting jobs by another policy.
    pub(super) fn revise(&mut self, caps: Caps, waiting: Vec<JobSpec>, now: Time) {
        self.caps = caps;
        self.budgets_dirty = true;
        let mut revised: BTreeMap<JobId, JobSpec> =
            waiting.into_iter().map(|spec| (spec.job, spec)).collect();
        for entry in self.queue.iter_mut() {
            let Some(spec) = revised.remove(&entry.job()) else { continue };
            let JobSpec { furthest, input_max, unfit, .. } = spec;
            (entry.spec.furthest, entry.spec.input_max) = (furthest, input_max);
            entry.spec.unfit = unfit;
        }
        self.review_waiting(now);
    }

    /// Decides again for every waiting job which backends can do it; refuses those that none can.
    pub(super) fn review_waiting(&mut self, now: Time) {
        self.review(now, |scheduler, entry| match scheduler.impossible(entry) {
            Some(why) => Err(why),
            None => {
                scheduler.pick_engine(entry);
                Ok(())
            }
        });
    }

    /// Looks at every waiting job again, and refuses those for which `check` fails.
    pub(super) fn review(
        &mut self,
        now: Time,
        check: impl Fn(&Scheduler, &mut QueuedJob) -> Result<(), (Refusal, Reason)>,
    ) {
        let mut queue = std::mem::take(&mut self.queue);
        let mut lost = Vec::new();
        for entry in queue.iter_mut() {
            if let Err(why) = check(self, entry) {
                lost.push((entry.job(), why));
            }
        }
        self.queue = queue;
        for (job, why) in lost {
            if let Some(entry) = self.queue.remove(job) {
                self.refuse(entry, why, now);
            }
        }
    }

    /// Finds the backends that can do the job; why there are none, whether they are up or not.
    pub(super) fn impossible(&self, entry: &mut QueuedJob) -> Option<(Refusal, Reason)> {
        match route::able(&entry.spec, &self.backends) {
            Ok(able) => entry.able = able,
            Err(why) => return Some(why),
        }
        let lack = entry.first_lack().filter(|_| entry.capable().is_empty())?;
        Some(route::incapable(&entry.spec, lack))
    }

    /// Refuses a job, with the figures of all backends.
    pub(super) fn refuse(&mut self, mut entry: QueuedJob, why: (Refusal, Reason), now: Time) {
        entry.figures = Some(Box::new(self.figures_at(&entry, None, now)));
        self.settle(entry, Verdict::Refused(why.0), None, why.1);
    }

    /// Marks in a record the backends that were known when the last attempt began and have been
    /// removed since, but for that of the attempt itself.
    pub(super) fn mark_removed(&self, figures: &mut Figures, last: &BackendId) {
        for state in figures.servers.iter_mut().filter(|state| state.server != last.as_str()) {
            state.removed |= self.slot_of(&state.server).is_none();
        }
    }
}

/// Lets a job know of added backends: those that can do it, that it has tried before under the
/// same name, and that may not answer what another has rejected.
fn meet(entry: &mut QueuedJob, added: BackendSet, backends: &[BackendSlot]) {
    for at in added.iter() {
        let slot = &backends[at];
        if route::can(&entry.spec, slot) {
            entry.able.add(at);
        }
        let server = &slot.profile.server;
        for tried in entry.tried.iter_mut().filter(|t| t.slot.is_none() && t.server == *server) {
            tried.slot = Some(at);
        }
        if entry.tried.iter().any(|tried| tried.bars(server)) {
            entry.closed.add(at);
        }
    }
}

/// The text with the last name of each path in it: folders are nothing for a client.
fn without_folders(text: &str) -> String {
    let last = |word: &str| word.rsplit('/').next().unwrap_or_default().to_owned();
    text.split(' ').map(last).collect::<Vec<_>>().join(" ")
}
