//! The HTTP client of MCP servers: `reqwest` with bounds on what a server may send and announce.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use sse_stream::Sse;

use crate::limits::{
    ERROR_BYTES_MAX, MCP_RESUME_MAX, MCP_STREAM_BYTES_MAX, REMOTE_MESSAGE_BYTES_MAX, REST_MAX,
};

type SseEvents = BoxStream<'static, Result<Sse, SseError>>;
pub(super) type Headers = HashMap<HeaderName, HeaderValue>;
type Failure = StreamableHttpError<reqwest::Error>;

/// First interval before an interrupted stream is resumed.
const RESUME_AFTER: Duration = Duration::from_secs(1);

/// The client.
#[derive(Clone)]
pub(super) struct BoundedHttpClient(pub(super) reqwest::Client);

/// The configuration of a transport over this client.
pub(super) fn config(url: &str, headers: Headers) -> StreamableHttpClientTransportConfig {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url)
        .custom_headers(headers)
        .max_sse_event_size(REMOTE_MESSAGE_BYTES_MAX)
        .max_json_response_size(REMOTE_MESSAGE_BYTES_MAX);
    config.max_error_response_size = ERROR_BYTES_MAX;
    config.retry_config = Arc::new(resume_policy());
    config
}

fn resume_policy() -> ExponentialBackoff {
    let mut policy = ExponentialBackoff::default();
    policy.max_times = Some(MCP_RESUME_MAX);
    policy.base_duration = RESUME_AFTER;
    policy.max_delay = Some(REST_MAX);
    policy
}

/// The events of a stream up to [`MCP_STREAM_BYTES_MAX`]. An error ends the stream, which is then resumed
/// after an interval of ours: what the server states in `retry` is not obeyed, because an interval of
/// zero makes requests without pause.
fn bounded(events: SseEvents) -> SseEvents {
    let within = events.scan(0, |bytes, event| {
        let event = event.ok().and_then(|event| {
            *bytes += event.data.as_ref().map_or(0, String::len);
            (*bytes <= MCP_STREAM_BYTES_MAX).then_some(Ok(Sse { retry: None, ..event }))
        });
        std::future::ready(event)
    });
    within.boxed()
}

impl StreamableHttpClient for BoundedHttpClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session, auth, headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let client = &self.0;
        let response = client
            .post_message_with_response_limits(uri, message, session, auth, headers, limits)
            .await?;
        Ok(match response {
            StreamableHttpPostResponse::Sse(events, session) => {
                StreamableHttpPostResponse::Sse(bounded(events), session)
            }
            // the enum is non-exhaustive
            other @ (StreamableHttpPostResponse::Accepted
            | StreamableHttpPostResponse::Json(..)
            | _) => other,
        })
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        auth: Option<String>,
        headers: Headers,
    ) -> Result<(), Failure> {
        self.0.delete_session(uri, session, auth, headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last: Option<String>,
        auth: Option<String>,
        headers: Headers,
    ) -> Result<SseEvents, Failure> {
        let most = REMOTE_MESSAGE_BYTES_MAX;
        self.get_stream_with_max_sse_event_size(uri, session, last, auth, headers, most).await
    }

    /// Resumes the stream of a response. A stream of messages that belong to no request is not opened:
    /// nothing that it could bring is used.
    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last: Option<String>,
        auth: Option<String>,
        headers: Headers,
        most: usize,
    ) -> Result<SseEvents, Failure> {
        if last.is_none() {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        let client = &self.0;
        let events =
            client.get_stream_with_max_sse_event_size(uri, session, last, auth, headers, most);
        Ok(bounded(events.await?))
    }
}
