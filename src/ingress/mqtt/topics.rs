//! The topics of one device: what to subscribe to, and what the topic of a request states.

use crate::limits::NAME_BYTES_MAX;
use crate::request::name::is_app_name;
use crate::request::refusal::{Code, Refusal};

/// The topics of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTopics {
    base: String,
    /// The first part of the group's topics, and the group's name.
    group: Option<(String, String)>,
}

/// The parts of a request's topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTopic {
    /// The application; shortened if its name is not valid.
    pub app: String,
    /// The task, if the topic names one.
    pub task: Option<String>,
    /// It addresses the group, of which any device may answer.
    pub shared: bool,
    /// The topic after `request`, with its slash.
    rest: String,
    /// The reply goes to the same levels below `reply`: they name no application, or no task of this
    /// device, so that only the client itself knows which part of them it takes for its name.
    is_mirrored: bool,
}

impl DeviceTopics {
    /// The topics of `device` below `prefix`.
    pub fn new(prefix: &str, device: &str) -> DeviceTopics {
        DeviceTopics { base: format!("{prefix}/{device}"), group: None }
    }

    /// Adds the topics of the device's group, whose devices share its requests.
    #[must_use]
    pub fn in_group(self, prefix: &str, group: Option<&str>) -> DeviceTopics {
        let group = group.map(|group| (format!("{prefix}/group/{group}"), group.to_owned()));
        DeviceTopics { group, ..self }
    }

