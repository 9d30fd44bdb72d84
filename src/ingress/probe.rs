//! The probe of the service: each model of this device answers a real prompt that takes the way of a request.

use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};

use crate::backends::probe::job_for;
use crate::dispatch::Dispatch;
use crate::limits::golden::PROBE_TOKENS;
use crate::model::context::Locality;
use crate::model::health::Health;
use crate::request::client::Client;
use crate::request::format::Format;
use crate::request::job::{Job, Priority};
use crate::scheduler::Verdict;
use crate::status::BackendStatus;
use crate::strategy;
use crate::time::millis;

/// The application of the prompts.
const PROBE: &str = "probe";

/// Whether the models of this device answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Whether the device has a model of its own, and each of them has answered.
    pub answered: bool,
    /// Each model of this device.
    pub models: Vec<ModelProbe>,
}

/// Whether one model has answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelProbe {
    /// Its name in `mcp.json`.
    pub server: String,
    /// Whether it has answered.
    pub answered: bool,
    /// Milliseconds until the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// Tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Lets each model of this device answer a short prompt within this time, all at once. Remote models are not asked:
/// they cost money, and a device must work without them.
pub async fn probe(dispatch: &Dispatch, deadline: Duration) -> ProbeReport {
    let own = dispatch.backends();
    let own = own.into_iter().filter(|model| model.locality == Locality::Device);
    let models = own.map(|model| async {
        let mut report = ModelProbe {
            server: model.server.clone(),
            answered: false,
            ms: None,
            tokens: None,
            reason: None,
        };
        match answer(dispatch, model, deadline).await {
            Ok((ms, tokens)) => {
                (report.answered, report.ms, report.tokens) = (true, Some(ms), tokens);
            }
            Err(why) => report.reason = Some(why),
        }
        report
    });
    let models = join_all(models).await;
    ProbeReport {
        answered: !models.is_empty() && models.iter().all(|model| model.answered),
        models,
    }
}

/// Milliseconds and tokens of the answer of one model.
async fn answer(
    dispatch: &Dispatch,
    model: BackendStatus,
    deadline: Duration,
) -> Result<(u64, Option<u32>), String> {
    let context = match (model.health, model.context) {
        (Health::Ready, Some(context)) => context,
        (Health::Ready | Health::Starting, _) => return Err("is starting".to_owned()),
        (Health::Unavailable { reason }, _) => return Err(format!("is unavailable: {reason}")),
        (Health::Failed { reason }, _) => return Err(format!("can't be started: {reason}")),
        (Health::Quarantined { reason }, _) => return Err(format!("is quarantined: {reason}")),
    };
    let job =
        job_for(&context, PROBE_TOKENS, deadline).ok_or("can't be asked: it states no skill")?;
    let job = Job {
        client: Client::known(PROBE),
        cache_group: PROBE.to_owned(),
        priority: Priority::Interactive,
        model: Some(model.server),
        ..job
    };
    let is_text = job.format == Format::Text;
    let answer = strategy::submit(dispatch, job).await.map_err(|refusal| refusal.to_string())?;
    let (text, end) = answer.collect().await;
    match end.verdict {
        Verdict::Done if is_text && text.is_empty() => Err("has answered with nothing".to_owned()),
        Verdict::Done => Ok((millis(end.total), end.usage.map(|usage| usage.completion_tokens))),
        Verdict::Refused(refusal) => Err(refusal.to_string()),
        Verdict::Failed(fault) => Err(fault.to_string()),
        Verdict::Expired => Err("has not answered in time".to_owned()),
        Verdict::Cancelled => Err("was cancelled".to_owned()),
    }
}
