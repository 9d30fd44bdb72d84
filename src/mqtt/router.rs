//! Topic routing: each subscriber registers topic filters and receives the messages that match.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rumqttc::mqttbytes::QoS;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Incoming;

/// The subscriptions of one connection, registered before it is opened.
#[derive(Debug, Default)]
pub struct Router {
    routes: Vec<TopicRoute>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct TopicRoute {
    filters: Arc<Mutex<Vec<String>>>,
    qos: QoS,
    to: mpsc::Sender<Incoming>,
}

/// The receiving end of a subscription. Messages that are never taken stay unacknowledged.
#[derive(Debug)]
pub struct Subscription {
    inbox: mpsc::Receiver<Incoming>,
    filters: SubscriptionFilters,
}

/// The topic filters of a subscription, which can change while it is connected.
#[derive(Debug, Clone)]
pub struct SubscriptionFilters {
    filters: Arc<Mutex<Vec<String>>>,
    changed: Arc<Notify>,
}

impl SubscriptionFilters {
    /// Subscribes to these filters in place of the present ones.
    pub fn replace(&self, filters: Vec<String>) {
        *locked(&self.filters) = filters;
        self.changed.notify_one();
    }
}

fn locked(filters: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    filters.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    /// Subscribes to topic filters (MQTT 5, section 4.7; `$share/GROUP/` is allowed). A message that
    /// matches several subscriptions goes to the first. `bound` is the number of messages that may
    /// wait; beyond it the connection reads no further.
    pub fn subscribe(&mut self, filters: Vec<String>, bound: usize) -> Subscription {
        self.route(filters, QoS::AtLeastOnce, bound)
    }

    /// The same with `QoS` 0, for many retained messages: mosquitto queues 1000 messages of a higher
    /// quality for a client and drops the others (`max_queued_messages`). What is lost with a connection is
    /// delivered again on the next one.
    pub fn watch(&mut self, filters: Vec<String>, bound: usize) -> Subscription {
        self.route(filters, QoS::AtMostOnce, bound)
    }

    fn route(&mut self, filters: Vec<String>, qos: QoS, bound: usize) -> Subscription {
        let (to, inbox) = mpsc::channel(bound);
        let filters = Arc::new(Mutex::new(filters));
        self.routes.push(TopicRoute { filters: Arc::clone(&filters), qos, to });
        let filters = SubscriptionFilters { filters, changed: Arc::clone(&self.changed) };
        Subscription { inbox, filters }
    }

    /// All topic filters.
    pub(super) fn filters(&self) -> BTreeSet<String> {
        self.routes.iter().flat_map(|route| locked(&route.filters).clone()).collect()
    }

    /// The quality of service with which a filter is subscribed to: the highest that is wanted.
    pub(super) fn qos_of(&self, filter: &str) -> QoS {
        let has = |route: &&TopicRoute| locked(&route.filters).iter().any(|one| one == filter);
        let is_lowest = self.routes.iter().filter(has).all(|route| route.qos == QoS::AtMostOnce);
        if is_lowest { QoS::AtMostOnce } else { QoS::AtLeastOnce }
    }

    /// Ends after a change of the filters.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Delivers a message to its subscriber; while that has no room, waits until `stop`. A message
    /// without a subscriber is acknowledged; one that its subscriber can't take is left to the
    /// broker.
    pub(super) async fn deliver(&self, message: Incoming, stop: &CancellationToken) {
        let is_for = |route: &&TopicRoute| {
            locked(&route.filters).iter().any(|filter| matches(filter, &message.topic))
        };
        let Some(route) = self.routes.iter().find(is_for) else {
            tracing::debug!(topic = message.topic, "a message matches no subscription");
            return message.ack.ack();
        };
        let place = tokio::select! {
            biased;
            place = route.to.reserve() => place.ok(),
            () = stop.cancelled() => None,
        };
        match place {
            Some(place) => place.send(message),
            None => message.ack.leave(),
        }
    }
}

impl Subscription {
    /// The topic filters.
    pub fn filters(&self) -> SubscriptionFilters {
        self.filters.clone()
    }

