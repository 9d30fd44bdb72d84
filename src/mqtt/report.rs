//! What the broker refused: counted, logged seldom, and listed in the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::clock;
use crate::limits::{
    BROKER_LINES_EVERY, BROKER_LINES_MAX, BROKER_PROBLEM_KEPT, BROKER_PROBLEMS_MAX,
    BROKER_REPEAT_EVERY,
};

/// Why a message was not delivered; a closed list, which the metrics have as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Undelivered {
    /// The broker refused it with a reason code, or closes the connection when it is published.
    Refused,
    /// It is larger than the broker accepts.
    TooLarge,
    /// The outbox has no room: the broker is disconnected or slow.
    Full,
    /// Its topic is not valid.
    Invalid,
    /// A received message that can't be answered.
    Unanswerable,
}

impl Undelivered {
    const ALL: [Undelivered; 5] = [
        Undelivered::Refused,
        Undelivered::TooLarge,
        Undelivered::Full,
        Undelivered::Invalid,
        Undelivered::Unanswerable,
    ];

    /// The name in metrics and status.
    fn name(self) -> &'static str {
        match self {
            Undelivered::Refused => "refused",
            Undelivered::TooLarge => "too_large",
            Undelivered::Full => "full",
            Undelivered::Invalid => "invalid",
            Undelivered::Unanswerable => "unanswerable",
        }
    }
}

/// What the broker refused and what could not be delivered, of one connection.
#[derive(Debug)]
pub struct BrokerReport {
    counts: [AtomicU64; Undelivered::ALL.len()],
    /// Largest packet that the broker accepts, stated or learned; [`u32::MAX`] if it has no limit.
    packet_max: AtomicU32,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    problems: BTreeMap<String, Problem>,
    /// Start of the present window, and the lines written in it.
    window: Option<(Instant, u32)>,
    left_out: u64,
}

#[derive(Debug)]
struct Problem {
    text: String,
    count: u64,
    logged: Option<Instant>,
    last: Instant,
}

impl Default for BrokerReport {
    fn default() -> BrokerReport {
        BrokerReport {
            counts: Default::default(),
            packet_max: AtomicU32::new(u32::MAX),
            lines: Mutex::default(),
        }
    }
}

impl BrokerReport {
    /// Counts a message that was not delivered, and notes it as a problem of its topic.
    pub fn undelivered(&self, kind: Undelivered, topic: &str, why: &str) {
        if let Some(count) = self.counts.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let what = match kind {
            Undelivered::Unanswerable => "no reply to a message on",
            Undelivered::Refused
            | Undelivered::TooLarge
            | Undelivered::Full
            | Undelivered::Invalid => "not delivered:",
        };
        let topic = shortened(topic);
        self.problem(&format!("{} {topic}", kind.name()), &format!("{what} {topic}: {why}"));
    }

    /// Notes a problem. The log has it when it is new, and again after [`BROKER_REPEAT_EVERY`].
    pub fn problem(&self, key: &str, text: &str) {
        let now = clock::now();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.may_log(key, text, now) {
            let left_out = std::mem::take(&mut lines.left_out);
            let count = lines.problems.get(key).map_or(1, |problem| problem.count);
            drop(lines);
            tracing::warn!(count, left_out, "{text}");
        }
    }

    /// Removes a problem.
    pub fn solved(&self, key: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.problems.remove(key);
    }

    /// A message to this topic was delivered: the broker does not refuse it.
    pub(super) fn delivered(&self, topic: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.problems.is_empty() {
            let refused = Undelivered::Refused.name();
            lines.problems.remove(&format!("{refused} {}", shortened(topic)));
        }
    }

    /// The present problems, each in one sentence with its number of occurrences.
    pub fn problems(&self) -> Vec<String> {
        let now = clock::now();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let present = lines.problems.values().filter(|problem| problem.is_present(now));
        present
            .map(|problem| match problem.count {
                1 => problem.text.clone(),
                count => format!("{} ({count} times)", problem.text),
            })
            .collect()
    }

