//! The score of the golden sets: how many cases the models of this device answer right.
//!
//! The cases take the way of a request: task, rules, routing, schema. They have a dispatcher of their own
//! over the models of this device alone, so that nothing leaves it, nothing costs, and nothing is learned
//! from them. They have a seed: what an engine has learned from other texts does not count. Each run has a
//! cache group of its own, and the cases of a task with labels come one after the other: a prompt that is
//! read in other batches has slightly other scores.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catalog::catalog::Catalog;
use crate::catalog::golden::{GoldenCase, GoldenSet};
use crate::dispatch;
use crate::dispatch::{Dispatch, LearnedStore};
use crate::limits::golden::{GOLDEN_AT_ONCE, GOLDEN_CASE_MAX};
use crate::model::context::Locality;
use crate::model::link::BackendHandle;
use crate::pressure::level::DevicePressure;
use crate::request::client::Client;
use crate::request::job::{Job, Mode, Priority, Strategy};
use crate::scheduler::Verdict;
use crate::strategy;
use crate::wire::Ask;

/// The application of the cases.
const GOLDEN: &str = "golden";

/// The score of one golden set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldenScore {
    /// The cases.
    pub cases: usize,
    /// The right answers among theirs.
    pub right: usize,
    /// The answer to the first case without one, or its refusal.
    pub first_wrong: Option<String>,
}

/// Lets these backends of the catalog answer the golden sets; a set that the models of this device can't
/// be asked counts with no right answer. `pressure` is that of the device.
pub async fn score(
    catalog: &Arc<Catalog>,
    backends: Vec<BackendHandle>,
    sets: &BTreeMap<String, GoldenSet>,
    pressure: tokio::sync::watch::Receiver<DevicePressure>,
) -> BTreeMap<String, GoldenScore> {
    let own = backends.into_iter().filter(|backend| backend.locality == Locality::Device);
    let (dispatch, dispatcher) =
        dispatch::new(Arc::clone(catalog), own.collect(), pressure, LearnedStore::default());
    let stop = CancellationToken::new();
    let mut work = JoinSet::new();
    work.spawn(dispatcher.run(stop.clone()));
    let mut scores = BTreeMap::new();
    let cache_group = format!("{GOLDEN}/{:016x}", fastrand::u64(..));
    for (task, set) in sets {
        let answers = answers_to(&dispatch, catalog, (task, set), &cache_group).await;
        scores.insert(task.clone(), score_of(set, answers));
    }
    stop.cancel();
    work.join_all().await;
    scores
}

/// The answers to the cases of a task, in their order.
async fn answers_to(
    dispatch: &Dispatch,
    catalog: &Catalog,
    (task, set): (&str, &GoldenSet),
    cache_group: &str,
) -> Vec<Result<String, String>> {
    let has_labels = catalog.tasks.get(task).is_some_and(|task| task.labels.is_some());
    let at_once = if has_labels { 1 } else { GOLDEN_AT_ONCE };
    let answers = stream::iter(&set.cases).map(|case| async move {
        let job = job_of(catalog, task, case)?;
        answer(dispatch, Job { cache_group: cache_group.to_owned(), ..job }).await
    });
    answers.buffered(at_once).collect().await
}

fn score_of(set: &GoldenSet, answers: Vec<Result<String, String>>) -> GoldenScore {
    let mut score = GoldenScore { cases: set.cases.len(), right: 0, first_wrong: None };
    for (at, (case, answer)) in set.cases.iter().zip(answers).enumerate() {
        match answer {
            Ok(text) if case.is_answered_by(&text) => score.right += 1,
            Ok(text) => {
                let wrong = || format!("case {at}: {text:?} instead of {}", case.answer);
                score.first_wrong.get_or_insert_with(wrong);
            }
            Err(why) => {
                score.first_wrong.get_or_insert_with(|| format!("case {at}: {why}"));
            }
        }
    }
    score
}

fn job_of(catalog: &Catalog, task: &str, case: &GoldenCase) -> Result<Job, String> {
    let ask = Ask {
        task: Some(task.to_owned()),
        input: Some(case.input.clone()),
        priority: Some(Priority::Batch),
        mode: Some(Mode::LocalOnly),
        strategy: Some(Strategy::Single),
        temperature: Some(0.0),
        seed: Some(0),
        ..Ask::default()
    };
    let job = ask.check(&Client::known(GOLDEN), catalog).map_err(|refusal| refusal.to_string())?;
    Ok(Job { time_left: GOLDEN_CASE_MAX, ..job })
}

async fn answer(dispatch: &Dispatch, job: Job) -> Result<String, String> {
    let answer = strategy::submit(dispatch, job).await.map_err(|refusal| refusal.to_string())?;
    let (text, end) = answer.collect().await;
    match end.verdict {
        Verdict::Done => Ok(text),
        Verdict::Refused(refusal) => Err(refusal.to_string()),
        Verdict::Failed(fault) => Err(fault.to_string()),
        Verdict::Expired => Err("no answer in time".to_owned()),
        Verdict::Cancelled => Err("cancelled".to_owned()),
    }
}
