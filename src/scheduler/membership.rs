//! Changes of the set of backends while jobs wait and run.
//!
//! Inside the scheduler a backend is a slot: its index in the vector of backends, in the order of
//! the catalog. A new catalog makes a new vector, and every index that is kept follows it. A
//! removed backend that still runs jobs is *retired*: its slot stands behind those of the catalog,
//! gets no more jobs, and is freed when its last job ends.

use super::decision::{Figures, Reason};
use super::event::Verdict;
use super::profile::{BackendId, BackendProfile};
use super::queued::{BackendSet, QueuedJob, SLOTS_MAX};
use super::route::{self, Sides};
use super::{BackendSlot, Scheduler};
use crate::limits::SERVERS_MAX;
use crate::model::generate::Fault;
use crate::request::refusal::Refusal;
use crate::time::Time;

/// The slot of a backend after a change, by its slot before.
type Moves = Vec<Option<usize>>;

impl Scheduler {
    /// The slot of a backend of the catalog.
    pub(super) fn slot_of(&self, id: &BackendId) -> Option<usize> {
        self.backends.iter().position(|slot| !slot.retired && slot.profile.server == *id)
    }

    /// Adopts a catalog. Of several backends with the same name the first counts, and of more than
    /// [`SERVERS_MAX`] those. Jobs that no backend can do any more are refused.
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
        rest.iter().for_each(|slot| self.stop_all_at(*slot, now));

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
                    slot.retired = false;
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
        let (before, count) = (self.backends_before(moves), slots.len());
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

