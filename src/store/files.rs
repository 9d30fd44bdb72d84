//! Reading files up to a bound, and replacing them atomically and durably.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::limits::REASON_BYTES_MAX;
use crate::request::refusal::one_line;

/// Options that open a file for writing, readable by its owner alone, and create it if it is missing.
pub(crate) fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// The content of a file.
///
/// # Errors
/// If it can't be read, or has more than `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Parses JSON that this program has written.
///
/// # Errors
/// Why it is not the type, and where. The message may repeat a text of the file, so it is one line of bounded length.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        let mut why = error.to_string();
        if why.len() > REASON_BYTES_MAX {
            let (line, column) = (error.line(), error.column());
            why = format!("{}… at line {line} column {column}", one_line(&why, REASON_BYTES_MAX));
        }
        io::Error::new(io::Error::from(error).kind(), why)
    })
}

/// Replaces a file atomically: after a crash its content is the old or the new one, never a part. The
/// file and the folder are synced to disk. Returns the file, open at its end.
///
/// # Errors
/// If it can't be written or synced; unless the sync of the folder failed, the old content remains.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let part = path.with_extension("part");
    let mut file = own().truncate(true).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    // the rename is durable once the folder is on disk
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_repeat_a_long_text() {
        let long = format!("\n\"{}\"", "ä\u{202E}".repeat(10_000));
        let why = parse::<u32>(long.as_bytes()).unwrap_err().to_string();
        assert!(why.starts_with("invalid type: string \"ä"), "{why}");
        assert!(why.ends_with("… at line 2 column 50002"), "{why}");
        assert!(why.len() < REASON_BYTES_MAX + 50, "{why}");
        let error = parse::<Vec<u32>>(b"[1, \"x\"]").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let why = "invalid type: string \"x\", expected u32 at line 1 column 7";
        assert_eq!(error.to_string(), why);
        assert_eq!(parse::<u32>(b"").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
