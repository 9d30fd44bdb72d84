//! The topics of one device: what to subscribe to, and what the topic of a request states.

use crate::limits::NAME_BYTES_MAX;
use crate::request::name::is_name;
use crate::request::refusal::{Code, Refusal};

/// The topics of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTopics {
    base: String,
    /// The first part of the group's topics, and the group's name.
    group: Option<(String, String)>,
    /// Permitted prefixes of response topics besides the application's own.
    allowed: Vec<String>,
}

/// The parts of a request's topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTopic {
    /// The application.
    pub app: String,
    /// The task, if the topic names one.
    pub task: Option<String>,
    /// It addresses the group, of which any device may answer.
    pub shared: bool,
}

impl DeviceTopics {
    /// The topics of `device` below `prefix`.
    pub fn new(prefix: &str, device: &str, allowed: Vec<String>) -> DeviceTopics {
        DeviceTopics { base: format!("{prefix}/{device}"), group: None, allowed }
    }

    /// Adds the topics of the device's group, whose devices share its requests.
    #[must_use]
    pub fn in_group(self, prefix: &str, group: Option<&str>) -> DeviceTopics {
        let group = group.map(|group| (format!("{prefix}/group/{group}"), group.to_owned()));
        DeviceTopics { group, ..self }
    }

    /// Topic filters of the requests.
    pub fn filters(&self) -> Vec<String> {
        let own = ["+", "+/+"].map(|rest| format!("{}/request/{rest}", self.base));
        let shared = self.group.iter().flat_map(|(base, name)| {
            ["+", "+/+"].map(|rest| format!("$share/{name}/{base}/request/{rest}"))
        });
        own.into_iter().chain(shared).collect()
    }

    /// Topic of an application's requests.
    pub fn request(&self, app: &str) -> String {
        format!("{}/request/{app}", self.base)
    }

    /// Topic of the device's presence.
    pub fn status(&self) -> String {
        format!("{}/status", self.base)
    }

    /// Topic of the device's health.
    pub fn health(&self) -> String {
        format!("{}/health", self.base)
    }

    /// Topic of an application's replies.
    pub fn reply(&self, app: &str) -> String {
        format!("{}/reply/{app}", self.base)
    }

    /// Topic of an application's chunks.
    pub fn stream(&self, app: &str) -> String {
        format!("{}/stream/{app}", self.base)
    }

    /// Reads the topic of a request; none if no reply topic follows from it.
    pub fn read(&self, topic: &str) -> Option<RequestTopic> {
        let below = |base: &str| topic.strip_prefix(base)?.strip_prefix("/request/");
        let own = below(&self.base);
        let shared = || below(&self.group.as_ref()?.0);
        let rest = own.or_else(shared)?;
        let (app, task) = match rest.split_once('/') {
            Some((app, task)) => (app, Some(task.to_owned())),
            None => (rest, None),
        };
        is_name(app).then(|| RequestTopic { app: app.to_owned(), task, shared: own.is_none() })
    }

    /// The first part of the topics: the device's, or the group's.
    fn base_of(&self, request: &RequestTopic) -> &str {
        self.group.as_ref().filter(|_| request.shared).map_or(&self.base, |(base, _)| base)
    }

    /// The default topic of its reply.
    pub fn reply_to(&self, request: &RequestTopic) -> String {
        format!("{}/reply/{}", self.base_of(request), request.app)
    }

    /// The topic of its chunks.
    pub fn stream_to(&self, request: &RequestTopic) -> String {
        format!("{}/stream/{}", self.base_of(request), request.app)
    }

    /// The topic of its reply: the client's response topic `wanted`, if that is permitted.
    ///
    /// # Errors
    /// [`Code::Forbidden`] for a topic outside the application's own and the permitted prefixes.
    pub fn answer_to(
        &self,
        request: &RequestTopic,
        wanted: Option<&str>,
    ) -> Result<String, Refusal> {
        let own = self.reply_to(request);
        let Some(wanted) = wanted else { return Ok(own) };
        let below = |prefix: &str| {
            wanted.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let plain = !wanted.contains(['+', '#', '\0']) && wanted.len() <= 8 * NAME_BYTES_MAX;
        if plain && (below(&own) || self.allowed.iter().any(|prefix| below(prefix))) {
            return Ok(wanted.to_owned());
        }
        let message =
            format!("the response topic must be {own} or below it; this reply was sent to {own}");
        Err(Refusal::field(Code::Forbidden, "response_topic", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> DeviceTopics {
        DeviceTopics::new("pilotlight", "pi-1", vec!["plant/replies".to_owned()])
    }

    #[test]
    fn a_request_topic_names_the_app_and_optionally_the_task() {
        let check = |topic: &str, expected: Option<(&str, Option<&str>)>| {
            let got = topics().read(topic);
            let got = got.as_ref().map(|a| (a.app.as_str(), a.task.as_deref()));
            assert_eq!(got, expected, "{topic}");
        };
        check("pilotlight/pi-1/request/app", Some(("app", None)));
        check("pilotlight/pi-1/request/app/classify", Some(("app", Some("classify"))));
        check("pilotlight/pi-1/request/", None);
        check("pilotlight/pi-1/request/a b", None);
        check("pilotlight/pi-2/request/app", None);
        check("pilotlight/pi-12/request/app", None);
        check("pilotlight/pi-1/reply/app", None);
    }

    #[test]
    fn a_request_to_a_group_is_answered_on_the_topics_of_the_group() {
        let topics = topics().in_group("pilotlight", Some("line-3"));
        let request = topics.read("pilotlight/group/line-3/request/app/classify").unwrap();
        assert_eq!((request.app.as_str(), request.shared), ("app", true));
        assert_eq!(topics.answer_to(&request, None).unwrap(), "pilotlight/group/line-3/reply/app");
        assert_eq!(topics.stream_to(&request), "pilotlight/group/line-3/stream/app");
        assert!(topics.answer_to(&request, Some("pilotlight/pi-1/reply/app")).is_err());
        assert_eq!(topics.read("pilotlight/group/line-4/request/app"), None);
        let own = topics.read("pilotlight/pi-1/request/app").unwrap();
        assert_eq!(topics.reply_to(&own), "pilotlight/pi-1/reply/app");
        let shared = "$share/line-3/pilotlight/group/line-3/request/+".to_owned();
        assert!(topics.filters().contains(&shared));
    }

    #[test]
    fn replies_go_only_to_permitted_topics() {
        let own = "pilotlight/pi-1/reply/app";
        let check = |wanted: Option<&str>, expected: Option<&str>| {
            let request = topics().read("pilotlight/pi-1/request/app").unwrap();
            let got = topics().answer_to(&request, wanted).ok();
            assert_eq!(got.as_deref(), expected, "{wanted:?}");
        };
        check(None, Some(own));
        check(Some(own), Some(own));
        check(Some("pilotlight/pi-1/reply/app/7"), Some("pilotlight/pi-1/reply/app/7"));
        check(Some("plant/replies/x"), Some("plant/replies/x"));
        check(Some("pilotlight/pi-1/reply/apple"), None);
        check(Some("pilotlight/pi-1/reply/other"), None);
        check(Some("pilotlight/pi-1/reply/app/#"), None);
        check(Some("pilotlight/pi-1/config/desired"), None);
        check(Some("plant/repliesx"), None);
        check(Some("$SYS/x"), None);
        check(Some(""), None);
    }
}
