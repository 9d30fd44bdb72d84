//! The record of a start, for the next start with the same model: the digest of the file, which takes a small board
//! seconds to compute, and the measurement of the engine.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engines::worker::Measurement;
use crate::gguf::file::{ModelFile, ModelStamp};
use crate::limits::engine::START_RECORD_BYTES_MAX;
use crate::store::files;

/// The name of the file, in the folder of the model.
const FILE: &str = "start.json";

/// The record in a folder.
#[derive(Debug)]
pub(super) struct StartRecord {
    path: PathBuf,
    stamp: ModelStamp,
    kept: Option<KeptStart>,
}

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptStart {
    /// The model file, and its SHA-256.
    stamp: ModelStamp,
    digest: String,
    /// Weights, program, options and processors with which the measurement was made.
    measured_with: String,
    measurement: Measurement,
}

impl StartRecord {
    /// The record of a model in its folder. A file that can't be read counts as none.
    pub(super) fn open(folder: &Path, model: &ModelFile) -> StartRecord {
        let path = folder.join(FILE);
        let kept = files::read(&path, START_RECORD_BYTES_MAX).and_then(|json| files::parse(&json));
        let kept = kept
            .inspect_err(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    let file = path.display();
                    tracing::warn!(%file, %error, "what an earlier start measured is unusable");
                }
            })
            .ok();
        StartRecord { path, stamp: model.stamp(), kept }
    }

    /// The digest of the model, if its file has not changed since it was computed.
    pub(super) fn digest(&self) -> Option<&str> {
        let kept = self.kept.as_ref().filter(|kept| kept.stamp == self.stamp);
        kept.map(|kept| kept.digest.as_str())
    }

    /// The measurement, if it was made with the same weights, program, options and processors.
    pub(super) fn measurement(&self, with: &str) -> Option<Measurement> {
        let kept = self.kept.as_ref().filter(|kept| kept.measured_with == with);
        kept.map(|kept| kept.measurement.clone())
    }

    /// Keeps a measurement; a failure is logged.
    pub(super) fn keep(&mut self, digest: &str, with: &str, measurement: &Measurement) {
        let new = KeptStart {
            stamp: self.stamp,
            digest: digest.to_owned(),
            measured_with: with.to_owned(),
            measurement: measurement.clone(),
        };
        if self.kept.as_ref() == Some(&new) {
            return;
        }
        let json = serde_json::to_vec(&new).map_err(io::Error::from);
        if let Err(error) = json.and_then(|json| files::replace(&self.path, &json)) {
            let file = self.path.display();
            tracing::warn!(%file, %error, "what was measured is not kept for the next start");
        }
        self.kept = Some(new);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with a GGUF file without keys and tensors.
    fn model() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, [&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat()).unwrap();
        (folder, path)
    }

    #[test]
    fn a_start_is_known_to_the_next_one_with_the_same_file_and_options() {
        let (folder, path) = model();
        let open = || StartRecord::open(folder.path(), &ModelFile::open(&path).unwrap());
        let measurement = Measurement::of(1.5, vec![(1, 9.0), (2, 17.0)], 2);
        let mut first = open();
        assert_eq!((first.digest(), first.measurement("a 2")), (None, None));
        first.keep("abc", "a 2", &measurement);
        let second = open();
        assert_eq!(second.digest(), Some("abc"));
        assert_eq!(second.measurement("a 2"), Some(measurement.clone()));
        assert_eq!(second.measurement("a 4"), None);
        // the file is written to
        fs::write(&path, [&b"GGUF\x03\0\0\0"[..], &[0; 17]].concat()).unwrap();
        let third = open();
        assert_eq!(third.digest(), None);
        assert_eq!(third.measurement("a 2"), Some(measurement));
    }

    #[test]
    fn a_damaged_record_is_none() {
        let (folder, path) = model();
        let long = vec![b' '; usize::try_from(START_RECORD_BYTES_MAX).unwrap() + 1];
        for damaged in [&b"{"[..], b"{}", b"\xff", &long] {
            fs::write(folder.path().join(FILE), damaged).unwrap();
            let record = StartRecord::open(folder.path(), &ModelFile::open(&path).unwrap());
            assert_eq!(record.digest(), None);
        }
    }
}
