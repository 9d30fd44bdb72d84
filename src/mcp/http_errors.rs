//! The errors of the HTTP client of MCP servers, without the secrets of the server's URL and headers.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use futures::stream::BoxStream;
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, SseError, StreamableHttpClient, StreamableHttpError,
    StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use sse_stream::Sse;

use super::http_client::{BoundedHttpClient, Headers};
use crate::catalog::url::ServerSecrets;
use crate::net::client;

/// An HTTP client of one MCP server. The transport logs errors itself, so that they are changed here.
#[derive(Clone)]
pub(super) struct McpHttpClient {
    pub(super) client: BoundedHttpClient,
    pub(super) secrets: Arc<ServerSecrets>,
}

type HttpError = StreamableHttpError<reqwest::Error>;

impl McpHttpClient {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other errors have no foreign text")]
    fn hide(&self, error: HttpError) -> HttpError {
        match error {
            HttpError::Client(error) => match client::not_public(&error) {
                Some(why) => HttpError::Io(io::Error::other(why)),
                None => HttpError::Client(error.without_url()),
            },
            HttpError::UnexpectedServerResponse(text) => {
                HttpError::UnexpectedServerResponse(Cow::Owned(self.secrets.hide(&text)))
            }
            HttpError::UnexpectedContentType(kind) => {
                HttpError::UnexpectedContentType(kind.map(|kind| self.secrets.hide(&kind)))
            }
            // with the scope, the error is written as this one
            HttpError::AuthRequired(error) => self.auth(&error.www_authenticate_header),
            HttpError::InsufficientScope(error) => self.auth(&error.www_authenticate_header),
            other => other,
        }
    }

    fn auth(&self, header: &str) -> HttpError {
        HttpError::AuthRequired(AuthRequiredError::new(self.secrets.hide(header)))
    }
}

impl StreamableHttpClient for McpHttpClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let sent = self.client.post_message(uri, message, session, auth, headers).await;
        sent.map_err(|error| self.hide(error))
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let client = &self.client;
        let sent = client
            .post_message_with_response_limits(uri, message, session, auth, headers, limits)
            .await;
        sent.map_err(|error| self.hide(error))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        auth: Option<String>,
        headers: Headers,
    ) -> Result<(), HttpError> {
        let deleted = self.client.delete_session(uri, session, auth, headers).await;
        deleted.map_err(|error| self.hide(error))
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: Headers,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpError> {
        let opened = self.client.get_stream(uri, session, last_event, auth, headers).await;
        opened.map_err(|error| self.hide(error))
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: Headers,
        most: usize,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpError> {
        let client = &self.client;
        let opened = client
            .get_stream_with_max_sse_event_size(uri, session, last_event, auth, headers, most)
            .await;
        opened.map_err(|error| self.hide(error))
    }
}
