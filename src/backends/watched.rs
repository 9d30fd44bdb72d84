//! A model behind a connection that is watched: a failed request shows that the server must be restarted,
//! and an idle engine is asked for a token now and then, so that a silent one is found before a client waits
//! for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::probe;
use crate::clock::now;
use crate::limits::golden::PROBE_ANSWER_MAX;
use crate::limits::liveness::{IDLE_PROBE_ANSWER_MIN, IDLE_PROBE_SLOWER_MAX, IDLE_PROBE_TOKENS};
use crate::mcp::client::Remote;
use crate::model::context::ModelContext;
use crate::model::generate::{BoxFuture, Fault, Generate, Pace, Usage};
use crate::model::out::{Out, channel};
use crate::request::job::Job;

/// A model that tells its supervisor what its requests show.
pub(super) struct WatchedRemote {
    remote: Remote,
    trouble: watch::Sender<Option<&'static str>>,
    activity: watch::Sender<Activity>,
}

/// The present activity of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Activity {
    /// Requests that run.
    running: usize,
    /// When the last of them began or ended.
    since: Instant,
    /// Share of the time in which it may compute: less than 1 on a device under pressure.
    duty: f32,
}

/// Counts a request as running.
struct RunningGuard<'a>(&'a watch::Sender<Activity>);

impl<'a> RunningGuard<'a> {
    fn begin(activity: &'a watch::Sender<Activity>) -> RunningGuard<'a> {
        activity.send_modify(|known| (known.running, known.since) = (known.running + 1, now()));
        RunningGuard(activity)
    }
}

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|known| {
            (known.running, known.since) = (known.running.saturating_sub(1), now());
        });
    }
}

impl WatchedRemote {
    /// `trouble` is told when a request shows that the server must be restarted.
    pub(super) fn new(
        remote: Remote,
        trouble: watch::Sender<Option<&'static str>>,
    ) -> WatchedRemote {
        let activity = watch::Sender::new(Activity { running: 0, since: now(), duty: 1.0 });
        WatchedRemote { remote, trouble, activity }
    }

    /// Waits until no request has run for so long, and the device is not under pressure. Requests do not wake
    /// the waiting task.
    async fn idle(&self, long: Duration) {
        // ends when the model has been idle for so long
        loop {
            let Activity { running, since, duty } = *self.activity.borrow();
            let left = (since + long).saturating_duration_since(now());
            if running == 0 && duty >= 1.0 && left.is_zero() {
                return;
            }
            tokio::time::sleep(if left.is_zero() { long } else { left }).await;
        }
    }

    /// Lets the model answer a request whose text is not read. Its silence is no fault here: the caller waits
    /// for as long as it wants.
    async fn answer_unread(&self, job: &Job) {
        let (out, mut chunks) = channel();
        let read = async { while chunks.recv().await.is_some() {} };
        let (answered, ()) = tokio::join!(self.remote.generate(job, out), read);
        if let Err(Fault::TimedOut(_)) = answered {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until a request comes, or the device is under pressure.
    async fn disturbed(&self) {
        let mut activity = self.activity.subscribe();
        let _ = activity.wait_for(|known| known.running > 0 || known.duty < 1.0).await;
    }
}

/// Waits until a request shows that the server must be restarted; returns the reason.
pub(super) async fn trouble_of(
    troubled: &mut watch::Receiver<Option<&'static str>>,
) -> &'static str {
    let why = troubled.wait_for(Option::is_some).await.ok().and_then(|why| *why);
    match why {
        Some(why) => why,
        // no request can come any more
        None => std::future::pending().await,
    }
}

/// Asks a model for a token each time that it has been idle for so long, and ends with the reason when it
/// does not answer. A probe ends when a request comes, which shows by itself whether the model answers, and under
/// pressure, which slows the model down.
pub(super) async fn until_silent(probed: Option<(Arc<WatchedRemote>, Duration)>) -> String {
    let Some((model, after)) = probed else {
        return std::future::pending().await;
    };
    let Some(job) = probe::job_for(model.context(), IDLE_PROBE_TOKENS, PROBE_ANSWER_MAX) else {
        return std::future::pending().await;
    };
    let mut most = PROBE_ANSWER_MAX;
    // ends with the connection
    loop {
        model.idle(after).await;
        let began = now();
        let probe = model.answer_unread(&job);
        tokio::select! {
            answered = tokio::time::timeout(most, probe) => match answered {
                // a refusal is an answer; the end of a process is noticed by itself
                Ok(()) => {
                    tracing::debug!(took_ms = began.elapsed().as_millis(), "an idle engine answers");
                    let slow = began.elapsed() * IDLE_PROBE_SLOWER_MAX;
                    most = slow.clamp(IDLE_PROBE_ANSWER_MIN, PROBE_ANSWER_MAX);
                }
                Err(_) => return format!("idle, and no answer to a probe within {} s", most.as_secs()),
            },
            () = model.disturbed() => continue,
        }
        model.activity.send_modify(|activity| activity.since = now());
    }
}

impl Generate for WatchedRemote {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(async move {
            let _running = RunningGuard::begin(&self.activity);
            let result = self.remote.generate(job, out).await;
            let why = match &result {
                Err(Fault::TimedOut(_)) => "timeout: no output",
                Err(Fault::Crashed(_)) => "connection lost during an answer",
                Err(Fault::Unavailable { .. }) => "a request could not be sent",
                Ok(_) | Err(Fault::Cancelled | Fault::Rejected(_) | Fault::ProtocolError(_)) => {
                    return result;
                }
            };
            self.trouble.send_replace(Some(why));
            result
        })
    }

    fn context(&self) -> &ModelContext {
        self.remote.context()
    }

    fn pace(&self, pace: Pace) {
        self.activity.send_modify(|activity| activity.duty = pace.duty);
        self.remote.pace(pace);
    }
}
