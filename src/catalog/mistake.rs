//! The collector of mistakes: every mistake of the configuration with the path of its value.

use std::fmt;

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The path of the value: `pilotlight.tasks.classify.max_tokens`.
    pub path: String,
    /// What is wrong and how to correct it.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// All mistakes of one file, in the order in which they were found.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// The scope of this path.
    pub(crate) fn at(&mut self, path: &str) -> Scope<'_> {
        Scope { mistakes: self, path: path.to_owned() }
    }

    pub(crate) fn into_vec(self) -> Vec<Mistake> {
        self.0
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
        self.mistakes.0.push(Mistake { path: self.path.clone(), message: message.into() });
    }
}
