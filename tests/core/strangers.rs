//! What a caller states beside its request is believed only where it restricts the request.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{line_to, scripted};
use pilotlight::mcp::contract::{META_DEADLINE, META_HOPS, TOOL};
use pilotlight::model::context::ModelContext;
use pilotlight::model::generate::{BoxFuture, Fault, Generate, Usage};
use pilotlight::model::out::Out;
use pilotlight::request::job::Job;
use rmcp::ServiceExt;
use rmcp::model::{CallToolRequest, CallToolRequestParams, ClientRequest, RequestMetaObject};
use rmcp::service::PeerRequestOptions;
use serde_json::{Value, json};

/// A model that notes the hops and the deadline of each job.
struct Notes(Mutex<Vec<(u8, Duration)>>, Arc<dyn Generate>);

impl Generate for Notes {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        self.0.lock().unwrap().push((job.hops, job.time_left));
        self.1.generate(job, out)
    }

    fn context(&self) -> &ModelContext {
        self.1.context()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hops_and_deadlines_restrict_and_never_free() {
    let notes = Arc::new(Notes(Mutex::default(), scripted()));
    let client = ().serve(line_to(notes.clone(), Duration::ZERO)).await.unwrap();
    let call = async |arguments: Value, stated: &[(&str, Value)]| {
        let arguments = arguments.as_object().unwrap().clone();
        let params = CallToolRequestParams::new(TOOL).with_arguments(arguments);
        let mut meta = RequestMetaObject::new();
        for (key, value) in stated {
            meta.insert((*key).to_owned(), value.clone());
        }
        let options = PeerRequestOptions::no_options().with_meta(meta);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let handle = client.peer().send_request_with_option(request, options).await.unwrap();
        handle.rx.await.unwrap().unwrap();
        notes.0.lock().unwrap().pop().unwrap()
    };
    let plain = json!({"prompt": "hello"});
    let (none, usual) = call(plain.clone(), &[]).await;
    assert_eq!(none, 0);

    for (stated, expected) in [
        (json!(0), 1),
        (json!(1), 1),
        (json!(3), 3),
        (json!(-1), 4),
        (json!("none"), 4),
        (json!(1.5), 4),
        (json!(null), 4),
        (json!(u64::MAX), 255),
    ] {
        let (hops, _) = call(plain.clone(), &[(META_HOPS, stated.clone())]).await;
        assert_eq!(hops, expected, "{stated}");
    }

    let ms = |ms: u64| Duration::from_millis(ms);
    let asked = json!({"prompt": "hello", "deadline_ms": 5000});
    for (arguments, stated, expected) in [
        // a deadline beside the request shortens its own
        (&plain, json!(1), ms(1)),
        (&asked, json!(700), ms(700)),
        // and does not extend it
        (&plain, json!(3_600_000), usual),
        (&asked, json!(3_600_000), ms(5000)),
        (&asked, json!(u64::MAX), ms(5000)),
        (&asked, json!("soon"), ms(5000)),
        (&asked, json!(-5), ms(5000)),
    ] {
        let (_, left) = call(arguments.clone(), &[(META_DEADLINE, stated.clone())]).await;
        assert_eq!(left, expected, "{stated}");
    }
}
