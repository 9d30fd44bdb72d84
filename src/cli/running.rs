//! The service that runs on this machine, reached over its HTTP interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use reqwest::header::{CONTENT_TYPE, HOST};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::start::disable_core_dumps;
use crate::catalog::secret::Secret;
use crate::config::source;

/// The running service.
pub(super) struct RunningService {
    /// Its address from this machine.
    pub(super) addr: SocketAddr,
    client: Client,
    token: Option<Secret<String>>,
}

impl RunningService {
    /// The service of the configuration at `path`, else of the default one; an answer may take `most`.
    /// Mistakes of the configuration count only where the service is concerned: it may still run with the
    /// one before.
    ///
    /// # Errors
    /// If its HTTP interface is off.
    pub(super) fn find(path: Option<&Path>, most: Duration) -> anyhow::Result<RunningService> {
        disable_core_dumps()?;
        let Some(http) = source::http_of(path) else {
            bail!(
                "this command needs the HTTP interface, which is off: set PILOTLIGHT_HTTP, or send the service SIGHUP to reload it"
            );
        };
        let client = Client::builder().timeout(most).no_proxy().tls_certs_only([]).build()?;
        Ok(RunningService { addr: local(http.listen), client, token: http.guard.token })
    }

    /// Sends a request without a body; none if no service is reachable, which is printed.
    ///
    /// # Errors
    /// If the answer is not JSON.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<Option<(StatusCode, Value)>> {
        self.send(self.request(method, path)).await
    }

    /// [`RunningService::ask`] that prints nothing; none also if the answer is not JSON, for instance because
    /// the service stops in the middle of it.
    pub(super) async fn ask_quietly(
        &self,
        method: Method,
        path: &str,
    ) -> Option<(StatusCode, Value)> {
        let answer = self.authorized(self.request(method, path)).send().await.ok()?;
        Some((answer.status(), answer.json().await.ok()?))
    }

    /// Sends a body of this type, like [`RunningService::ask`].
    ///
    /// # Errors
    /// If the answer is not JSON.
    pub(super) async fn post(
        &self,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<Option<(StatusCode, Value)>> {
        self.send(self.request(Method::POST, path).header(CONTENT_TYPE, kind).body(body)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.addr);
        self.client.request(method, url).header(HOST, "localhost")
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(&token.0),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Option<(StatusCode, Value)>> {
        let addr = self.addr;
        let Ok(answer) = self.authorized(request).send().await else {
            print_error!("no service is reachable at {addr}");
            return Ok(None);
        };
        Ok(Some((answer.status(), answer.json().await?)))
    }
}

/// The address by which this machine reaches a service that listens at `addr`.
fn local(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, addr.port())
}
