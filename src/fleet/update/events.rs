//! What happens to an update, and what has to be done then.

use super::super::refusal::UpdateRefusal;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateEvent {
    /// At the start of the service, a configuration on trial is on disk.
    Found {
        /// Its version.
        version: u64,
        /// The tries that it has left.
        tries_left: u8,
    },
    /// An update was accepted, apart from its configuration.
    Verified {
        /// Its version.
        version: u64,
        /// Whether the configuration has to be fetched.
        place: ConfigPlace,
    },
    /// An update was refused.
    Refused {
        /// Its version, if its signature was right.
        version: Option<u64>,
        /// Why.
        refusal: UpdateRefusal,
    },
    /// The configuration is accepted.
    Accepted,
    /// The effect of this kind has ended.
    Done(UpdateStep, Result<(), String>),
    /// The tries on disk are lowered.
    TryBegun {
        /// The tries that are left after this one.
        tries_left: u8,
    },
    /// The golden sets have been answered.
    Golden(Vec<GoldenResult>),
    /// A job was answered well.
    GoodJob,
    /// Something of the new configuration failed: a backend that crashed, a job that its model broke.
    Failed(String),
    /// The operator takes the last kept configuration back.
    RollBack {
        /// Also lower the version floor.
        steps_down: bool,
    },
    /// The time of [`UpdateMachine::wake_at`](super::UpdateMachine::wake_at) has come.
    Tick,
}

/// Where the configuration of an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigPlace {
    /// In the update.
    Inline,
    /// At a URL.
    Remote,
}

/// What can end well or badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateStep {
    /// [`UpdateEffect::Fetch`].
    Fetch,
    /// [`UpdateEffect::Pull`].
    Pull,
    /// [`UpdateEffect::Stage`].
    Stage,
    /// [`UpdateEffect::BeginTry`], if it failed.
    BeginTry,
    /// [`UpdateEffect::Switch`].
    Switch,
    /// [`UpdateEffect::Probe`].
    Probe,
    /// [`UpdateEffect::Keep`].
    Keep,
    /// [`UpdateEffect::RollBack`].
    RollBack,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateEffect {
    /// Fetch the configuration from its URL.
    Fetch,
    /// Check the meaning of the configuration.
    Check,
    /// Download the models that the configuration uses and that are missing. It goes on in the background.
    Pull,
    /// End the downloads.
    EndPull,
    /// Write the configuration to disk, on trial.
    Stage,
    /// Lower the tries on disk.
    BeginTry,
    /// Start the models of the configuration on trial, beside those that answer.
    Switch,
    /// Let each changed model answer a prompt.
    Probe,
    /// Let the configuration on trial and the one before answer the golden sets.
    RunGolden,
    /// Let the configuration on trial answer the requests of applications.
    Adopt,
    /// Make the configuration on trial count, on disk, and raise the version floor.
    Keep,
    /// Drop the configuration on trial, on disk.
    Drop {
        /// Why.
        why: String,
    },
    /// Run the configuration that counts.
    SwitchBack,
    /// Make the configuration before the last kept one count, on disk, and run it.
    RollBack {
        /// Also lower the version floor.
        steps_down: bool,
    },
    /// Report the state: [`UpdateMachine::report`](super::UpdateMachine::report).
    Report,
}

/// How many cases of a golden set were answered right before and with the configuration on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldenResult {
    /// The task.
    pub task: String,
    /// The cases of its golden set.
    pub cases: u32,
    /// Right answers before.
    pub before: u32,
    /// Right answers of the configuration on trial.
    pub after: u32,
    /// The largest loss, in percent of the cases.
    pub loss_percent: u8,
}

impl GoldenResult {
    /// Whether more right answers are lost than the bound permits.
    pub(super) fn is_worse(&self) -> bool {
        let loss = u64::from(self.before.saturating_sub(self.after));
        loss * 100 > u64::from(self.cases) * u64::from(self.loss_percent)
    }
}