    /// The next message; none once the connection has ended and all messages were taken.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.inbox.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.inbox.close();
        while let Ok(message) = self.inbox.try_recv() {
            message.ack.leave();
        }
    }
}

/// Whether a topic matches a filter: `+` stands for one level, `#` for all that follow.
fn matches(filter: &str, topic: &str) -> bool {
    let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    let filter = shared.map_or(filter, |(_, filter)| filter);
    let (mut wanted, mut levels) = (filter.split('/'), topic.split('/'));
    // bounded: each turn takes a level off the filter
    loop {
        match (wanted.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(one), Some(other)) if one == other => {}
            (_, _) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::acks::{AckGuard, SettledMessage, Settlement};
    use super::*;

    fn message(topic: &str, number: u64, to: &mpsc::Sender<SettledMessage>) -> Incoming {
        Incoming {
            topic: topic.to_owned(),
            payload: Ok(bytes::Bytes::new()),
            retained: false,
            again: false,
            response_topic: None,
            correlation: None,
            expiry: None,
            properties: Vec::new(),
            arrived: crate::clock::now(),
            ack: AckGuard::new(Some(number), to.clone()),
        }
    }

    #[test]
    fn filters_match_as_the_standard_states() {
        let check = |filter: &str, topic: &str, expected: bool| {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        };
        check("a/b", "a/b", true);
        check("a/b", "a/b/c", false);
        check("a/b/c", "a/b", false);
        check("a/+", "a/b", true);
        check("a/+", "a/", true);
        check("a/+", "a", false);
        check("a/+", "a/b/c", false);
        check("+/b", "a/b", true);
        check("a/#", "a", true);
        check("a/#", "a/b/c", true);
        check("a/#", "b", false);
        check("$share/group/a/+", "a/b", true);
        check("$share/group/a/+", "b/b", false);
    }

    #[tokio::test]
    async fn each_subscriber_receives_its_messages() {
        let (to, mut settled) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let mut router = Router::default();
        let one = router.subscribe(vec!["a/+".to_owned()], 4);
        let two = router.subscribe(vec!["b".to_owned(), "a/#".to_owned()], 4);
        let mut subscriptions = [one, two];
        assert_eq!(router.filters(), ["a/#", "a/+", "b"].map(str::to_owned).into());
        for (packet, topic) in ["a/x", "a/x/y", "b", "c"].into_iter().enumerate() {
            router.deliver(message(topic, u64::try_from(packet).unwrap(), &to), &stop).await;
        }
        // no subscriber: acknowledged
        let done = settled.try_recv().unwrap();
        assert_eq!((done.number, done.outcome), (3, Settlement::Acknowledged));
        for (at, topic) in [(0, "a/x"), (1, "a/x/y"), (1, "b")] {
            let message = subscriptions[at].recv().await.unwrap();
            assert_eq!(message.topic, topic);
            message.ack.ack();
            assert_eq!(settled.try_recv().unwrap().outcome, Settlement::Acknowledged);
        }
    }

    #[tokio::test]
    async fn messages_that_are_not_taken_stay_unacknowledged() {
        let (to, mut settled) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let mut router = Router::default();
        let subscription = router.subscribe(vec!["a".to_owned()], 1);
        router.deliver(message("a", 1, &to), &stop).await;
        // the second has no room when the service stops, the third has no subscriber any more
        stop.cancel();
        router.deliver(message("a", 2, &to), &stop).await;
        drop(subscription);
        router.deliver(message("a", 3, &to), &stop).await;
        for packet in [2, 1, 3] {
            let left = settled.try_recv().unwrap();
            assert_eq!((left.number, left.outcome), (packet, Settlement::Left));
        }
    }
}
