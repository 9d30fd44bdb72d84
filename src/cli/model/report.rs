//! Progress of downloads: one line on a terminal that is overwritten, lines in a file, or JSON lines.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::catalog::model::ModelEntry;
use crate::cli::output::{write_error, write_line};
use crate::clock::now;
use crate::models::{ModelEvent, ModelFault};

/// Intervals between two updates of the line on a terminal, and between two lines of a file that are due
/// to the time and not to a tenth of the model.
const EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Updates over which the rate is a mean.
const SAMPLES: usize = 25;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReportForm {
    Terminal,
    Lines,
    Json,
}

/// Prints the progress of several models.
pub(super) struct Report {
    form: ReportForm,
    models: Mutex<BTreeMap<String, Loading>>,
}

/// The progress of one model.
#[derive(Debug, Default)]
struct Loading {
    /// When so many bytes were there.
    samples: VecDeque<(Instant, u64)>,
    bytes: u64,
    /// The tenth that was printed last, and when.
    printed: Option<(u64, Instant)>,
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        let form = match (json, std::io::stderr().is_terminal()) {
            (true, _) => ReportForm::Json,
            (false, true) => ReportForm::Terminal,
            (false, false) => ReportForm::Lines,
        };
        Report { form, models: Mutex::default() }
    }

    pub(super) fn event(&self, model: &str, event: &ModelEvent) {
        match event {
            ModelEvent::Received { done, bytes } => self.received(model, *done, *bytes),
            ModelEvent::Waiting { why } => self.note(model, "waiting", why),
            ModelEvent::Restarted { why } => self.note(model, "restarted", why),
            ModelEvent::Retrying { why, wait } => {
                let why = format!("{why}; next attempt in {:.0} s", wait.as_secs_f64().ceil());
                self.note(model, "retrying", &why);
            }
        }
    }

    /// Prints how a model ended.
    pub(super) fn ended(&self, model: &ModelEntry, done: &Result<PathBuf, ModelFault>) {
        let name = &model.name;
        let loaded = self.lock().remove(name).is_some();
        self.clear();
        // a closed pipe must not end the downloads
        let _ = match (self.form, done) {
            (ReportForm::Json, Ok(path)) => {
                let event = if loaded { "loaded" } else { "present" };
                write_line(format_args!("{}", json!({"model": name, "event": event, "path": path})))
            }
            (ReportForm::Json, Err(fault)) => {
                let error = json!({"code": fault.code(), "message": fault.to_string()});
                write_line(format_args!(
                    "{}",
                    json!({"model": name, "event": "failed", "error": error})
                ))
            }
            (ReportForm::Terminal | ReportForm::Lines, Ok(_)) if loaded => {
                write_line(format_args!("{name}: loaded, {}", megabytes(model.bytes())))
            }
            (ReportForm::Terminal | ReportForm::Lines, Ok(_)) => {
                write_line(format_args!("{name}: present"))
            }
            (ReportForm::Terminal | ReportForm::Lines, Err(fault)) => {
                write_error(format_args!("error: {name}: {fault}"));
                Ok(())
            }
        };
    }

    /// Clears the line of the terminal.
    pub(super) fn clear(&self) {
        if self.form == ReportForm::Terminal {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }

    fn note(&self, model: &str, event: &str, why: &str) {
        if self.form == ReportForm::Json {
            let line = json!({"model": model, "event": event, "why": why});
            let _ = write_line(format_args!("{line}"));
        } else {
            self.clear();
            write_error(format_args!("{model}: {event}: {why}"));
        }
    }

    fn received(&self, model: &str, done: u64, bytes: u64) {
        let now = now();
        let mut models = self.lock();
        let loading = models.entry(model.to_owned()).or_default();
        loading.bytes = bytes;
        let last = loading.samples.back();
        let is_first = last.is_none();
        if !is_first && done < bytes && last.is_some_and(|(at, _)| now - *at < EVERY) {
            return;
        }
        loading.samples.push_back((now, done));
        if loading.samples.len() > SAMPLES {
            loading.samples.pop_front();
        }
        let tenth = done * 10 / bytes.max(1);
        let is_due =
            loading.printed.is_none_or(|(printed, at)| tenth > printed || now - at >= LINE_EVERY);
        if is_due || self.form == ReportForm::Terminal {
            loading.printed = Some((tenth, now));
        } else {
            return;
        }
        match self.form {
            ReportForm::Terminal => {
                let texts: Vec<String> =
                    models.iter().map(|(name, loading)| loading.text(name)).collect();
                let text = format!("\r\x1b[K{}", texts.join("  |  "));
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            ReportForm::Lines => write_error(format_args!("{}", loading.text(model))),
            ReportForm::Json => {
                let rate = loading.rate().map(f64::round);
                let line = json!({
                    "model": model, "event": "progress", "done": done, "bytes": bytes,
                    "bytes_per_s": rate,
                });
                let _ = write_line(format_args!("{line}"));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Loading>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loading {
    fn done(&self) -> u64 {
        self.samples.back().map_or(0, |(_, done)| *done)
    }

    /// Bytes per second; none until there are two samples.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn rate(&self) -> Option<f64> {
        let ((first_at, first), (last_at, last)) = (self.samples.front()?, self.samples.back()?);
        let passed = (*last_at - *first_at).as_secs_f64();
        (passed > 0.0).then(|| last.saturating_sub(*first) as f64 / passed)
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate and a time")]
    fn text(&self, name: &str) -> String {
        let percent = self.done() * 100 / self.bytes.max(1);
        let mut text = format!("{name}: {percent} % of {}", megabytes(self.bytes));
        if let Some(rate) = self.rate().filter(|rate| *rate >= 1.0) {
            let left = (self.bytes - self.done().min(self.bytes)) as f64 / rate;
            let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX).as_secs();
            let (rate, left) = (rate / 1e6, clock_text(left));
            text = format!("{text}, {rate:.1} MB/s, {left} left");
        }
        text
    }
}

/// Hours, minutes and seconds.
fn clock_text(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// Bytes in MB, below 10 MB with a digit after the point.
#[expect(clippy::cast_precision_loss, reason = "a size to be read")]
pub(super) fn megabytes(bytes: u64) -> String {
    let mb = bytes as f64 / 1e6;
    if mb < 10.0 { format!("{mb:.1} MB") } else { format!("{mb:.0} MB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_written_in_words() {
        let mut loading = Loading { bytes: 200_000_000, ..Loading::default() };
        let began = now();
        loading.samples.push_back((began, 50_000_000));
        assert_eq!(loading.text("m"), "m: 25 % of 200 MB");
        loading.samples.push_back((began + Duration::from_secs(2), 80_000_000));
        assert_eq!(loading.text("m"), "m: 40 % of 200 MB, 15.0 MB/s, 0:08 left");
        assert_eq!(clock_text(3_723), "1:02:03");
        assert_eq!(
            (megabytes(1_260_000), megabytes(99_600_000)),
            ("1.3 MB".into(), "100 MB".into())
        );
    }
}
