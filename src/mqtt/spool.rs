//! Spool: requests that were acknowledged to the broker before their answer, one file for each.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rumqttc::mqttbytes::v5::Publish;
use serde::{Deserialize, Serialize};

use super::Incoming;
use super::acks::AckGuard;
use crate::clock;
use crate::limits::{REQUEST_BYTES_MAX, SPOOL_BYTES_MAX, SPOOL_MAX};
use crate::store::files;
use crate::time::millis;

/// The largest file: a payload in base64, and the rest of the message.
const FILE_BYTES_MAX: u64 = 2 * REQUEST_BYTES_MAX as u64;

/// The number of a file, in the order of writing.
pub(super) type FileId = u64;

/// The files of one folder.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// Sizes in bytes.
    files: BTreeMap<FileId, u64>,
}

/// A request on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpooledMessage {
    topic: String,
    /// Base64.
    payload: String,
    response_topic: Option<String>,
    /// Base64.
    correlation: Option<String>,
    properties: Vec<(String, String)>,
    /// When it was received, milliseconds since the epoch.
    received_ms: u64,
    /// Message expiry interval that was left then, milliseconds.
    expiry_ms: Option<u64>,
}

impl SpooledMessage {
    /// A received message, as it is written; none if its payload is not kept or too large.
    pub(super) fn of(publish: &Publish) -> Option<SpooledMessage> {
        let properties = publish.properties.clone().unwrap_or_default();
        let bytes = publish.payload.len();
        (1..=REQUEST_BYTES_MAX).contains(&bytes).then(|| SpooledMessage {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: STANDARD.encode(&publish.payload),
            response_topic: properties.response_topic,
            correlation: properties.correlation_data.map(|data| STANDARD.encode(data)),
            properties: properties.user_properties,
            received_ms: millis(clock::since_epoch()),
            expiry_ms: properties.message_expiry_interval.map(|s| u64::from(s) * 1000),
        })
    }

    /// The message as it is delivered again; none if its payload was changed on disk.
    pub(super) fn incoming(self, ack: AckGuard) -> Option<Incoming> {
        let decoded = |text: &String| STANDARD.decode(text).ok().map(Bytes::from);
        let received = Duration::from_millis(self.received_ms);
        let age = clock::since_epoch().saturating_sub(received);
        let (now, expiry) = (clock::now(), self.expiry_ms.map(Duration::from_millis));
        Some(Incoming {
            payload: Ok(decoded(&self.payload)?),
            correlation: self.correlation.as_ref().and_then(decoded),
            expiry: expiry.map(|expiry| expiry.saturating_sub(age)),
            arrived: now.checked_sub(age).unwrap_or(now),
            topic: self.topic,
            retained: false,
            again: true,
            response_topic: self.response_topic,
            properties: self.properties,
            ack,
        })
    }
}

impl Spool {
    /// Opens the folder, which is created if it is missing.
    ///
    /// # Errors
    /// If it can't be created.
    pub(super) fn open(folder: &Path) -> io::Result<Spool> {
        std::fs::create_dir_all(folder)?;
        Ok(Spool { folder: folder.to_owned(), files: BTreeMap::new() })
    }

    /// Reads what an earlier process left, in the order of writing. A file that can't be read is named
    /// in the log and stays.
    pub(super) fn read_all(&mut self) -> Vec<(FileId, SpooledMessage)> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let id = |entry: std::fs::DirEntry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".json")?.parse::<FileId>().ok()
        };
        let mut ids: Vec<FileId> = entries.filter_map(id).collect();
        ids.sort_unstable();
        let mut left = Vec::new();
        for id in ids.into_iter().take(SPOOL_MAX) {
            let path = self.path(id);
            let read = files::read(&path, FILE_BYTES_MAX).and_then(|bytes| {
                Ok((bytes.len() as u64, files::parse::<SpooledMessage>(&bytes)?))
            });
            match read {
                Ok((bytes, message)) => {
                    self.files.insert(id, bytes);
                    left.push((id, message));
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a spooled request is unreadable");
                }
            }
        }
        left
    }

    /// Reserves a file; the returned function writes it and blocks. None if the spool is full.
    pub(super) fn write(
        &mut self,
        message: &SpooledMessage,
    ) -> Option<(FileId, impl FnOnce() -> io::Result<()> + Send + use<>)> {
        let bytes = serde_json::to_vec(message).ok()?;
        let size = bytes.len() as u64;
        let used: u64 = self.files.values().sum();
        if self.files.len() >= SPOOL_MAX || used + size > SPOOL_BYTES_MAX {
            return None;
        }
        let id = self.files.last_key_value().map_or(1, |(last, _)| last + 1);
        self.files.insert(id, size);
        let path = self.path(id);
        Some((id, move || files::replace(&path, &bytes).map(drop)))
    }

    /// Removes a file. Without a sync: after a power failure its request may be answered once more.
    pub(super) fn remove(&mut self, id: FileId) {
        self.files.remove(&id);
        let path = self.path(id);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a spooled request cannot be removed");
        }
    }

    fn path(&self, id: FileId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}
