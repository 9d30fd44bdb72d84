//! One file from its source: attempts, each of which goes on where the one before ended.

use std::fs::File;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Response, Url};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::fault::ModelFault;
use super::part::{self, PartFile, part_of};
use super::source::{self, AttemptFault, NextAttempt};
use super::{ModelEvent, ModelStore, Progress, Transfer, blocking};
use crate::catalog::model::ModelSource;
use crate::catalog::secret::Secret;
use crate::limits::models::{
    DOWNLOAD_ATTEMPTS_MAX, DOWNLOAD_FAILURES_MAX, DOWNLOAD_PIECES_MAX, DOWNLOAD_PROGRESS_BYTES,
    DOWNLOAD_RESTARTS_MAX, DOWNLOAD_RETRY_AFTER_MAX, DOWNLOAD_RETRY_MAX, DOWNLOAD_ROOM_EVERY_BYTES,
    DOWNLOAD_STALL_BYTES_MIN,
};

/// How one file is loaded.
pub(super) struct Download<'d> {
    pub(super) store: &'d ModelStore,
    pub(super) ca: Option<&'d str>,
    pub(super) progress: Progress<'d>,
    pub(super) cancel: &'d CancellationToken,
}

impl Download<'_> {
    /// Completes the part and gives the file its name, if `check` accepts its structure.
    ///
    /// # Errors
    /// Why not. The part is kept unless its content is wrong.
    pub(super) async fn run(
        &self,
        part: PartFile,
        check: impl FnOnce(&File, u64) -> Result<(), String> + Clone + Send + 'static,
    ) -> Result<(), ModelFault> {
        let target = part.place().0;
        let done = self.complete(part, check).await;
        let is_useless = match &done {
            Err(ModelFault::WrongLength { .. }) => true,
            Ok(()) | Err(_) => {
                std::fs::metadata(part_of(&target)).is_ok_and(|meta| meta.len() == 0)
            }
        };
        if is_useless {
            part::remove(&target);
        }
        done
    }

    async fn complete(
        &self,
        mut part: PartFile,
        check: impl FnOnce(&File, u64) -> Result<(), String> + Clone + Send + 'static,
    ) -> Result<(), ModelFault> {
        // each restart is one after a wrong digest
        for restarts in 0..=DOWNLOAD_RESTARTS_MAX {
            let source = part.entry().source.clone();
            part = match &source {
                ModelSource::Url(Secret(url)) => self.download(part, url).await?,
                ModelSource::File(path) => self.copy(part, path).await?,
            };
            let (is_resumed, entry) = (part.is_resumed, part.entry().clone());
            let (target, lock) = part.place();
            let check = check.clone();
            match blocking(move || part.finish(check)).await? {
                // the parts may be of two versions
                Err(fault @ ModelFault::WrongDigest { .. })
                    if is_resumed && restarts < DOWNLOAD_RESTARTS_MAX =>
                {
                    (self.progress)(&ModelEvent::Restarted { why: fault.to_string() });
                    let cancel = self.cancel.clone();
                    let open = move || PartFile::open(&target, &entry, lock, &cancel);
                    part = blocking(open).await??;
                }
                done => return done,
            }
        }
        Err(ModelFault::Unreachable("the source changes all the time".to_owned()))
    }

    /// Attempts until the part is complete.
    async fn download(&self, mut part: PartFile, url: &str) -> Result<PartFile, ModelFault> {
        let first = Url::parse(url).map_err(|e| ModelFault::Refused(format!("no URL: {e}")))?;
        let client = source::client(&first, self.ca, &part.entry().addresses)?;
        let mut failures = 0;
        let mut best = part.len();
        self.tell(&part);
        for _ in 0..DOWNLOAD_ATTEMPTS_MAX {
            if part.missing() == 0 {
                return Ok(part);
            }
            self.store.until_permitted(Transfer::Network, self.progress, self.cancel).await?;
            self.store.check_room(part.missing())?;
            let ended;
            (part, ended) = self.attempt(part, &client, &first).await?;
            let Err(AttemptFault { fault, next }) = ended else { continue };
            // beyond what any attempt before had: a server may send the same bytes again and again
            if part.len() >= best + DOWNLOAD_PROGRESS_BYTES {
                failures = 0;
            }
            best = best.max(part.len());
            failures += 1;
            let wait = match next {
                NextAttempt::None => return Err(fault),
                NextAttempt::Now => {
                    failures = 0;
                    continue;
                }
                NextAttempt::After(wait) => wait,
                NextAttempt::FromZero => {
                    part.restart()?;
                    None
                }
            };
            let wait = wait.unwrap_or_else(|| self.back_off(failures));
            if failures >= DOWNLOAD_FAILURES_MAX || wait > DOWNLOAD_RETRY_AFTER_MAX {
                return Err(fault);
            }
            (self.progress)(&ModelEvent::Retrying { why: short(&fault), wait });
            tokio::select! {
                () = self.cancel.cancelled() => return Err(ModelFault::Cancelled),
                () = tokio::time::sleep(wait) => {}
            }
        }
        Err(ModelFault::Unreachable(format!("{DOWNLOAD_ATTEMPTS_MAX} attempts were not enough")))
    }

    /// The wait before the next attempt: doubled with each failure, and up to half of it left out at
    /// random, so that a fleet does not return at one moment.
    fn back_off(&self, failures: u32) -> Duration {
        let full = self.store.pace.retry.saturating_mul(1 << (failures - 1).min(16));
        full.min(DOWNLOAD_RETRY_MAX).mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn tell(&self, part: &PartFile) {
        let (done, bytes) = (part.len(), part.entry().bytes);
        (self.progress)(&ModelEvent::Received { done, bytes });
    }

    /// One request, whose response is appended to the part.
    async fn attempt(
        &self,
        mut part: PartFile,
        client: &Client,
        url: &Url,
    ) -> Result<(PartFile, Result<(), AttemptFault>), ModelFault> {
        let asked = source::request(client, url, &part, self.ca);
        let response = tokio::select! {
            () = self.cancel.cancelled() => return Err(ModelFault::Cancelled),
            response = tokio::time::timeout(self.store.pace.stall, asked) => response,
        };
        let response = match response {
            Ok(Ok(response)) => response,
            Ok(Err(fault)) => return Ok((part, Err(fault))),
            Err(_) => {
                let why = "the server does not answer";
                return Ok((part, Err(AttemptFault::again(why))));
            }
        };
        let known = part.version_at(url.as_str()).map(str::to_owned);
        let version = match source::check_head(&response, &part, known.as_deref()) {
            Ok(head) => {
                if head.is_from_zero && part.len() > 0 {
                    let why = "the server has another version, or sends no parts".to_owned();
                    (self.progress)(&ModelEvent::Restarted { why });
                    part.restart()?;
                }
                head.version
            }
            Err(fault) => return Ok((part, Err(fault))),
        };
        part.begin(url.as_str(), version)?;
        part.is_resumed |= part.len() > 0;
        self.receive(part, response).await
    }

    /// Appends the body of a response. Hash and disk work on a thread beside the network.
    async fn receive(
        &self,
        mut part: PartFile,
        mut response: Response,
    ) -> Result<(PartFile, Result<(), AttemptFault>), ModelFault> {
        let (send, mut pieces) = mpsc::channel::<Bytes>(DOWNLOAD_PIECES_MAX);
        let (mut missing, bytes) = (part.missing(), part.entry().bytes);
        let entry = part.entry().clone();
        let mut writer = JoinSet::new();
        writer.spawn_blocking(move || {
            while let Some(piece) = pieces.blocking_recv() {
                if let Err(fault) = part.write(&piece) {
                    return (part, Err(fault));
                }
            }
            (part, Ok(()))
        });
        let mut window = tokio::time::interval(self.store.pace.stall);
        // a disk that is slow for a while is not followed by several windows at once
        window.set_missed_tick_behavior(MissedTickBehavior::Delay);
        window.tick().await;
        let (mut in_window, mut since_room) = (0, 0);
        // ends with the response, which has at most `bytes`, or with a window that brought too little
        let ended = loop {
            let piece = tokio::select! {
                biased;
                () = self.cancel.cancelled() => break Err(AttemptFault::last(ModelFault::Cancelled)),
                piece = response.chunk() => piece,
                _ = window.tick() => {
                    if in_window < DOWNLOAD_STALL_BYTES_MIN {
                        break Err(AttemptFault::again("the server has stopped sending"));
                    }
                    in_window = 0;
                    if self.store.obstacle(Transfer::Network).await.is_some() {
                        break Err(AttemptFault::paused());
                    }
                    continue;
                }
            };
            let piece = match piece {
                Ok(Some(piece)) => piece,
                Ok(None) => break source::check_end(&response, &entry, missing),
                Err(error) => break Err(AttemptFault::again(source::why(error))),
            };
            let length = piece.len() as u64;
            if length > missing {
                let found = format!("the source sends more than {bytes} bytes");
                break Err(source::wrong_length(&entry, found));
            }
            missing -= length;
            in_window += length;
            since_room += length;
            // the writer has ended, and tells why
            if send.send(piece).await.is_err() {
                break Ok(());
            }
            (self.progress)(&ModelEvent::Received { done: bytes - missing, bytes });
            if since_room >= DOWNLOAD_ROOM_EVERY_BYTES {
                since_room = 0;
                if let Err(fault) = self.store.check_room(missing) {
                    break Err(AttemptFault::last(fault));
                }
            }
        };
        drop(send);
        let Some(Ok((part, written))) = writer.join_next().await else {
            return Err(ModelFault::Unreachable("the thread that writes has ended".to_owned()));
        };
        written?;
        Ok((part, ended))
    }

    /// Copies a file of this device.
    async fn copy(&self, part: PartFile, path: &str) -> Result<PartFile, ModelFault> {
        self.store.until_permitted(Transfer::Local, self.progress, self.cancel).await?;
        self.tell(&part);
        let (send, mut done) = mpsc::channel(1);
        let (path, store, cancel) = (path.to_owned(), self.store.clone(), self.cancel.clone());
        let mut thread = JoinSet::new();
        let bytes = part.entry().bytes;
        thread.spawn_blocking(move || {
            source::copy(part, path.as_ref(), &store, &cancel, |done| {
                // what is told late is told with the next piece
                let _ = send.try_send(done);
            })
        });
        while let Some(done) = done.recv().await {
            (self.progress)(&ModelEvent::Received { done, bytes });
        }
        match thread.join_next().await {
            Some(Ok(copied)) => copied,
            Some(Err(_)) | None => {
                Err(ModelFault::Unreachable("the thread that copies has ended".to_owned()))
            }
        }
    }
}

/// The fault without what an operator could do: another attempt follows.
fn short(fault: &ModelFault) -> String {
    if let ModelFault::Unreachable(why) = fault { why.clone() } else { fault.to_string() }
}
