//! A circuit breaker for each topic that the broker refuses: at most one publish a second goes to it,
//! and publishes to other topics are not held up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::reasons::{PublishFate, ReasonCode};
use crate::limits::{PACKET_MAX_LEARNED, PUBLISH_REST_MAX, PUBLISH_REST_MIN, REFUSED_TOPICS_MAX};

/// The topics with a refused publish.
#[derive(Debug, Default)]
pub(super) struct TopicBreakers {
    topics: BTreeMap<String, RefusedTopic>,
}

#[derive(Debug)]
struct RefusedTopic {
    /// The latest refusal, until a publish is delivered.
    refusal: Option<TopicRefusal>,
    /// Size of a packet for which the broker closed the connection; 0 if it did so for a smaller one
    /// too, so that the topic is the cause.
    closed_at: Option<usize>,
    last: Instant,
}

#[derive(Debug)]
struct TopicRefusal {
    reason: ReasonCode,
    /// Refusals in succession.
    count: u32,
    rest_until: Instant,
    /// Half-open: one publish is in flight.
    is_tried: bool,
}

/// Whether a publish may be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// The broker refuses the topic for this reason.
    Refused(ReasonCode),
    /// The broker refuses the topic for a reason that may pass.
    Wait(Instant),
    /// The broker closes the connection for packets of this size or more.
    Closes(usize),
}

impl TopicBreakers {
    /// Whether a packet of this size may be published to the topic.
    pub(super) fn gate(&mut self, topic: &str, size: usize, now: Instant) -> Gate {
        let Some(refused) = self.topics.get_mut(topic) else { return Gate::Open };
        if now.duration_since(refused.last) >= PACKET_MAX_LEARNED {
            self.topics.remove(topic);
            return Gate::Open;
        }
        if let Some(closed_at) = refused.closed_at.filter(|closed_at| size >= *closed_at) {
            return Gate::Closes(closed_at);
        }
        let Some(refusal) = &mut refused.refusal else { return Gate::Open };
        if now >= refusal.rest_until && !refusal.is_tried {
            refusal.is_tried = true;
            return Gate::Open;
        }
        match refusal.reason.publish {
            PublishFate::Retry => Gate::Wait(refusal.rest_until.max(now + PUBLISH_REST_MIN)),
            PublishFate::Drop | PublishFate::TooLarge | PublishFate::Delivered => {
                Gate::Refused(refusal.reason)
            }
        }
    }

    /// Notes a refusal; returns the end of the topic's rest.
    pub(super) fn refused(&mut self, topic: &str, reason: ReasonCode, now: Instant) -> Instant {
        let entry = self.entry(topic, now);
        let count = entry.refusal.as_ref().map_or(0, |refusal| refusal.count) + 1;
        let rest = match reason.publish {
            PublishFate::Retry => rest_after(count),
            PublishFate::Drop | PublishFate::TooLarge | PublishFate::Delivered => PUBLISH_REST_MIN,
        };
        let rest_until = now + rest;
        entry.refusal = Some(TopicRefusal { reason, count, rest_until, is_tried: false });
        rest_until
    }

    /// Notes that the broker closes the connection for packets of this size.
    pub(super) fn closes(&mut self, topic: &str, size: usize, now: Instant) {
        let entry = self.entry(topic, now);
        entry.closed_at = Some(if entry.closed_at.is_some() { 0 } else { size });
    }

    /// Notes a delivery; returns the packet size for which the broker closed the connection, if that
    /// is larger: the size was the cause, and not the topic.
    pub(super) fn delivered(&mut self, topic: &str) -> Option<usize> {
        let entry = self.topics.get_mut(topic)?;
        entry.refusal = None;
        let closed_at = entry.closed_at;
        if closed_at.is_none() {
            self.topics.remove(topic);
        }
        closed_at
    }

    /// The connection ended: nothing is in flight.
    pub(super) fn disconnected(&mut self) {
        for refusal in self.topics.values_mut().filter_map(|topic| topic.refusal.as_mut()) {
            refusal.is_tried = false;
        }
    }

    fn entry(&mut self, topic: &str, now: Instant) -> &mut RefusedTopic {
        if !self.topics.contains_key(topic) && self.topics.len() >= REFUSED_TOPICS_MAX {
            let oldest = self.topics.iter().min_by_key(|(_, refused)| refused.last);
            if let Some(oldest) = oldest.map(|(topic, _)| topic.clone()) {
                self.topics.remove(&oldest);
            }
        }
        let new = || RefusedTopic { refusal: None, closed_at: None, last: now };
        let entry = self.topics.entry(topic.to_owned()).or_insert_with(new);
        entry.last = now;
        entry
    }
}

/// The rest after so many refusals in succession.
fn rest_after(count: u32) -> Duration {
    PUBLISH_REST_MIN.saturating_mul(1 << count.saturating_sub(1).min(16)).min(PUBLISH_REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const NOT_AUTHORIZED: u8 = 0x87;
    const QUOTA_EXCEEDED: u8 = 0x97;

    #[test]
    fn a_refused_topic_is_tried_once_a_second_and_others_are_open() {
        let mut breakers = TopicBreakers::default();
        let now = clock::now();
        let reason = ReasonCode::of(NOT_AUTHORIZED);
        assert_eq!(breakers.gate("a", 1, now), Gate::Open);
        breakers.refused("a", reason, now);
        assert_eq!(breakers.gate("a", 1, now), Gate::Refused(reason));
        assert_eq!(breakers.gate("b", 1, now), Gate::Open);
        let later = now + PUBLISH_REST_MIN;
        assert_eq!(breakers.gate("a", 1, later), Gate::Open);
        assert_eq!(breakers.gate("a", 1, later), Gate::Refused(reason));
        // the connection ends while the trial is in flight
        breakers.disconnected();
        assert_eq!(breakers.gate("a", 1, later), Gate::Open);
        assert_eq!(breakers.delivered("a"), None);
        assert_eq!(breakers.gate("a", 1, later), Gate::Open);
        assert_eq!(breakers.gate("a", 1, later), Gate::Open);
    }

    #[test]
    fn a_cause_that_may_pass_is_waited_for() {
        let mut breakers = TopicBreakers::default();
        let now = clock::now();
        let reason = ReasonCode::of(QUOTA_EXCEEDED);
        let waits = (1..=7).map(|_| breakers.refused("a", reason, now) - now);
        let waits: Vec<u64> = waits.map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(breakers.gate("a", 1, now), Gate::Wait(now + PUBLISH_REST_MAX));
    }

    #[test]
    fn a_size_for_which_the_broker_closes_is_not_sent_again() {
        let mut breakers = TopicBreakers::default();
        let now = clock::now();
        breakers.closes("a", 900, now);
        assert_eq!(breakers.gate("a", 900, now), Gate::Closes(900));
        assert_eq!(breakers.gate("a", 899, now), Gate::Open);
        assert_eq!(breakers.gate("b", 900, now), Gate::Open);
        assert_eq!(breakers.delivered("a"), Some(900));
        assert_eq!(breakers.gate("a", 900, now), Gate::Closes(900));
        assert_eq!(breakers.gate("a", 900, now + PACKET_MAX_LEARNED), Gate::Open);
        // the topic is the cause if a short message fails too
        breakers.closes("a", 900, now);
        breakers.closes("a", 200, now);
        assert_eq!(breakers.gate("a", 10, now), Gate::Closes(0));
        for n in 0..2 * REFUSED_TOPICS_MAX {
            breakers.closes(&n.to_string(), 1, now);
        }
        assert_eq!(breakers.topics.len(), REFUSED_TOPICS_MAX);
    }
}