    /// Topic filters of the requests: all levels, since a request gets its reply on any topic.
    pub fn filters(&self) -> Vec<String> {
        let own = format!("{}/request/#", self.base);
        let shared =
            self.group.iter().map(|(base, name)| format!("$share/{name}/{base}/request/#"));
        std::iter::once(own).chain(shared).collect()
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

    /// Topics of signed updates for the device, its group and its fleet.
    pub fn config_desired(&self, prefix: &str, fleet: Option<&str>) -> Vec<String> {
        let fleet = fleet.map(|fleet| format!("{prefix}/fleet/{fleet}/config/desired"));
        let group = self.group.as_ref().map(|(base, _)| format!("{base}/config/desired"));
        let own = format!("{}/config/desired", self.base);
        [Some(own), group, fleet].into_iter().flatten().collect()
    }

    /// Topic of the state of the configuration.
    pub fn config_reported(&self) -> String {
        format!("{}/config/reported", self.base)
    }

    /// Topic of an application's replies.
    pub fn reply(&self, app: &str) -> String {
        format!("{}/reply/{app}", self.base)
    }

    /// Topic of an application's chunks.
    pub fn stream(&self, app: &str) -> String {
        format!("{}/stream/{app}", self.base)
    }

    /// Reads the topic of a request, with whether it is served; none if it is no request's.
    ///
    /// # Errors
    /// A refusal, if the topic has a name that is not valid or too many levels.
    pub fn read(
        &self,
        topic: &str,
        is_task: impl Fn(&str) -> bool,
    ) -> Option<(RequestTopic, Result<(), Refusal>)> {
        let below = |base: &str| {
            let rest = topic.strip_prefix(base)?.strip_prefix("/request")?;
            (rest.is_empty() || rest.starts_with('/')).then_some(rest)
        };
        let own = below(&self.base);
        let shared = || below(&self.group.as_ref()?.0);
        let rest = own.or_else(shared)?;
        let mut levels = rest.split('/').skip(1);
        let (app, task) = (levels.next().unwrap_or_default(), levels.next());
        let valid = if !is_app_name(app) {
            Err(format!(
                "the application's name has {} bytes; use one level of 1 to {NAME_BYTES_MAX} bytes \
                 without control characters: request/APP or request/APP/TASK",
                app.len()
            ))
        } else if levels.next().is_some() {
            Err("the topic has too many levels; use request/APP or request/APP/TASK".to_owned())
        } else {
            Ok(())
        };
        let request = RequestTopic {
            app: app.chars().take(NAME_BYTES_MAX).collect(),
            task: task.map(str::to_owned),
            shared: own.is_none(),
            rest: rest.to_owned(),
            is_mirrored: valid.is_err() || task.is_some_and(|task| !is_task(task)),
        };
        Some((request, valid.map_err(|why| Refusal::field(Code::Invalid, "topic", why))))
    }

    /// The first part of the topics: the device's, or the group's.
    fn base_of(&self, request: &RequestTopic) -> &str {
        self.group.as_ref().filter(|_| request.shared).map_or(&self.base, |(base, _)| base)
    }

    /// The default topic of its reply.
    pub fn reply_to(&self, request: &RequestTopic) -> String {
        if request.is_mirrored {
            return format!("{}/reply{}", self.base_of(request), request.rest);
        }
        self.replies_of(request)
    }

    /// The topic of the application's replies, and the prefix of those that it may ask for.
    fn replies_of(&self, request: &RequestTopic) -> String {
        let app = request.rest.split('/').nth(1).unwrap_or_default();
        format!("{}/reply/{app}", self.base_of(request))
    }

    /// The topic of its chunks.
    pub fn stream_to(&self, request: &RequestTopic) -> String {
        format!("{}/stream/{}", self.base_of(request), request.app)
    }

    /// The topic of its reply: the client's response topic `wanted`, if that is permitted; `allowed` are
    /// the permitted prefixes besides the application's own.
    ///
    /// # Errors
    /// [`Code::Forbidden`] for a topic outside the application's own and the permitted prefixes.
    pub fn answer_to(
        &self,
        request: &RequestTopic,
        wanted: Option<&str>,
        allowed: &[String],
    ) -> Result<String, Refusal> {
        let own = self.replies_of(request);
        let Some(wanted) = wanted else { return Ok(self.reply_to(request)) };
        let below = |prefix: &str| {
            wanted.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let plain = !wanted.contains(['+', '#', '\0']) && wanted.len() <= 8 * NAME_BYTES_MAX;
        if plain && (below(&own) || allowed.iter().any(|prefix| below(prefix))) {
            return Ok(wanted.to_owned());
        }
        let sent = self.reply_to(request);
        let message =
            format!("the response topic must be {own} or below it; this reply was sent to {sent}");
        Err(Refusal::field(Code::Forbidden, "response_topic", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> DeviceTopics {
        DeviceTopics::new("pilotlight", "pi-1")
    }

    fn is_task(name: &str) -> bool {
        name == "classify"
    }

    fn read(topics: &DeviceTopics, topic: &str) -> RequestTopic {
        topics.read(topic, is_task).unwrap().0
    }

    #[test]
    fn a_request_topic_names_the_app_and_optionally_the_task() {
        let check = |rest: &str, app: &str, task: Option<&str>, reply: &str, is_valid: bool| {
            let topics = topics();
            let topic = format!("pilotlight/pi-1/request{rest}");
            let (request, valid) = topics.read(&topic, is_task).unwrap();
            assert_eq!((request.app.as_str(), request.task.as_deref()), (app, task), "{rest}");
            assert_eq!(topics.reply_to(&request), format!("pilotlight/pi-1/reply{reply}"));
            assert_eq!(valid.is_ok(), is_valid, "{rest}: {valid:?}");
        };
        check("/app", "app", None, "/app", true);
        check("/app/classify", "app", Some("classify"), "/app", true);
        check("/home.assistant", "home.assistant", None, "/home.assistant", true);
        check("/My App", "My App", None, "/My App", true);
        check("/Gerät", "Gerät", None, "/Gerät", true);
        // no task of this device: only the client knows what it takes for its name
        check("/a/b", "a", Some("b"), "/a/b", true);
        check("/a/b/classify", "a", Some("b"), "/a/b/classify", false);
        check("/a/", "a", Some(""), "/a/", true);
        check("/", "", None, "/", false);
        check("", "", None, "", false);
        check("//classify", "", Some("classify"), "//classify", false);
        let long = "x".repeat(1000);
        check(&format!("/{long}"), &long[..NAME_BYTES_MAX], None, &format!("/{long}"), false);
        for other in ["pilotlight/pi-2/request/app", "pilotlight/pi-12/request/app"] {
            assert!(topics().read(other, is_task).is_none(), "{other}");
        }
        assert!(topics().read("pilotlight/pi-1/reply/app", is_task).is_none());
        assert!(topics().read("pilotlight/pi-1/requests/app", is_task).is_none());
    }

    #[test]
    fn a_request_to_a_group_is_answered_on_the_topics_of_the_group() {
        let topics = topics().in_group("pilotlight", Some("line-3"));
        let request = read(&topics, "pilotlight/group/line-3/request/app/classify");
        assert_eq!((request.app.as_str(), request.shared), ("app", true));
        assert_eq!(
            topics.answer_to(&request, None, &[]).unwrap(),
            "pilotlight/group/line-3/reply/app"
        );
        assert_eq!(topics.stream_to(&request), "pilotlight/group/line-3/stream/app");
        assert!(topics.answer_to(&request, Some("pilotlight/pi-1/reply/app"), &[]).is_err());
        assert!(topics.read("pilotlight/group/line-4/request/app", is_task).is_none());
        let own = read(&topics, "pilotlight/pi-1/request/app");
        assert_eq!(topics.reply_to(&own), "pilotlight/pi-1/reply/app");
        let shared = "$share/line-3/pilotlight/group/line-3/request/#".to_owned();
        assert!(topics.filters().contains(&shared));
    }

    #[test]
    fn replies_go_only_to_permitted_topics() {
        let own = "pilotlight/pi-1/reply/app";
        let check = |wanted: Option<&str>, expected: Option<&str>| {
            let request = read(&topics(), "pilotlight/pi-1/request/app");
            let got = topics().answer_to(&request, wanted, &["plant/replies".to_owned()]).ok();
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
