//! The collector of mistakes: every mistake of the configuration with the path of its value.

use std::fmt;

use serde::Serialize;

use crate::limits::config::{CONFIG_MISTAKES_BYTES_MAX, CONFIG_MISTAKES_MAX};

/// The path of a mistake of the whole file, whose name the catalog does not know.
pub const FILE: &str = "mcp.json";

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The path of the value: `pilotlight.tasks.classify.max_tokens`.
    pub path: String,
    /// What is wrong and how to correct it.
    pub message: String,
    /// Where the value is; none for what is in no file, such as a variable of the environment.
    pub place: Option<Place>,
}

/// A place in a file, as editors count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

/// A mistake in the form of `pilotlight check --json`, which is stable.
#[derive(Debug, Serialize)]
pub struct MistakeReport<'m> {
    file: Option<&'m str>,
    path: &'m str,
    line: Option<usize>,
    column: Option<usize>,
    message: &'m str,
}

impl Mistake {
    /// A mistake whose place is not known, or not known yet.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Mistake {
        Mistake { path: path.into(), message: message.into(), place: None }
    }

    /// The mistake for programs.
    pub fn report(&self) -> MistakeReport<'_> {
        let place = self.place.as_ref();
        MistakeReport {
            file: place.map(|place| place.file.as_str()),
            path: &self.path,
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            message: &self.message,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            // the path of the whole file is its name, which is there already
            Some(place) if place.file == self.path => write!(f, "{place}: {}", self.message),
            Some(place) => write!(f, "{place}: {}: {}", self.path, self.message),
            None => write!(f, "{}: {}", self.path, self.message),
        }
    }
}

/// All mistakes of one file, in the order in which they were found; bounded by [`CONFIG_MISTAKES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Mistakes {
    found: Vec<Mistake>,
    bytes: usize,
}

impl Mistakes {
    /// The scope of this path.
    pub(crate) fn at(&mut self, path: &str) -> Scope<'_> {
        Scope { mistakes: self, path: path.to_owned() }
    }

    /// Adds a mistake, unless there are too many.
    pub(super) fn push(&mut self, mistake: Mistake) {
        if !self.is_full() {
            self.bytes += mistake.path.len() + mistake.message.len();
            self.found.push(mistake);
        }
    }

    /// Whether further mistakes are left out.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= CONFIG_MISTAKES_MAX || self.bytes >= CONFIG_MISTAKES_BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Renames the first key of paths.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        for mistake in &mut self.found {
            let rest = mistake.path.strip_prefix(from);
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('.')) {
                mistake.path = format!("{to}{rest}");
            }
        }
    }

    pub(crate) fn into_vec(mut self) -> Vec<Mistake> {
        if self.is_full() {
            let message = "there may be more mistakes; correct these first";
            self.found.push(Mistake::new(FILE, message));
        }
        self.found
    }
}

/// A path of the file; mistakes that are added to it get this path.
pub(crate) struct Scope<'m> {
    mistakes: &'m mut Mistakes,
    path: String,
}

impl Scope<'_> {
    /// The scope of a member of this value: `path.key`.
    pub(crate) fn at(&mut self, key: &str) -> Scope<'_> {
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Scope { mistakes: self.mistakes, path }
    }

    /// The scope of an item of this array: `path[index]`.
    pub(crate) fn item(&mut self, index: usize) -> Scope<'_> {
        Scope { path: format!("{}[{index}]", self.path), mistakes: self.mistakes }
    }

    /// Adds a mistake at this path.
    pub(crate) fn add(&mut self, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(self.path.clone(), message));
    }

    /// Whether further mistakes are left out.
    pub(super) fn is_full(&self) -> bool {
        self.mistakes.is_full()
    }
}

/// All mistakes in one text.
pub fn in_one_line(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
