//! The file of learned model statistics, which survive a restart.

use std::io;
use std::path::{Path, PathBuf};

use super::files;
use crate::limits::LEARNED_BYTES_MAX;
use crate::model::context::{Locality, ModelContext};
use crate::scheduler::Learned;

/// The file's name in the state folder.
const NAME: &str = "learned.json";

/// The store of learned statistics, or a store that keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct LearnedStore {
    file: Option<PathBuf>,
    /// The processor's frequency governor.
    governor: String,
}

impl LearnedStore {
    /// A store in this folder. `governor` is the processor's frequency governor, on which the rates of an
    /// engine depend.
    pub fn new(folder: Option<&Path>, governor: Option<String>) -> LearnedStore {
        LearnedStore {
            file: folder.map(|folder| folder.join(NAME)),
            governor: governor.unwrap_or_default(),
        }
    }

    /// The stored statistics; empty if the file is missing or can't be read.
    pub(crate) fn read(&self) -> Learned {
        let Some(file) = &self.file else { return Learned::default() };
        match read(file) {
            Ok(learned) => learned,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Learned::default(),
            Err(error) => {
                let file = file.display();
                tracing::warn!(%file, %error, "learned.json is unusable; starting without learned \
                                               rates");
                Learned::default()
            }
        }
    }

    /// Replaces the stored statistics atomically. A failure is logged.
    pub(crate) fn write(&self, learned: &Learned) {
        let Some(file) = &self.file else { return };
        if let Err(error) = write(file, learned) {
            let file = file.display();
            tracing::warn!(%file, %error, "learned.json cannot be written");
        }
    }

    /// The state folder.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.file.as_deref().and_then(Path::parent)
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.file.is_some()
    }

    /// The key of a model's measured rates: what they depend on.
    pub(crate) fn measured(
        &self,
        server: &str,
        locality: Locality,
        context: &ModelContext,
    ) -> String {
        let runtime = &context.runtime;
        let model = context.identification.digest.as_ref().unwrap_or(&context.identification.name);
        match locality {
            Locality::Device => {
                let on = runtime.accelerator.as_deref().unwrap_or("cpu");
                let (backend, threads) = (&runtime.backend, runtime.threads);
                format!("{model} {backend} {on} {threads} {}", self.governor)
            }
            Locality::Peer | Locality::Cloud => format!("{model} at {server}"),
        }
    }
}

fn read(file: &Path) -> io::Result<Learned> {
    files::parse(&files::read(file, LEARNED_BYTES_MAX)?)
}

fn write(file: &Path, learned: &Learned) -> io::Result<()> {
    files::replace(file, &serde_json::to_vec(learned)?).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn unreadable_files_count_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let keep = LearnedStore::new(Some(folder.path()), None);
        assert_eq!(keep.read(), Learned::default());
        for text in ["", "{", "[]", "{\"models\": 3}", "\u{0}"] {
            fs::write(folder.path().join(NAME), text).unwrap();
            assert_eq!(keep.read(), Learned::default(), "{text:?}");
        }
        fs::write(folder.path().join(NAME), vec![b' '; 5 << 20]).unwrap();
        assert_eq!(keep.read(), Learned::default());
        keep.write(&Learned::default());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn impossible_rates_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"models": {"m": {"read": [1e38, -1, 2], "whole": [3e30]}},
            "answers": {"clock": 18446744073709551615, "templates": {"t": {"lengths": [1e38]}}}}"#;
        fs::write(folder.path().join(NAME), text).unwrap();
        let kept =
            serde_json::to_value(LearnedStore::new(Some(folder.path()), None).read()).unwrap();
        assert_eq!(kept["models"]["m"]["read"], serde_json::json!([2.0]));
        assert_eq!(kept["models"]["m"]["whole"], serde_json::json!([]));
    }
}
