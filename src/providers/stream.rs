//! Bounded reading of a response's body: as a stream of events, or buffered.

use reqwest::Response;

use super::sse::ServerSentEvents;
use super::{fault_of_connection, too_long};
use crate::limits::PROVIDER_HELD_BYTES_MAX;
use crate::model::generate::Fault;

/// The data of each event of a stream.
pub(super) enum Events {
    /// Server-sent events.
    Sse(ServerSentEvents),
    /// Events in AWS's event stream encoding.
    #[cfg(feature = "bedrock")]
    Framed(super::frames::Frames),
}

impl Events {
    /// The next event; empty if it only keeps the connection open.
    pub(super) async fn next(&mut self) -> Option<Result<String, Fault>> {
        match self {
            Events::Sse(events) => events.next().await,
            #[cfg(feature = "bedrock")]
            Events::Framed(frames) => frames.next().await,
        }
    }
}

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
