//! `golden`: lets the models of this device answer the golden sets of the tasks, and prints the scores.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::{DONE, NOT_ANSWERED};
use crate::backends::set::RunningBackends;
use crate::catalog::golden::GoldenSet;
use crate::config::Config;
use crate::daemon::{calm, pins_of};
use crate::model::link::BackendState;
use crate::trial::{GoldenScore, score};

pub(super) async fn run(config: Config, json: bool) -> anyhow::Result<u8> {
    let pins = pins_of(&config);
    let catalog = Arc::new(config.catalog);
    let sets: BTreeMap<String, GoldenSet> = catalog.golden_sets().collect();
    ensure!(!sets.is_empty(), "no task of {} has a golden set", config.path.display());
    let mut models = RunningBackends::new(None, pins, config.engines.clone());
    let set = models.prepare(&catalog.servers, |_| BTreeMap::new(), None);
    set.started().await;
    let backends = set.handles();
    if !backends.iter().any(|backend| matches!(&*backend.link.borrow(), BackendState::Up(_))) {
        bail!("no model is up; see the log above");
    }
    let scores = score(&catalog, backends, &sets, calm()).await;
    drop(set);
    models.stop().await;
    print(&scores, json)?;
    let is_answered = scores.values().all(|score| score.right > 0);
    Ok(if is_answered { DONE } else { NOT_ANSWERED })
}

fn print(scores: &BTreeMap<String, GoldenScore>, json: bool) -> std::io::Result<()> {
    if json {
        let of = |score: &GoldenScore| json!({"cases": score.cases, "right": score.right, "first_wrong": score.first_wrong});
        let all: serde_json::Map<String, Value> =
            scores.iter().map(|(task, score)| (task.clone(), of(score))).collect();
        print_line!("{:#}", Value::Object(all));
        return Ok(());
    }
    for (task, GoldenScore { cases, right, first_wrong }) in scores {
        print_line!("{task}: {right} of {cases} right");
        if let Some(wrong) = first_wrong {
            print_line!("  {wrong}");
        }
    }
    Ok(())
}
