//! Answers of MCP over MQTT in several messages. The first byte is the size of the messages in which the
//! input is sent; its lines are also messages of a stranger: number, `+` if more follow, payload.
#![no_main]

use bytes::Bytes;
use pilotlight::mcp::over_mqtt::fuzzing::{PartMessage, joined, there_and_back};
use pilotlight_fuzz::{shown, target};

target!(|input| {
    let [size, text @ ..] = input else { return };
    let text = Bytes::copy_from_slice(text);
    assert_eq!(there_and_back(&text, usize::from(*size)), Ok(Some(text.clone())));
    let messages = text.split(|byte| *byte == b'\n').map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b' ');
        PartMessage {
            seq: String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned(),
            has_more: fields.next() == Some(b"+"),
            payload: Bytes::copy_from_slice(fields.next().unwrap_or_default()),
        }
    });
    match joined(messages.collect()) {
        Ok(texts) => {
            let bytes: usize = texts.iter().map(Bytes::len).sum();
            assert!(bytes <= text.len(), "more came out than went in");
        }
        Err(message) => shown(&message),
    }
});
