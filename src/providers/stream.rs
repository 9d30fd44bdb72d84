//! Bounded reading of a response's body: as a stream of events, or buffered.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::Response;
use sse_stream::SseStream;

use super::{fault_of_connection, too_long};
use crate::limits::{PROVIDER_BYTES_MAX, PROVIDER_HELD_BYTES_MAX};
use crate::model::generate::Fault;

/// The data of each event of a stream.
pub(super) struct Events(Pin<Box<dyn Stream<Item = Result<String, Fault>> + Send>>);

impl Events {
    /// Server-sent events: at most [`PROVIDER_BYTES_MAX`] together, and [`PROVIDER_HELD_BYTES_MAX`] for
    /// one line.
    pub(super) fn of(response: Response) -> Events {
        let (mut read, mut line) = (0, 0);
        let parts = response.bytes_stream().map(move |part| {
            let part = part.map_err(|e| BodyFault(fault_of_connection(&e)))?;
            read += part.len();
            line = match part.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => part.len() - end,
                None => line + part.len(),
            };
            if read > PROVIDER_BYTES_MAX || line > PROVIDER_HELD_BYTES_MAX {
                return Err(BodyFault(too_long()));
            }
            Ok::<Bytes, BodyFault>(part)
        });
        let events = SseStream::from_bytes_stream(parts).map_err(|error| {
            let why = format!("its events cannot be parsed: {error}");
            let fault = if let sse_stream::Error::Body(body) = error { Some(body) } else { None };
            let fault = fault.and_then(|body| body.downcast::<BodyFault>().ok());
            fault.map_or(Fault::ProtocolError(why), |fault| fault.0)
        });
        Events(Box::pin(events.try_filter_map(|event| async move { Ok(event.data) })))
    }

    /// Events in AWS's event stream encoding.
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

/// The fault that ended the reading of a body, as an error.
#[derive(Debug)]
struct BodyFault(Fault);

impl std::fmt::Display for BodyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for BodyFault {}

/// Reads a buffered body.
///
/// # Errors
/// [`Fault::ProtocolError`] if it is longer than [`PROVIDER_HELD_BYTES_MAX`] or no UTF-8.
pub(super) async fn buffered(mut response: Response) -> Result<String, Fault> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|e| fault_of_connection(&e))? {
        body.extend_from_slice(&part);
        if body.len() > PROVIDER_HELD_BYTES_MAX {
            return Err(too_long());
        }
    }
    String::from_utf8(body)
        .map_err(|_| Fault::ProtocolError("the response is not valid UTF-8".to_owned()))
}
