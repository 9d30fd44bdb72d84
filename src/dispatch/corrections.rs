//! Corrections of the ledger while the service runs: found in the state folder, applied, written, removed.

use super::{Dispatcher, WatchEvent};
use crate::limits::CORRECTIONS_EVERY;
use crate::money::account::{Correction, LedgerEntry};
use crate::scheduler::Event;
use crate::store::corrections;

impl Dispatcher {
    /// Looks for the operator's corrections after a while, if there is a place for them.
    pub(super) fn await_corrections(&mut self) {
        if self.keep.folder().is_some() {
            self.watches.spawn(async {
                tokio::time::sleep(CORRECTIONS_EVERY).await;
                WatchEvent::Look
            });
        }
    }

    pub(super) fn look_for_corrections(&mut self) {
        if let Some(folder) = self.keep.folder().map(ToOwned::to_owned) {
            self.watches
                .spawn_blocking(move || WatchEvent::Corrected(corrections::waiting(&folder)));
        }
    }

    pub(super) fn correct(&mut self, found: Vec<Correction>) {
        for correction in found {
            self.handle_event(Event::Corrected(correction));
        }
        self.await_corrections();
    }

    /// Writes an entry to the ledger. A correction stays in its folder until it is durable.
    pub(super) fn book(&mut self, entry: LedgerEntry) {
        let Some(ledger) = &self.ledger else { return };
        let LedgerEntry::Correction(correction) = &entry else { return ledger.note(entry) };
        let Correction { app, change, reason, .. } = correction;
        tracing::info!(app, ?change, reason, "the ledger is corrected");
        let (correction, folder) = (correction.clone(), self.keep.folder().map(ToOwned::to_owned));
        let written = ledger.durable(entry);
        self.watches.spawn(async move {
            match (written.done().await, folder) {
                (Ok(()), Some(folder)) => corrections::applied(&folder, &correction),
                (Err(fault), _) => {
                    tracing::error!(%fault, "the correction is not in the ledger yet");
                }
                (Ok(()), None) => {}
            }
            WatchEvent::Kept
        });
    }
}
