//! `model pull`, `list`, `verify`, `prune` and `import`: the models of `pilotlight.models` in the store.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::pin::pin;

use anyhow::Context;
use futures::StreamExt;
use futures::stream;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::report::{Report, megabytes};
use crate::catalog::model::ModelEntry;
use crate::catalog::server::ServerEntry;
use crate::cli::{BROKE, DONE, NOT_READY, WRONG, loaded};
use crate::config::Config;
use crate::daemon::model_store;
use crate::device::identity::board_names;
use crate::limits::models::DOWNLOADS_MAX;
use crate::models;
use crate::models::{ImportFinding, ModelState, ModelStore, Thoroughness, ensure, inspect};
use crate::store::slots;

/// The configuration, its store and the names of this board.
struct Artefacts {
    config: Config,
    store: ModelStore,
    board: Vec<String>,
}

impl Artefacts {
    /// None if the configuration has mistakes, which are printed.
    fn open(path: Option<&Path>) -> anyhow::Result<Option<Artefacts>> {
        let Some(config) = loaded(path) else { return Ok(None) };
        let store = model_store(&config).context(
            "there is no folder for models; set PILOTLIGHT_STATE or PILOTLIGHT_MODELS to a folder",
        )?;
        let board = board_names(&config.sensors);
        Ok(Some(Artefacts { config, store, board }))
    }

    fn models(&self) -> &[ModelEntry] {
        &self.config.catalog.models
    }

    /// The models of these names, or all that are for this board; none after a message about a name that
    /// can't be used.
    fn selected(&self, names: &[String]) -> Option<Vec<ModelEntry>> {
        if names.is_empty() {
            let is_for = |model: &&ModelEntry| model.is_for(&self.board);
            return Some(self.models().iter().filter(is_for).cloned().collect());
        }
        let mut found: Vec<ModelEntry> = Vec::new();
        let mut is_good = true;
        for name in names {
            match self.models().iter().find(|model| model.name == *name) {
                Some(model) if !model.is_for(&self.board) => {
                    let (boards, board) = (model.boards.join(", "), self.board.join(", "));
                    print_error!("error: {name} is for the boards {boards}; this one is {board}");
                    is_good = false;
                }
                Some(model) if found.iter().any(|known| known.name == model.name) => {}
                Some(model) => found.push(model.clone()),
                None => {
                    let known: Vec<&str> = self.models().iter().map(|m| m.name.as_str()).collect();
                    print_error!(
                        "error: {name:?} is not in pilotlight.models of {}; there are: {}",
                        self.config.path.display(),
                        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                    );
                    is_good = false;
                }
            }
        }
        is_good.then_some(found)
    }

    /// The servers whose engines load this model from the store.
    fn servers_of(&self, model: &ModelEntry) -> Vec<&str> {
        let path = self.store.path_of(&model.name);
        let servers = self.config.catalog.servers.iter();
        let uses = servers.filter(|server| server.uses_model_at(&path));
        uses.map(|server| server.name.as_str()).collect()
    }

    /// Prints that there is nothing to do, if so.
    fn has_none(&self, models: &[ModelEntry]) -> anyhow::Result<bool> {
        if models.is_empty() {
            let file = self.config.path.display();
            print_line!("{file} names no models for this board ({})", self.board.join(", "));
        }
        Ok(models.is_empty())
    }
}

/// Runs work that a signal to end cancels; it is awaited, so that what has arrived is kept.
async fn until_signal<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let mut end = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => return Ok(done),
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
    }
    cancel.cancel();
    Ok(work.await)
}

pub(super) async fn pull(path: Option<&Path>, names: &[String], json: bool) -> anyhow::Result<u8> {
    let Some(all) = Artefacts::open(path)? else { return Ok(WRONG) };
    let Some(models) = all.selected(names) else { return Ok(WRONG) };
    if !json && all.has_none(&models)? {
        return Ok(DONE);
    }
    let report = Report::new(json);
    let cancel = CancellationToken::new();
    let (report, store, token) = (&report, &all.store, &cancel);
    let loads = stream::iter(models).map(|model| async move {
        let told = |event: &models::ModelEvent| report.event(&model.name, event);
        let done = ensure(&model, store, &told, token).await;
        report.ended(&model, &done);
        done
    });
    let loads = loads.buffer_unordered(DOWNLOADS_MAX).collect::<Vec<_>>();
    let ended = until_signal(&cancel, loads).await?;
    Ok(if ended.iter().all(Result::is_ok) { DONE } else { BROKE })
}

pub(super) fn list(path: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let Some(all) = Artefacts::open(path)? else { return Ok(WRONG) };
    let mut rows: Vec<[String; 5]> = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    for model in all.models() {
        let state = inspect(&all.store, model, Thoroughness::Receipt, &CancellationToken::new());
        let is_for = model.is_for(&all.board);
        let (word, mut shown) = match &state {
            Ok(ModelState::Present) => ("present", "present".to_owned()),
            Ok(ModelState::Partial(bytes)) => {
                ("partial", format!("partial {} %", bytes * 100 / model.bytes().max(1)))
            }
            Ok(ModelState::Missing) => ("missing", "missing".to_owned()),
            Ok(ModelState::Differs(_)) => ("differs", "digest differs".to_owned()),
            Err(_) => ("unreadable", "unreadable".to_owned()),
        };
        if !is_for {
            shown = format!("{shown}, for other boards");
        }
        let servers = all.servers_of(model);
        if json {
            let mut value = json!({
                "name": model.name, "bytes": model.bytes(), "sha256": model.digest(),
                "licence": model.licence, "state": word, "for_this_board": is_for,
                "servers": servers, "path": all.store.path_of(&model.name),
            });
            match state {
                Ok(ModelState::Partial(bytes)) => value["partial_bytes"] = bytes.into(),
                Ok(ModelState::Differs(why)) => value["why"] = why.into(),
                Ok(ModelState::Present | ModelState::Missing) => {}
                Err(fault) => value["why"] = fault.to_string().into(),
            }
            values.push(value);
        } else {
            let servers = if servers.is_empty() { "-".to_owned() } else { servers.join(", ") };
            let (name, licence) = (model.name.clone(), model.licence.clone());
            rows.push([name, megabytes(model.bytes()), licence, shown, servers]);
        }
    }
    if json {
        print_line!("{}", serde_json::to_string_pretty(&values)?);
    } else if !all.has_none(all.models())? {
        let head = ["NAME", "SIZE", "LICENCE", "STATE", "SERVERS"].map(str::to_owned);
        rows.insert(0, head);
        for line in table(&rows) {
            print_line!("{line}");
        }
    }
    Ok(DONE)
}