    /// The slots that were filled before.
    fn backends_before(&self, moves: &[Option<usize>]) -> BackendSet {
        moves.iter().flatten().copied().collect()
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

    /// Decides again for every waiting job which backends can do it; refuses those that none can.
    pub(super) fn review_waiting(&mut self, now: Time) {
        let mut queue = std::mem::take(&mut self.queue);
        let mut lost = Vec::new();
        for entry in queue.iter_mut() {
            match self.impossible(entry) {
                Some(why) => lost.push((entry.job(), why)),
                None => self.pick_engine(entry),
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
            state.removed |= self.slot_of(&state.server.as_str().into()).is_none();
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
            if tried.lacks.is_none() {
                entry.failed.add(at);
            }
        }
        if entry.tried.iter().any(|tried| tried.bars(server)) {
            entry.closed.add(at);
        }
    }
}

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect")]
mod tests {
    use super::*;
    use crate::model::context::Locality;
    use crate::request::job::{JobId, Mode};
    use crate::scheduler::tests::{profile, spec};
    use crate::scheduler::{Answered, Effect, Event, JobSpec, Sent, TokenTimes};

    fn local() -> BackendProfile {
        profile("local", Locality::Device)
    }

    fn cloud() -> BackendProfile {
        BackendProfile { slots: 8, ..profile("cloud", Locality::Cloud) }
    }

    /// A scheduler over these backends, all up.
    fn over(profiles: &[BackendProfile]) -> Scheduler {
        let mut scheduler = Scheduler::new(profiles.to_vec());
        for profile in profiles {
            scheduler.handle_event(Event::Up(profile.clone()), Time(0));
        }
        scheduler
    }

    fn arrive(scheduler: &mut Scheduler, spec: JobSpec) -> Option<String> {
        started(&scheduler.handle_event(Event::Arrived(spec), Time(1)))
    }

    fn started(effects: &[Effect]) -> Option<String> {
        effects.iter().find_map(|effect| match effect {
            Effect::Start { backend, .. } => Some(backend.as_str().to_owned()),
            _ => None,
        })
    }

    fn settled(effects: &[Effect]) -> Option<(&Verdict, Option<&str>, Reason)> {
        effects.iter().find_map(|effect| match effect {
            Effect::Settle { verdict, backend, decision, .. } => {
                Some((verdict, backend.as_ref().map(BackendId::as_str), decision.reason))
            }
            _ => None,
        })
    }

    fn answer(job: u64) -> Event {
        Event::Ended { job: JobId(job), outcome: Ok(Answered::default()) }
    }

    fn catalog(profiles: &[BackendProfile]) -> Event {
        Event::Catalog(profiles.to_vec())
    }

    #[test]
    fn a_job_of_a_removed_backend_ends_normally() {
        let mut scheduler = over(&[local(), cloud()]);
        assert_eq!(arrive(&mut scheduler, spec(1)).as_deref(), Some("local"));
        assert_eq!(scheduler.handle_event(catalog(&[cloud()]), Time(2)), []);
        assert_eq!((scheduler.backends.len(), scheduler.load()), (2, (0, 1)));
        // it gets no more jobs, even if it says that it is up
        scheduler.handle_event(Event::Up(local()), Time(3));
        assert_eq!(arrive(&mut scheduler, spec(2)).as_deref(), Some("cloud"));
        let effects = scheduler.handle_event(answer(1), Time(5));
        assert_eq!(settled(&effects), Some((&Verdict::Done, Some("local"), Reason::Feasible)));
        assert_eq!(scheduler.backends.len(), 1, "its slot is free");
        let effects = scheduler.handle_event(answer(2), Time(6));
        assert_eq!(settled(&effects), Some((&Verdict::Done, Some("cloud"), Reason::Feasible)));
    }

    #[test]
    fn waiting_jobs_are_decided_again() {
        let private = |id| JobSpec { mode: Mode::LocalOnly, ..spec(id) };
        let mut scheduler = over(&[local(), cloud()]);
        arrive(&mut scheduler, private(1));
        assert_eq!(arrive(&mut scheduler, private(2)), None);
        assert_eq!(arrive(&mut scheduler, spec(3)), None);
        let effects = scheduler.handle_event(catalog(&[cloud()]), Time(2));
        // one may go to the cloud, the other to no backend that is left
        assert_eq!(started(&effects).as_deref(), Some("cloud"));
        let Some((Verdict::Refused(refusal), None, Reason::Mode)) = settled(&effects) else {
            panic!("{effects:?}")
        };
        assert!(refusal.message.contains("local-only"), "{refusal:?}");
        assert_eq!(scheduler.load(), (0, 2));
    }

    #[test]
    fn an_added_backend_takes_waiting_jobs() {
        let mut scheduler = over(&[local()]);
        arrive(&mut scheduler, spec(1));
        assert_eq!(arrive(&mut scheduler, spec(2)), None);
        let second = profile("second", Locality::Device);
        scheduler.handle_event(catalog(&[local(), second.clone()]), Time(2));
        let effects = scheduler.handle_event(Event::Up(second), Time(3));
        assert_eq!(started(&effects).as_deref(), Some("second"));
    }

    #[test]
    fn the_order_of_the_catalog_is_the_order_of_preference() {
        let (a, b) = (profile("a", Locality::Cloud), profile("b", Locality::Cloud));
        let mut scheduler = over(&[a.clone(), b.clone()]);
        assert_eq!(arrive(&mut scheduler, spec(1)).as_deref(), Some("a"));
        scheduler.handle_event(answer(1), Time(2));
        scheduler.handle_event(catalog(&[b, a]), Time(2));
        assert_eq!(arrive(&mut scheduler, spec(2)).as_deref(), Some("b"));
    }

    #[test]
    fn rates_outlive_a_removal() {
        let measured = BackendProfile { measured: Some("weights".to_owned()), ..local() };
        let mut scheduler = over(std::slice::from_ref(&measured));
        for id in 0..4 {
            arrive(&mut scheduler, spec(id));
            let spent = TokenTimes {
                completion_tokens: 4,
                decode_ms: 80.0,
                ..TokenTimes::default()
            };
            let outcome = Ok(Answered { spent: Some(spent), ..Answered::default() });
            scheduler.handle_event(Event::Ended { job: JobId(id), outcome }, Time(9));
        }
        let rates = scheduler.backends[0].rates.clone();
        scheduler.handle_event(catalog(&[cloud()]), Time(10));
        assert_eq!(scheduler.backends.len(), 1);
        scheduler.handle_event(catalog(&[local(), cloud()]), Time(11));
        scheduler.handle_event(Event::Up(measured), Time(12));
        assert_eq!(scheduler.backends[0].rates, rates);
    }

    #[test]
    fn a_backend_that_comes_back_while_its_job_runs_keeps_its_state() {
        let mut scheduler = over(&[local(), cloud()]);
        arrive(&mut scheduler, spec(1));
        scheduler.handle_event(catalog(&[cloud()]), Time(2));
        scheduler.handle_event(catalog(&[cloud(), local()]), Time(3));
        assert_eq!(scheduler.backends.len(), 2);
        scheduler.handle_event(Event::Up(local()), Time(4));
        assert_eq!(arrive(&mut scheduler, spec(2)), None, "its one slot is taken");
        let effects = scheduler.handle_event(answer(1), Time(5));
        assert_eq!(started(&effects).as_deref(), Some("local"));
        // at another locality it is another backend
        let moved = profile("local", Locality::Peer);
        scheduler.handle_event(catalog(std::slice::from_ref(&moved)), Time(6));
        assert_eq!(scheduler.backends.len(), 2);
        scheduler.handle_event(Event::Up(moved), Time(7));
        assert_eq!(arrive(&mut scheduler, spec(3)).as_deref(), Some("local"));
        assert_eq!(scheduler.load(), (0, 2));
    }

    #[test]
    fn the_classification_of_a_removed_backend_counts() {
        let job = |id| JobSpec { margin: 0.9, ..spec(id) };
        let unsure = |id, confidence| Event::Ended {
            job: JobId(id),
            outcome: Ok(Answered { confidence: Some(confidence), ..Answered::default() }),
        };
        let mut scheduler = over(&[local(), cloud()]);
        arrive(&mut scheduler, job(1));
        assert!(started(&scheduler.handle_event(unsure(1, 0.5), Time(2))).is_some());
        scheduler.handle_event(catalog(&[cloud()]), Time(3));
        let effects = scheduler.handle_event(unsure(1, 0.4), Time(4));
        assert_eq!(settled(&effects), Some((&Verdict::Done, Some("local"), Reason::Confidence)));
    }

    #[test]
    fn fallbacks_bar_added_backends() {
        let strict = BackendProfile { fallbacks: vec!["cloud".to_owned()], ..local() };
        let busy = BackendProfile { slots: 1, ..cloud() };
        let mut scheduler = over(&[strict.clone(), busy.clone()]);
        arrive(&mut scheduler, JobSpec { mode: Mode::CloudOnly, ..spec(1) });
        arrive(&mut scheduler, spec(2));
        let forbidden = Fault::Rejected(Refusal::new(crate::request::refusal::Code::Forbidden, ""));
        let outcome = Err((forbidden, Sent::Nothing));
        assert_eq!(scheduler.handle_event(Event::Ended { job: JobId(2), outcome }, Time(2)), []);
        let other = profile("other", Locality::Peer);
        scheduler.handle_event(catalog(&[other.clone(), busy.clone()]), Time(3));
        assert_eq!(scheduler.handle_event(Event::Up(other.clone()), Time(4)), []);
        // without the fallback no backend is left
        let effects = scheduler.handle_event(catalog(&[other]), Time(5));
        let Some((Verdict::Refused(_), None, Reason::Policy)) = settled(&effects) else {
            panic!("{effects:?}")
        };
    }

    #[test]
    fn slots_are_bounded() {
        let mut scheduler = Scheduler::new(Vec::new());
        for round in 0..4_u64 {
            let names = (0..SERVERS_MAX as u64).map(|n| format!("{round}-{n}"));
            let profiles: Vec<BackendProfile> =
                names.map(|name| profile(&name, Locality::Cloud)).collect();
            scheduler.handle_event(catalog(&profiles), Time(round));
            for (n, profile) in profiles.into_iter().enumerate() {
                scheduler.handle_event(Event::Up(profile), Time(round));
                let id = round * 1000 + n as u64;
                scheduler.handle_event(Event::Arrived(spec(id)), Time(round));
            }
            assert!(scheduler.backends.len() <= SLOTS_MAX);
        }
    }
}
