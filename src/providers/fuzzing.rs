//! Entry point of the fuzz target `provider`: a provider's response, from its body to the usage.

use bytes::{Bytes, BytesMut};
use futures::executor::block_on;
use futures::{future, stream};
use reqwest::Body;
use reqwest::header::CONTENT_TYPE;

use super::{ANTHROPIC, BEDROCK, OPENAI, answer};
use crate::model::generate::{Fault, Usage};
use crate::model::out;
use crate::request::job::Job;

/// The protocols.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Chat completions of `OpenAI`.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Bedrock's event streams.
    Bedrock,
}

/// Reads a response that comes in these parts: the usage, and the text that the client got.
///
/// # Errors
/// As a call of the provider.
pub fn response(
    kind: Kind,
    content_type: &'static str,
    parts: Vec<Bytes>,
    job: &Job,
) -> (Result<Usage, Fault>, String) {
    let protocol = match kind {
        Kind::OpenAi => &OPENAI,
        Kind::Anthropic => &ANTHROPIC,
        Kind::Bedrock => &BEDROCK,
    };
    let parts = stream::iter(parts.into_iter().map(Ok::<Bytes, std::io::Error>));
    let mut response = http::Response::new(Body::wrap_stream(parts));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    let (mut out, mut chunks) = out::channel();
    let reading = async move { answer::read(response.into(), protocol, job, &mut out).await };
    let delivery = async move {
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(&chunk.text);
        }
        text
    };
    block_on(future::join(reading, delivery))
}

/// A frame of an event stream with valid checksums, which no random input has.
pub fn frame(event: &str, payload: &[u8]) -> Bytes {
    use aws_smithy_eventstream::frame::write_message_to;
    use aws_smithy_types::event_stream::{Header, HeaderValue, Message};

    let text = |text: &str| HeaderValue::String(text.to_owned().into());
    let kind = if event.starts_with(':') { &event[1..] } else { "event" };
    let message = Message::new(Bytes::copy_from_slice(payload))
        .add_header(Header::new(":message-type", text(kind)))
        .add_header(Header::new(":event-type", text(event)))
        .add_header(Header::new(":error-message", text(event)));
    let mut frame = BytesMut::new();
    match write_message_to(&message, &mut frame) {
        Ok(()) => frame.freeze(),
        Err(_) => Bytes::new(),
    }
}