/// The rows in columns.
fn table(rows: &[[String; 5]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..5).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

pub(super) fn verify(path: Option<&Path>, names: &[String]) -> anyhow::Result<u8> {
    let Some(all) = Artefacts::open(path)? else { return Ok(WRONG) };
    let Some(models) = all.selected(names) else { return Ok(WRONG) };
    if all.has_none(&models)? {
        return Ok(DONE);
    }
    let mut bad = Vec::new();
    for model in models {
        let name = &model.name;
        let state = inspect(&all.store, &model, Thoroughness::Digest, &CancellationToken::new());
        let why = match state {
            Ok(ModelState::Present) => {
                print_line!("{name}: ok");
                continue;
            }
            Ok(ModelState::Differs(why)) => format!("damaged: {why}"),
            Ok(ModelState::Missing) => "missing".to_owned(),
            Ok(ModelState::Partial(_)) => "missing, loaded in part".to_owned(),
            Err(fault) => format!("unreadable: {fault}"),
        };
        print_line!("{name}: {why}");
        bad.push(model.name);
    }
    if bad.is_empty() {
        return Ok(DONE);
    }
    print_error!(
        "error: not as in mcp.json: {}; `pilotlight model pull` loads them again",
        bad.join(", ")
    );
    Ok(NOT_READY)
}

pub(super) fn prune(path: Option<&Path>, yes: bool) -> anyhow::Result<u8> {
    let Some(all) = Artefacts::open(path)? else { return Ok(WRONG) };
    let mut names: BTreeSet<String> = all.models().iter().map(|model| model.name.clone()).collect();
    // a file of the store that a server names by its path
    let arguments = all.config.catalog.servers.iter().filter_map(ServerEntry::model_argument);
    names.extend(arguments.filter_map(|argument| {
        let below = Path::new(&argument.value).strip_prefix(&all.store.folder).ok()?;
        Some(below.components().next()?.as_os_str().to_string_lossy().into_owned())
    }));
    let fleet = all.config.state.as_ref().map(|state| state.join(slots::FOLDER));
    let leftovers = models::leftovers(&all.store, &names, fleet.as_deref())?;
    let mut freed = 0;
    for leftover in &leftovers {
        let (name, size) = (&leftover.name, megabytes(leftover.bytes));
        if !yes {
            print_line!("would remove {name}, {size}");
        } else if models::remove(&all.store, leftover)? {
            print_line!("removed {name}, {size}");
        } else {
            print_line!("{name} stays: another process loads it");
            continue;
        }
        freed += leftover.bytes;
    }
    let (folder, freed) = (all.store.folder.display(), megabytes(freed));
    if leftovers.is_empty() {
        print_line!("{folder} has nothing that no configuration names");
    } else if !yes {
        print_line!("{freed} in {folder}; remove them with `pilotlight model prune --yes`");
    }
    Ok(DONE)
}

pub(super) async fn import(path: Option<&Path>, from: &Path) -> anyhow::Result<u8> {
    let Some(all) = Artefacts::open(path)? else { return Ok(WRONG) };
    let mut models = all.selected(&[]).unwrap_or_default();
    if all.has_none(&models)? {
        return Ok(DONE);
    }
    let cancel = CancellationToken::new();
    let is_there = |model: &ModelEntry| {
        let state = inspect(&all.store, model, Thoroughness::Receipt, &cancel);
        matches!(state, Ok(ModelState::Present))
    };
    let mut missing = Vec::new();
    for model in models.drain(..) {
        if is_there(&model) {
            print_line!("{}: present", model.name);
        } else {
            missing.push(model);
        }
    }
    if missing.is_empty() {
        return Ok(DONE);
    }
    let report = Report::new(false);
    let told = |model: &ModelEntry, event: &models::ModelEvent| report.event(&model.name, event);
    let imported = models::import(&missing, from, &all.store, &told, &cancel);
    let findings = until_signal(&cancel, imported).await??;
    report.clear();
    let mut is_complete = true;
    for (name, finding) in findings {
        match finding {
            ImportFinding::Imported => {
                print_line!("{name}: imported");
                continue;
            }
            ImportFinding::Missing(files) => {
                print_line!("{name}: not found in {}", from.display());
                for (file, others) in files.iter().filter(|(_, others)| !others.is_empty()) {
                    let others: Vec<_> =
                        others.iter().map(|path| path.display().to_string()).collect();
                    print_line!(
                        "  {file}: its length and another digest, damaged or another version: {}",
                        others.join(", ")
                    );
                }
            }
            ImportFinding::Failed(fault) => print_line!("{name}: {fault}"),
        }
        is_complete = false;
    }
    Ok(if is_complete { DONE } else { NOT_READY })
}
