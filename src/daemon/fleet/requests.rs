//! What programs of the device ask for: to apply or check an update, and to return to the configuration
//! before.

use super::super::core::Core;
use super::super::reload::Live;
use super::{Fleet, now};
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::update::{UpdateEvent, UpdateState};
use crate::ingress::updates::{UpdateAction, UpdateFailure, UpdateRequest};
use crate::status::ConfigStatus;

impl Fleet {
    /// Does what a program asks for, and answers it.
    pub(super) async fn answer(
        &mut self,
        UpdateRequest { action, done }: UpdateRequest,
        live: &mut Live,
        core: &mut Core,
    ) {
        let result = match action {
            UpdateAction::Apply(bytes) => Box::pin(self.apply(&bytes, live, core)).await,
            UpdateAction::Check(bytes) => self.would_accept(&bytes, live).await,
            UpdateAction::RollBack { steps_down } => {
                match Box::pin(self.handle(UpdateEvent::RollBack { steps_down }, live, core)).await
                {
                    None => Ok(()),
                    Some(reason) => Err(UpdateFailure { code: None, reason }),
                }
            }
        };
        let status: ConfigStatus = live.status().borrow().clone();
        // it may not wait any longer
        let _ = done.send(result.map(|()| status));
    }

    async fn apply(
        &mut self,
        bytes: &[u8],
        live: &mut Live,
        core: &mut Core,
    ) -> Result<(), UpdateFailure> {
        self.consider(Ok(bytes), live, core).await.map_err(|refusal| failure_of(&refusal))?;
        let report = self.machine.report();
        match report.state {
            UpdateState::Refused | UpdateState::RolledBack => {
                let reason = report.reason.unwrap_or_default().to_owned();
                Err(UpdateFailure { code: report.code, reason })
            }
            UpdateState::Idle
            | UpdateState::Verified
            | UpdateState::Staged
            | UpdateState::Trial
            | UpdateState::Kept => Ok(()),
        }
    }

    /// Checks an update up to its trial, and changes nothing.
    async fn would_accept(&mut self, bytes: &[u8], live: &Live) -> Result<(), UpdateFailure> {
        let refused = |refusal: UpdateRefusal| failure_of(&refusal);
        let mut offered = self.accept(bytes, live).map_err(refused)?;
        let not_fetched = |reason| UpdateFailure { code: Some("not-fetched"), reason };
        offered.fetch().await.map_err(not_fetched)?;
        self.check(&offered, live).await.map_err(refused)
    }

    /// Makes the configuration before the last kept one count and runs it, if it can be loaded.
    pub(super) async fn roll_back(
        &mut self,
        steps_down: bool,
        live: &mut Live,
        core: &mut Core,
    ) -> Result<(), String> {
        let before = self.before(live).await?;
        self.on_disk(move |slots| slots.roll_back(steps_down, now())).await?;
        live.return_to(before, core).await;
        Ok(())
    }
}

fn failure_of(refusal: &UpdateRefusal) -> UpdateFailure {
    UpdateFailure { code: Some(refusal.code()), reason: refusal.to_string() }
}
