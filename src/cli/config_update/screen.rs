//! How a command shows what it watches: a table on a terminal, lines in a file or pipe, JSON lines for programs.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::table;
use crate::cli::output;
use crate::rollout::devices::DeviceReport;

/// Changes that a table shows.
const RECENT: usize = 5;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Lines,
    Json,
}

/// The output of a command that watches devices.
pub(super) struct Screen {
    form: Form,
    /// Lines of the table that was drawn last.
    drawn: usize,
    /// The last line about each device.
    shown: BTreeMap<String, String>,
    recent: VecDeque<String>,
    /// Whether lines say what the device runs.
    names_versions: bool,
    is_stale: bool,
}

impl Screen {
    /// A table needs a terminal; `is_live` is false if it would be drawn once.
    pub(super) fn new(is_json: bool, is_live: bool, names_versions: bool) -> Screen {
        let form = match (is_json, is_live && output::is_terminal()) {
            (true, _) => Form::Json,
            (false, true) => Form::Table,
            (false, false) => Form::Lines,
        };
        let (shown, recent) = (BTreeMap::new(), VecDeque::new());
        Screen { form, drawn: 0, shown, recent, names_versions, is_stale: true }
    }

    /// Shows a change of a device; for people only if it looks like one.
    ///
    /// # Errors
    /// If the output can't be written.
    pub(super) fn change(
        &mut self,
        name: &str,
        (state, took): (&'static str, Option<Duration>),
        report: &DeviceReport,
    ) -> io::Result<()> {
        self.is_stale = true;
        if self.form == Form::Json {
            print_line!("{}", change(name, (state, took), report));
            return Ok(());
        }
        let why = (report.code.as_deref(), report.reason.as_deref());
        let runs = if self.names_versions { table::runs(report) } else { String::new() };
        let line = table::change(name, state, took, why) + &runs;
        if self.shown.get(name) == Some(&line) {
            return Ok(());
        }
        self.shown.insert(name.to_owned(), line.clone());
        if self.form == Form::Lines {
            print_line!("{line}");
            return Ok(());
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
        Ok(())
    }

    /// Draws the table, if there is one and something has changed.
    ///
    /// # Errors
    /// If the output can't be written.
    pub(super) fn draw(&mut self, lines: impl FnOnce() -> Vec<String>) -> io::Result<()> {
        if self.form != Form::Table || !self.is_stale {
            return Ok(());
        }
        let mut lines = lines();
        lines.extend(self.recent.iter().cloned());
        output::redraw(&lines, self.drawn)?;
        (self.drawn, self.is_stale) = (lines.len(), false);
        Ok(())
    }

    /// Shows the end: the summary for programs, or these lines, which replace the table.
    ///
    /// # Errors
    /// If the output can't be written.
    pub(super) fn end(&mut self, summary: &Value, lines: &[String]) -> io::Result<()> {
        match self.form {
            Form::Json => print_line!("{}", json!({"summary": summary})),
            Form::Lines => {
                for line in lines {
                    print_line!("{line}");
                }
            }
            Form::Table => output::redraw(lines, self.drawn)?,
        }
        Ok(())
    }

    /// The table has to be drawn again: time has passed or a stage has begun.
    pub(super) fn touch(&mut self) {
        self.is_stale = true;
    }

    /// Shows a line about the whole.
    ///
    /// # Errors
    /// If the output can't be written.
    pub(super) fn note(&mut self, key: &str, text: &str, value: &Value) -> io::Result<()> {
        self.is_stale = true;
        match self.form {
            Form::Json => print_line!("{}", json!({key: value})),
            Form::Lines => print_line!("{text}"),
            Form::Table => {}
        }
        Ok(())
    }
}

/// A change of a device for programs.
fn change(
    name: &str,
    (state, took): (&'static str, Option<Duration>),
    report: &DeviceReport,
) -> Value {
    let DeviceReport { version, offered, code, reason, fleet, group, is_update, .. } = report;
    let source = if *is_update { "update" } else { "file" };
    let mut line = json!({
        "device": name, "state": state, "version": version, "source": source,
        "offered": offered, "code": code, "reason": reason, "fleet": fleet, "group": group,
        "seconds": took.map(|took| took.as_secs_f64()),
    });
    if let Some(line) = line.as_object_mut() {
        line.retain(|_, value| !value.is_null());
    }
    line
}
