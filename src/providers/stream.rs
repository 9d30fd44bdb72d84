//! The body of a provider's answer, within bounds: events one after the other, or all at once.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::Response;
use sse_stream::SseStream;

use super::fault_of_line;
use crate::limits::{PROVIDER_BYTES_MAX, PROVIDER_HELD_BYTES_MAX};
use crate::model::generate::Fault;

/// The data of each event.
pub(super) struct Events(Pin<Box<dyn Stream<Item = Result<String, Fault>> + Send>>);

impl Events {
    /// Those of this answer. More than [`PROVIDER_BYTES_MAX`] are not read, and no line of more than
    /// [`PROVIDER_HELD_BYTES_MAX`].
    pub(super) fn of(response: Response) -> Events {
        let (mut read, mut line) = (0, 0);
        let parts = response.bytes_stream().map(move |part| {
            let part = part.map_err(|e| Stopped(fault_of_line(&e)))?;
            read += part.len();
            line = match part.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => part.len() - end,
                None => line + part.len(),
            };
            if read > PROVIDER_BYTES_MAX || line > PROVIDER_HELD_BYTES_MAX {
                return Err(Stopped(too_long()));
            }
            Ok::<Bytes, Stopped>(part)
        });
        let events = SseStream::from_bytes_stream(parts).map_err(|error| {
            let why = format!("its events cannot be parsed: {error}");
            let stopped = if let sse_stream::Error::Body(body) = error { Some(body) } else { None };
            let stopped = stopped.and_then(|body| body.downcast::<Stopped>().ok());
            stopped.map_or(Fault::ProtocolError(why), |stopped| stopped.0)
        });
        Events(Box::pin(events.try_filter_map(|event| async move { Ok(event.data) })))
    }

    /// Those of this answer in AWS's framing.
    #[cfg(feature = "bedrock")]
    pub(super) fn framed(response: Response) -> Events {
        let frames = super::frames::Frames::of(response);
        Events(Box::pin(futures::stream::unfold(frames, |mut frames| async move {
            frames.next().await.map(|event| (event, frames))
        })))
    }

    pub(super) async fn next(&mut self) -> Option<Result<String, Fault>> {
        self.0.next().await
    }
}

/// Why the reading of a body was stopped.
#[derive(Debug)]
struct Stopped(Fault);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Stopped {}

/// A body that comes at once.
///
/// # Errors
/// [`Fault::ProtocolError`] if it is longer than [`PROVIDER_HELD_BYTES_MAX`] or no text.
pub(super) async fn whole(mut response: Response) -> Result<String, Fault> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|e| fault_of_line(&e))? {
        body.extend_from_slice(&part);
        if body.len() > PROVIDER_HELD_BYTES_MAX {
            return Err(too_long());
        }
    }
    String::from_utf8(body)
        .map_err(|_| Fault::ProtocolError("the response is not valid UTF-8".to_owned()))
}

fn too_long() -> Fault {
    Fault::ProtocolError("the response exceeds the size limit".to_owned())
}
