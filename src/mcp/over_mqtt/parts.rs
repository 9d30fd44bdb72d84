//! Splits a JSON text into messages, and joins them in order, without duplicates or gaps.

use bytes::{Bytes, BytesMut};

use super::{MORE, SEQ, property};
use crate::limits::REMOTE_MESSAGE_BYTES_MAX;
use crate::limits::call::MQTT_PART_BYTES_MAX;

/// Numbers the messages of one answer.
#[derive(Debug, Default)]
pub(super) struct Numbers(u64);

impl Numbers {
    /// Splits a text into messages of at most `most` bytes: payload and properties.
    pub(super) fn split(
        &mut self,
        text: Bytes,
        most: usize,
    ) -> Vec<(Bytes, Vec<(String, String)>)> {
        let most = most.clamp(1, MQTT_PART_BYTES_MAX);
        let mut left = text;
        let mut parts = Vec::new();
        // bounded: each turn shortens the text
        loop {
            let part = left.split_to(left.len().min(most));
            let mut properties = vec![(SEQ.to_owned(), self.0.to_string())];
            if !left.is_empty() {
                properties.push((MORE.to_owned(), "1".to_owned()));
            }
            self.0 += 1;
            parts.push((part, properties));
            if left.is_empty() {
                return parts;
            }
        }
    }
}

/// The number of a message, and whether its text continues in the next one.
///
/// # Errors
/// A description, if it has no number.
pub(super) fn place_of(properties: &[(String, String)]) -> Result<(u64, bool), String> {
    let seq = property(properties, SEQ).and_then(|seq| seq.parse::<u64>().ok());
    let seq = seq.ok_or_else(|| format!("a message has no {SEQ}"))?;
    Ok((seq, property(properties, MORE).is_some()))
}

/// Joins the messages of one answer into texts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    next: u64,
    text: BytesMut,
}

impl Parts {
    /// Adds the next message; returns a text when it is complete.
    ///
    /// # Errors
    /// A description, if a message is missing or the text is too long.
    pub(super) fn take(
        &mut self,
        payload: &Bytes,
        properties: &[(String, String)],
    ) -> Result<Option<Bytes>, String> {
        let (seq, goes_on) = place_of(properties)?;
        if seq < self.next {
            // a broker may deliver a message twice
            return Ok(None);
        }
        if seq > self.next {
            return Err(format!("message {} of the answer was lost", self.next));
        }
        self.next += 1;
        if self.text.len() + payload.len() > REMOTE_MESSAGE_BYTES_MAX {
            return Err("a message of the answer exceeds the size limit".to_owned());
        }
        if self.text.is_empty() && !goes_on {
            return Ok(Some(payload.clone()));
        }
        self.text.extend_from_slice(payload);
        Ok((!goes_on).then(|| self.text.split().freeze()))
    }

    /// Whether a message has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.next > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_out_as_they_went_in() {
        let sizes = [0, 1, MQTT_PART_BYTES_MAX - 1, MQTT_PART_BYTES_MAX, MQTT_PART_BYTES_MAX + 1];
        let sizes = sizes.into_iter().chain([5 * MQTT_PART_BYTES_MAX, 3]);
        let (mut numbers, mut parts) = (Numbers::default(), Parts::default());
        for size in sizes {
            let text: Bytes = (0..size).map(|at| at.to_le_bytes()[at % 2]).collect();
            let mut whole = None;
            for (payload, properties) in numbers.split(text.clone(), usize::MAX) {
                assert_eq!(whole, None, "{size}: more came after the end");
                whole = parts.take(&payload, &properties).unwrap();
                // and once more
                assert_eq!(parts.take(&payload, &properties), Ok(None), "{size}");
            }
            assert_eq!(whole, Some(text), "{size}");
        }
    }

    #[test]
    fn gaps_are_errors() {
        let mut messages =
            Numbers::default().split(vec![7; 3 * MQTT_PART_BYTES_MAX].into(), usize::MAX);
        messages.remove(1);
        let mut parts = Parts::default();
        let (payload, properties) = &messages[0];
        assert_eq!(parts.take(payload, properties), Ok(None));
        let (payload, properties) = &messages[1];
        assert_eq!(
            parts.take(payload, properties),
            Err("message 1 of the answer was lost".to_owned())
        );
        assert!(parts.take(payload, &[]).unwrap_err().contains(SEQ));
    }

    #[test]
    fn a_text_without_end_is_refused() {
        let mut parts = Parts::default();
        let part = Bytes::from(vec![0; MQTT_PART_BYTES_MAX]);
        let most = REMOTE_MESSAGE_BYTES_MAX / MQTT_PART_BYTES_MAX;
        let properties =
            |seq: usize| vec![(SEQ.into(), seq.to_string()), (MORE.into(), "1".into())];
        for seq in 0..most {
            assert_eq!(parts.take(&part, &properties(seq)), Ok(None), "{seq}");
        }
        assert!(parts.take(&part, &properties(most)).unwrap_err().contains("size limit"));
    }
}
