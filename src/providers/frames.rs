//! AWS event stream: binary frames with two CRC-32 checksums, each one event with its name.
//!
//! Source: "Amazon event stream encoding"; frames are decoded by `aws-smithy-eventstream`.

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use bytes::BytesMut;
use reqwest::Response;

use super::{fault_of_connection, too_long};
use crate::limits::{PROVIDER_BYTES_MAX, PROVIDER_HELD_BYTES_MAX};
use crate::model::generate::Fault;

/// The events of an answer, each as a JSON object with the event's name as its only key.
pub(super) struct Frames {
    response: Response,
    decoder: MessageFrameDecoder,
    held: BytesMut,
    read: usize,
}

impl Frames {
    /// The events of this response: at most [`PROVIDER_BYTES_MAX`] together, and
    /// [`PROVIDER_HELD_BYTES_MAX`] for one frame.
    pub(super) fn of(response: Response) -> Frames {
        let (decoder, held) = (MessageFrameDecoder::new(), BytesMut::new());
        Frames { response, decoder, held, read: 0 }
    }

    pub(super) async fn next(&mut self) -> Option<Result<String, Fault>> {
        self.frame().await.transpose()
    }

    async fn frame(&mut self) -> Result<Option<String>, Fault> {
        // bounded by the bytes that are read
        loop {
            match self.decoder.decode_frame(&mut self.held) {
                Ok(DecodedFrame::Complete(message)) => return text_of(&message).map(Some),
                Ok(DecodedFrame::Incomplete) => {}
                Err(error) => return Err(broken(&error.to_string())),
            }
            let Some(part) = self.response.chunk().await.map_err(|e| fault_of_connection(&e))?
            else {
                return Ok(None);
            };
            self.read += part.len();
            self.held.extend_from_slice(&part);
            if self.read > PROVIDER_BYTES_MAX || self.held.len() > PROVIDER_HELD_BYTES_MAX {
                return Err(too_long());
            }
        }
    }
}

fn broken(why: &str) -> Fault {
    Fault::ProtocolError(format!("its events cannot be parsed: {why}"))
}

fn text_of(message: &Message) -> Result<String, Fault> {
    let header = |name: &str| {
        let header = message.headers().iter().find(|header| header.name().as_str() == name);
        header.and_then(|header| Some(header.value().as_string().ok()?.as_str()))
    };
    let payload = std::str::from_utf8(message.payload()).map_err(|e| broken(&e.to_string()))?;
    let name = match header(":message-type") {
        Some("event") => header(":event-type").unwrap_or_default(),
        Some("exception") => "exception",
        Some("error") => {
            let why = header(":error-message").or(header(":error-code")).unwrap_or_default();
            return Err(Fault::Crashed(format!("the provider aborted: {why}")));
        }
        Some(_) | None => return Err(broken("a frame has no event type")),
    };
    let payload = if payload.trim().is_empty() { "{}" } else { payload };
    Ok(format!("{{{}: {payload}}}", serde_json::Value::from(name)))
}
