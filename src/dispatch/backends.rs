//! The dispatcher's set of backends: their handles, and the tasks that wait for changes of their state.

use std::sync::Arc;

use tokio::task::AbortHandle;

use super::engine_rate::EngineRate;
use super::handle::Adoption;
use super::{Dispatcher, WatchEvent, handle, policy, profile};
use crate::model::context::Locality;
use crate::model::generate::Pace;
use crate::model::health::Health;
use crate::model::link::{BackendHandle, BackendState};
use crate::scheduler::{BackendId, BackendProfile, Event};

/// A backend of the present set.
pub(super) struct KnownBackend {
    pub(super) handle: BackendHandle,
    pub(super) rate: EngineRate,
    /// Most answers that it is to compute at once.
    width: u32,
    /// Ends the task that waits for a change of its state.
    watcher: Option<AbortHandle>,
}

impl KnownBackend {
    /// Tells an engine on this device its limits.
    fn pace(&self, duty: f32) {
        if self.handle.locality == Locality::Device
            && let BackendState::Up(generate) = &*self.handle.link.borrow()
        {
            generate.pace(Pace { duty, width: self.width });
        }
    }

    /// Whether this handle is of the same running backend, with the same skills.
    fn goes_on(&self, handle: &BackendHandle) -> bool {
        self.handle.link.same_channel(&handle.link)
            && self.handle.locality == handle.locality
            && self.handle.skills == handle.skills
    }
}

impl Dispatcher {
    /// Puts another catalog with its backends into force.
    pub(super) fn adopt(&mut self, Adoption { catalog, backends, done }: Adoption) {
        self.catalog.send_replace(Arc::clone(&catalog));
        if let Some(ledger) = &self.ledger {
            ledger.set_binding(catalog.caps.is_bound());
        }
        let waiting = self.jobs.values_mut().filter(|held| held.started.is_none());
        let revised = waiting.filter_map(|held| {
            let (job, _) = held.waiting.as_mut()?;
            held.redaction = policy::apply(&catalog, job);
            let spec = policy::spec_of(job, &held.redaction, held.arrived);
            held.input_max = spec.input_max;
            Some(spec)
        });
        let revised = revised.collect();
        self.handle_event(Event::Revised { caps: catalog.caps.clone(), waiting: revised });
        self.replace_backends(backends);
        // the configuration may have been given up
        let _ = done.send(());
    }

    /// Adopts another set of backends, in order of preference. Attempts at a removed one go on.
    pub(super) fn replace_backends(&mut self, handles: Vec<BackendHandle>) {
        self.views.send_replace(handle::views(&handles));
        self.handle_event(Event::Catalog(handles.iter().map(profile::unknown).collect()));
        let mut before = std::mem::take(&mut self.backends);
        for handle in handles {
            let id = BackendId::from(handle.server.as_str());
            let known = match before.remove(&id) {
                // the same model under the same terms: its state stays, a pause after failures included
                Some(known) if known.goes_on(&handle) => {
                    let handle = BackendHandle { link: known.handle.link.clone(), ..handle };
                    self.backends.insert(id, KnownBackend { handle, ..known });
                    continue;
                }
                known => known,
            };
            if let Some(known) = &known {
                let is_wanted = *known.handle.wanted.borrow();
                handle.wanted.send_replace(is_wanted);
            }
            let rate = known.as_ref().map(|known| known.rate).unwrap_or_default();
            let watcher = known.and_then(|known| known.watcher);
            self.backends
                .insert(id.clone(), KnownBackend { handle, rate, width: u32::MAX, watcher });
            let event = self.state_of(&id);
            self.watch_backend(id);
            if let Some(event) = event {
                self.handle_event(event);
            }
        }
        before.into_values().filter_map(|known| known.watcher).for_each(|task| task.abort());
    }

    /// Waits for the next change of a backend's state, in place of the task that did before.
    pub(super) fn watch_backend(&mut self, backend: BackendId) {
        let Some(known) = self.backends.get_mut(&backend) else { return };
        let mut link = known.handle.link.clone();
        let watcher = self.watches.spawn(async move {
            if link.changed().await.is_err() {
                // the supervisor has ended with the service
                std::future::pending::<()>().await;
            }
            WatchEvent::Turned(backend)
        });
        if let Some(before) = known.watcher.replace(watcher) {
            before.abort();
        }
    }

    /// The event for the backend's present state; a watcher that is started afterwards reports later changes.
    pub(super) fn state_of(&mut self, backend: &BackendId) -> Option<Event> {
        let known = self.backends.get_mut(backend)?;
        // the scheduler sets it again for the model that is up now
        known.width = u32::MAX;
        let of = &mut known.handle;
        let link = of.link.borrow_and_update().clone();
        Some(match link {
            BackendState::Down(Health::Failed { reason }) => Event::Failed(backend.clone(), reason),
            BackendState::Down(
                Health::Starting
                | Health::Ready
                | Health::Unavailable { .. }
                | Health::Quarantined { .. },
            ) => Event::Down(backend.clone()),
            BackendState::Up(generate) => {
                if of.locality == Locality::Device {
                    let duty = self.device_pressure.borrow().duty;
                    generate.pace(Pace { duty, ..Pace::default() });
                }
                let context = generate.context();
                Event::Up(BackendProfile {
                    measured: Some(self.keep.measured(&of.server, of.locality, context)),
                    ..profile::of(of, context)
                })
            }
        })
    }

    /// Sets the duty cycle of the engines on this device; returns the event for the scheduler.
    pub(super) fn pressure_changed(&mut self) -> Event {
        let device_pressure = *self.device_pressure.borrow_and_update();
        self.backends.values().for_each(|known| known.pace(device_pressure.duty));
        Event::Strained(device_pressure)
    }

    /// Sets how many answers an engine on this device computes at once.
    pub(super) fn set_width(&mut self, backend: &BackendId, width: u32) {
        let duty = self.device_pressure.borrow().duty;
        if let Some(known) = self.backends.get_mut(backend) {
            known.width = width;
            known.pace(duty);
        }
    }

    pub(super) fn want(&self, backend: &BackendId, is_wanted: bool) {
        if let Some(known) = self.backends.get(backend) {
            known.handle.wanted.send_replace(is_wanted);
        }
    }
}
