//! The model file, opened once: what is checked and hashed is what llama.cpp loads.

use std::fs::{self, File, Metadata};
use std::io;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::head::{GgufHead, NotGguf, Truncated};
use crate::model::generate::Fault;

/// An open GGUF file with a checked head.
pub(crate) struct ModelFile {
    file: File,
    opened: Metadata,
    pub(crate) head: GgufHead,
}

/// Identity of a file and the time of its last change. Programs can set a time of modification, and no time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl ModelStamp {
    fn of(file: &Metadata) -> ModelStamp {
        ModelStamp {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            changed_s: file.ctime(),
            changed_ns: file.ctime_nsec(),
        }
    }
}

impl ModelFile {
    /// Opens the file and checks its head.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that says what is wrong.
    pub(crate) fn open(path: &Path) -> Result<ModelFile, Fault> {
        let shown = path.display();
        let unreadable = |e: io::Error| {
            Fault::unavailable(format!("the model file {shown} cannot be read: {e}"))
        };
        // a pipe would never be opened
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(Fault::unavailable(format!("{shown} is not a GGUF file, nor any file")));
        }
        let file = File::open(path).map_err(unreadable)?;
        let opened = file.metadata().map_err(unreadable)?;
        let head = GgufHead::read(&file, opened.len()).map_err(|error| {
            Fault::unavailable(if error.is::<Truncated>() {
                format!("cannot load {shown}: {error}; the file may be truncated")
            } else if error.is::<NotGguf>() {
                format!("{shown} is not a GGUF file")
            } else {
                format!("the GGUF head of {shown} is damaged: {error:#}")
            })
        })?;
        Ok(ModelFile { file, opened, head })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.opened.len()
    }

    /// What the file was when it was opened.
    pub(crate) fn stamp(&self) -> ModelStamp {
        ModelStamp::of(&self.opened)
    }

    /// A path to the open file, for a library that opens files itself. It stays valid when the file's
    /// own path gets another file.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The file from its start, to be hashed.
    ///
    /// # Errors
    /// If the file can't be read.
    pub(crate) fn reader(&self) -> io::Result<&File> {
        (&self.file).seek(SeekFrom::Start(0))?;
        Ok(&self.file)
    }

    /// Checks that the file has not been written to since it was opened.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if it has.
    pub(crate) fn check_unchanged(&self, path: &Path) -> Result<(), Fault> {
        match self.file.metadata() {
            Ok(present) if ModelStamp::of(&present) == self.stamp() => Ok(()),
            Ok(_) | Err(_) => {
                let shown = path.display();
                Err(Fault::unavailable(format!("{shown} was changed while it was loaded")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A head without keys and tensors, and some bytes.
    fn file(data: &[u8]) -> Vec<u8> {
        [&b"GGUF\x03\0\0\0"[..], &[0; 16], data].concat()
    }

    #[test]
    fn the_file_that_was_checked_is_the_one_that_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, file(b"first")).unwrap();
        let opened = ModelFile::open(&path).unwrap();
        // another file takes its place
        let other = folder.path().join("other.gguf");
        fs::write(&other, file(b"second")).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(fs::read(opened.path()).unwrap(), file(b"first"));
        let mut hashed = Vec::new();
        opened.reader().unwrap().read_to_end(&mut hashed).unwrap();
        assert_eq!(hashed, file(b"first"));
    }

    #[test]
    fn a_file_that_is_written_to_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, file(b"first")).unwrap();
        let opened = ModelFile::open(&path).unwrap();
        opened.check_unchanged(&path).unwrap();
        fs::write(&path, file(b"other, longer")).unwrap();
        let error = opened.check_unchanged(&path).unwrap_err();
        assert!(error.to_string().contains("was changed"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [folder.path(), pipe.as_path()] {
            let error = ModelFile::open(path).err().unwrap();
            assert!(error.to_string().contains("is not a GGUF file"), "{error}");
        }
    }
}