    /// Messages that were not delivered, by kind, since the start.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let counted = Undelivered::ALL.iter().zip(&self.counts);
        let counted = counted.map(|(kind, count)| (*kind, count.load(Ordering::Relaxed)));
        counted
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| (kind.name().to_owned(), count))
            .collect()
    }

    /// Largest packet that the broker accepts.
    pub(super) fn packet_max(&self) -> usize {
        self.packet_max.load(Ordering::Relaxed) as usize
    }

    pub(super) fn set_packet_max(&self, bytes: Option<u32>) {
        self.packet_max.store(bytes.unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

impl Lines {
    /// Notes an occurrence; true if it is to be logged.
    fn may_log(&mut self, key: &str, text: &str, now: Instant) -> bool {
        self.problems.retain(|_, problem| problem.is_present(now));
        if !self.problems.contains_key(key) && self.problems.len() >= BROKER_PROBLEMS_MAX {
            let oldest = self.problems.iter().min_by_key(|(_, problem)| problem.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.problems.remove(&oldest);
            }
        }
        let (start, written) = match self.window {
            Some((start, written)) if now.duration_since(start) < BROKER_LINES_EVERY => {
                (start, written)
            }
            Some(_) | None => (now, 0),
        };
        let problem = self.problems.entry(key.to_owned()).or_insert_with(|| Problem {
            text: String::new(),
            count: 0,
            logged: None,
            last: now,
        });
        problem.count += 1;
        problem.last = now;
        text.clone_into(&mut problem.text);
        let is_due =
            problem.logged.is_none_or(|logged| now.duration_since(logged) >= BROKER_REPEAT_EVERY);
        if !is_due || written >= BROKER_LINES_MAX {
            self.window = Some((start, written));
            self.left_out += u64::from(is_due);
            return false;
        }
        problem.logged = Some(now);
        self.window = Some((start, written + 1));
        true
    }
}

impl Problem {
    fn is_present(&self, now: Instant) -> bool {
        now.duration_since(self.last) < BROKER_PROBLEM_KEPT
    }
}

/// The start of a topic that a client chose: a topic has up to 64 KiB.
fn shortened(topic: &str) -> String {
    const SHOWN: usize = 128;
    let mut shown: String = topic.chars().take(SHOWN).collect();
    if shown.len() < topic.len() {
        shown.push('…');
    }
    shown.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_problem_is_logged_once_and_all_problems_together_are_bounded() {
        let mut lines = Lines::default();
        let now = clock::now();
        assert!(lines.may_log("a", "one", now));
        assert!(!lines.may_log("a", "one", now));
        assert!(lines.may_log("a", "one", now + BROKER_REPEAT_EVERY));
        let later = now + BROKER_REPEAT_EVERY + BROKER_LINES_EVERY;
        let logged = (0..1000).filter(|n| lines.may_log(&n.to_string(), "x", later)).count();
        assert_eq!(logged, BROKER_LINES_MAX as usize);
        assert_eq!(lines.left_out, 1000 - u64::from(BROKER_LINES_MAX));
        assert_eq!(lines.problems.len(), BROKER_PROBLEMS_MAX);
        let later = later + BROKER_PROBLEM_KEPT + Duration::from_secs(1);
        lines.may_log("last", "x", later);
        assert_eq!(lines.problems.len(), 1);
    }

    #[test]
    fn counts_and_problems_are_visible_until_they_are_solved() {
        let report = BrokerReport::default();
        report.undelivered(Undelivered::Refused, "a/b", "not authorized");
        report.undelivered(Undelivered::Refused, "a/b", "not authorized");
        assert_eq!(report.problems(), ["not delivered: a/b: not authorized (2 times)"]);
        assert_eq!(report.counts(), BTreeMap::from([("refused".to_owned(), 2)]));
        report.delivered("a/b");
        assert_eq!(report.problems(), Vec::<String>::new());
        assert_eq!(report.counts()["refused"], 2);
    }
}
