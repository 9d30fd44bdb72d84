//! The feed of settled decisions, for pages and logs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;

use crate::limits::SETTLED_WAITING_MAX;
use crate::request::job::JobId;
use crate::scheduler::Verdict;
use crate::scheduler::decision::Decision;

/// A job that has ended, with the decision record.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// The application that asked.
    pub app: String,
    /// The task of the configuration, if the request named one.
    pub task: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// The server that had it last.
    pub server: Option<String>,
    /// Where it went and why.
    pub decision: Decision,
    /// How long it took.
    pub timing: SettledTiming,
    /// When it ended.
    pub at: SystemTime,
}

/// The times of a job that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledTiming {
    /// Time before its first attempt.
    pub queued: Duration,
    /// Time to the first piece of a buffered answer; that of a streamed one is known to its reader.
    pub first: Option<Duration>,
    /// Time from arrival to end.
    pub total: Duration,
}

/// The sending end of a feed without subscribers.
pub(super) fn feed() -> broadcast::Sender<Arc<Settled>> {
    broadcast::Sender::new(SETTLED_WAITING_MAX)
}
