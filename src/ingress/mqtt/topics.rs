//! The topics of one device, and what a topic says of a request.

use crate::limits::NAME_BYTES_MAX;
use crate::request::name::is_name;
use crate::request::refusal::{Code, Refusal};

/// The topics of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTopics {
    base: String,
    /// The same for the group, and its name.
    group: Option<(String, String)>,
    /// Prefixes besides our own that a response may be sent to.
    allowed: Vec<String>,
}

/// Who asks for what, as the topic of a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The application.
    pub app: String,
    /// The task, if the topic names one.
    pub task: Option<String>,
    /// It was for any device of the group.
    pub shared: bool,
}

impl DeviceTopics {
    /// The topics of `device` below `prefix`.
    pub fn new(prefix: &str, device: &str, allowed: Vec<String>) -> DeviceTopics {
        DeviceTopics { base: format!("{prefix}/{device}"), group: None, allowed }
    }

    /// The same for one of the devices of this group, which share the requests to it.
    #[must_use]
    pub fn in_group(self, prefix: &str, group: Option<&str>) -> DeviceTopics {
        let group = group.map(|group| (format!("{prefix}/group/{group}"), group.to_owned()));
        DeviceTopics { group, ..self }
    }

    /// What to subscribe to.
    pub fn filters(&self) -> Vec<String> {
        let own = ["+", "+/+"].map(|rest| format!("{}/request/{rest}", self.base));
        let shared = self.group.iter().flat_map(|(base, name)| {
            ["+", "+/+"].map(|rest| format!("$share/{name}/{base}/request/{rest}"))
        });
        own.into_iter().chain(shared).collect()
    }

    /// Where an application asks.
    pub fn request(&self, app: &str) -> String {
        format!("{}/request/{app}", self.base)
    }

    /// Where the device says how it is.
    pub fn status(&self) -> String {
        format!("{}/status", self.base)
    }

    /// Where the device says how hard pressed it is.
    pub fn health(&self) -> String {
        format!("{}/health", self.base)
    }

    /// Where an application gets its answers.
    pub fn reply(&self, app: &str) -> String {
        format!("{}/reply/{app}", self.base)
    }

    /// Where an application gets pieces.
    pub fn stream(&self, app: &str) -> String {
        format!("{}/stream/{app}", self.base)
    }

    /// What the topic of a request says; none if nobody could be told what is wrong with it.
    pub fn read(&self, topic: &str) -> Option<Asked> {
        let below = |base: &str| topic.strip_prefix(base)?.strip_prefix("/request/");
        let own = below(&self.base);
        let shared = || below(&self.group.as_ref()?.0);
        let rest = own.or_else(shared)?;
        let (app, task) = match rest.split_once('/') {
            Some((app, task)) => (app, Some(task.to_owned())),
            None => (rest, None),
        };
        is_name(app).then(|| Asked { app: app.to_owned(), task, shared: own.is_none() })
    }

    /// The first part of the topics that a request came by.
    fn base_of(&self, asked: &Asked) -> &str {
        self.group.as_ref().filter(|_| asked.shared).map_or(&self.base, |(base, _)| base)
    }

    /// Where its answer goes if it does not say.
    pub fn reply_to(&self, asked: &Asked) -> String {
        format!("{}/reply/{}", self.base_of(asked), asked.app)
    }

    /// Where its pieces go.
    pub fn stream_to(&self, asked: &Asked) -> String {
        format!("{}/stream/{}", self.base_of(asked), asked.app)
    }

    /// Where the answer goes: the asker's response topic if it may be written to.
    ///
    /// # Errors
    /// [`Code::Forbidden`] for a topic that is not the application's own.
    pub fn answer_to(&self, asked: &Asked, wanted: Option<&str>) -> Result<String, Refusal> {
        let own = self.reply_to(asked);
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
    fn requests_name_an_app_and_maybe_a_task() {
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
    fn who_asks_a_group_is_answered_there() {
        let topics = topics().in_group("pilotlight", Some("line-3"));
        let asked = topics.read("pilotlight/group/line-3/request/app/classify").unwrap();
        assert_eq!((asked.app.as_str(), asked.shared), ("app", true));
        assert_eq!(topics.answer_to(&asked, None).unwrap(), "pilotlight/group/line-3/reply/app");
        assert_eq!(topics.stream_to(&asked), "pilotlight/group/line-3/stream/app");
        assert!(topics.answer_to(&asked, Some("pilotlight/pi-1/reply/app")).is_err());
        assert_eq!(topics.read("pilotlight/group/line-4/request/app"), None);
        let own = topics.read("pilotlight/pi-1/request/app").unwrap();
        assert_eq!(topics.reply_to(&own), "pilotlight/pi-1/reply/app");
        let shared = "$share/line-3/pilotlight/group/line-3/request/+".to_owned();
        assert!(topics.filters().contains(&shared));
    }

    #[test]
    fn answers_go_only_where_the_app_may_read() {
        let own = "pilotlight/pi-1/reply/app";
        let check = |wanted: Option<&str>, expected: Option<&str>| {
            let asked = topics().read("pilotlight/pi-1/request/app").unwrap();
            let got = topics().answer_to(&asked, wanted).ok();
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
