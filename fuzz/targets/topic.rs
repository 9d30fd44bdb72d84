//! Topics of MQTT requests: the first line is the topic, the second the response topic.
#![no_main]

use pilotlight::ingress::mqtt::topics::DeviceTopics;
use pilotlight::limits::NAME_BYTES_MAX;
use pilotlight_fuzz::{refused, target};

target!(|input| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (topic, wanted) = text.split_once('\n').unwrap_or((text, ""));
    // a broker passes on no topic with these
    if topic.contains(['+', '#', '\0']) {
        return;
    }
    let topics = DeviceTopics::new("pilotlight", "pi-1").in_group("pilotlight", Some("line-3"));
    let Some((request, valid)) = topics.read(topic, |name| name == "topic") else { return };
    let reply = topics.reply_to(&request);
    let base = if request.shared { "pilotlight/group/line-3" } else { "pilotlight/pi-1" };
    assert!(reply.starts_with(&format!("{base}/reply")), "a reply to {reply:?}");
    assert!(topics.stream_to(&request).starts_with(&format!("{base}/stream/")));
    assert!(request.app.chars().count() <= NAME_BYTES_MAX);
    if let Err(refusal) = &valid {
        refused(refusal);
    }
    match topics.answer_to(&request, Some(wanted), &["plant/replies".to_owned()]) {
        Ok(to) => {
            let own = format!("{base}/reply/{}", request.app);
            let is_below = |prefix: &str| {
                to == prefix || to.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
            };
            let is_own = valid.is_err() || is_below(&own);
            assert!(is_own || is_below("plant/replies"), "a reply of {topic:?} to {to:?}");
            assert!(!to.contains(['+', '#', '\0']), "a reply to {to:?}");
        }
        Err(refusal) => refused(&refusal),
    }
});
