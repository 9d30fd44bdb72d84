//! An MCP server with the `generate` tool, as a model.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientConfig, ClientNotification,
    ClientRequest, CustomNotification, ErrorCode, JsonObject, ProtocolVersion, RequestMetaObject,
    ServerResult,
};
use rmcp::service::{
    ClientLifecycleMode, ClientServiceExt, Peer, PeerRequestOptions, RunningService,
    RunningServiceCancellationToken, ServiceError,
};
use rmcp::transport::{StreamableHttpClientTransport, Transport};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::answer::{check_answer, too_much};
use super::cancels::{CallHandle, Reaction, send_cancels};
use super::contract::{
    Generated, LOST, META_CACHE_GROUP, META_DEADLINE, META_FURTHEST, META_HOPS, META_OPEN_BYTES,
    NOT_TAKEN, NotGenerated, PACE, PaceNote, TOOL,
};
use super::group_tags::GroupTags;
use super::handshake::read_context;
use super::http_client::{self, BoundedHttpClient};
use super::http_errors::McpHttpClient;
use super::tap::{OrderedProgress, ProgressEvent, ProgressSink};
use super::tools::ToolList;
use super::transport::BoxTransport;
use crate::catalog::addresses::AddressRule;
use crate::catalog::url::ServerSecrets;
use crate::limits::{
    ANSWER_BYTES_MAX, CANCELS_WAITING_MAX, ENGINE_SILENCE_MAX, PROGRESS_MAX, TAP_CHUNKS_MAX,
};
use crate::model::context::{Locality, ModelContext};
use crate::model::generate::{BoxFuture, Fault, Generate, Pace, Usage};
use crate::model::out::Out;
use crate::net::client;
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::time::millis;
use crate::wire::Ask;

/// A model behind an MCP connection.
pub struct Remote {
    peer: Peer<RoleClient>,
    context: ModelContext,
    silence: Duration,
    pace: watch::Sender<Pace>,
    /// Calls that the server should stop.
    cancels: mpsc::Sender<CallHandle>,
    /// Makes the tags of cache groups.
    tags: GroupTags,
    /// What its faults must not contain.
    secrets: Arc<ServerSecrets>,
    tools: ToolList,
    /// Closes the connection when the last owner goes.
    _line: LineGuard,
}

struct LineGuard {
    line: Option<RunningServiceCancellationToken>,
    /// The tasks that send paces and cancellations; aborted with the connection.
    _senders: JoinSet<()>,
}

impl Drop for LineGuard {
    fn drop(&mut self) {
        if let Some(token) = self.line.take() {
            token.cancel();
        }
    }
}

/// Sends the server each new pace, one after the other.
async fn tell_pace(peer: Peer<RoleClient>, mut pace: watch::Receiver<Pace>) {
    let mut n = 0;
    // ends with the connection
    while pace.changed().await.is_ok() {
        n += 1;
        let Pace { duty, width } = *pace.borrow_and_update();
        let width = Some(width).filter(|width| *width < u32::MAX);
        let note = serde_json::to_value(PaceNote { n, duty, width }).ok();
        let note = CustomNotification::new(PACE, note);
        let sent = peer.send_notification(ClientNotification::CustomNotification(note)).await;
        if sent.is_err() {
            return;
        }
    }
}

/// An open connection. Dropping it closes the connection.
pub struct Closed {
    service: RunningService<RoleClient, ClientConfig>,
    /// Whether the server did not react to a cancellation.
    hangs: watch::Receiver<bool>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// Either side closed it.
    Closed,
    /// The server did not react to a cancellation within [`crate::limits::engine::ENGINE_CANCEL_MAX`].
    Hung,
}

impl Closed {
    /// Waits until either side has closed the connection.
    pub async fn wait(self) {
        let _ = self.service.waiting().await;
    }

    /// Waits until either side has closed the connection, or a server of [`connect_watched`] hangs.
    pub async fn wait_or_hung(self) -> LineEnd {
        let Closed { service, mut hangs } = self;
        let hung = async {
            if hangs.wait_for(|hangs| *hangs).await.is_err() {
                // the connection is not watched, or it has ended
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = service.waiting() => LineEnd::Closed,
            () = hung => LineEnd::Hung,
        }
    }
}

/// The time limits of a [`Remote`].
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest time without a message in the middle of an answer.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { silence: ENGINE_SILENCE_MAX }
    }
}

/// Connects over any transport and reads the server's `ModelContext`.
///
/// # Errors
/// [`Fault::Unavailable`] if the server does not answer, [`Fault::ProtocolError`] if it is no model.
pub async fn connect<T>(transport: T, patience: Patience) -> Result<(Remote, Closed), Fault>
where
    T: Transport<RoleClient> + Send + 'static,
{
    connect_by(transport, either_lifecycle(), patience, Arc::default(), Reaction::Unwatched).await
}

/// [`connect`] to a process that must react to cancellations, see [`Closed::wait_or_hung`].
///
/// # Errors
/// As [`connect`].
pub async fn connect_watched<T>(transport: T, patience: Patience) -> Result<(Remote, Closed), Fault>
where
    T: Transport<RoleClient> + Send + 'static,
{
    connect_by(transport, either_lifecycle(), patience, Arc::default(), Reaction::Watched).await
}

/// [`connect_watched`] to an engine of this program, which answers when it has loaded its model: the protocol
/// version does not depend on how long that takes.
///
/// # Errors
/// As [`connect`].
pub async fn connect_engine<T>(transport: T, patience: Patience) -> Result<(Remote, Closed), Fault>
where
    T: Transport<RoleClient> + Send + 'static,
{
    let connected =
        connect_by(transport, discovery(), patience, Arc::default(), Reaction::Watched).await;
    let (mut remote, closed) = connected?;
    remote.tags = GroupTags::Lasting;
    Ok((remote, closed))
}

fn discovery() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

fn either_lifecycle() -> ClientLifecycleMode {
    ClientLifecycleMode::Auto {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        legacy_version: Some(ProtocolVersion::V_2025_11_25),
    }
}

/// [`connect`] over a transport that carries single requests without a session.
///
/// # Errors
/// As [`connect`].
pub async fn connect_stateless<T>(
    transport: T,
    patience: Patience,
) -> Result<(Remote, Closed), Fault>
where
    T: Transport<RoleClient> + Send + 'static,
{
    connect_by(transport, discovery(), patience, Arc::default(), Reaction::Unwatched).await
}

async fn connect_by<T>(
    transport: T,
    lifecycle: ClientLifecycleMode,
    patience: Patience,
    secrets: Arc<ServerSecrets>,
    reaction: Reaction,
) -> Result<(Remote, Closed), Fault>
where
    T: Transport<RoleClient> + Send + 'static,
{
    let hidden = Arc::clone(&secrets);
    let connected = connect_with(transport, lifecycle, patience, secrets, reaction).await;
    connected.map_err(|fault| fault.map_text(|text| hidden.hide(text)))
}

async fn connect_with<T>(
    transport: T,
    lifecycle: ClientLifecycleMode,
    patience: Patience,
    secrets: Arc<ServerSecrets>,
    reaction: Reaction,
) -> Result<(Remote, Closed), Fault>
where
    T: Transport<RoleClient> + Send + 'static,
{
    let (announced, tools_announced) = watch::channel(0);
    let transport = OrderedProgress::new(BoxTransport::new(transport), announced);
    // boxed: the handshake for all protocol versions is a large future
    let service = Box::pin(ClientConfig::default().serve_with_lifecycle(transport, lifecycle))
        .await
        .map_err(|e| Fault::unavailable(format!("the MCP handshake failed: {e}")).bounded())?;
    let peer = service.peer().clone();
    let (pace, told) = watch::channel(Pace::default());
    let (cancels, cancelled) = mpsc::channel(CANCELS_WAITING_MAX);
    let mut senders = JoinSet::new();
    senders.spawn(tell_pace(peer.clone(), told));
    let (hangs, is_hung) = watch::channel(false);
    let watched = (reaction == Reaction::Watched).then_some(hangs);
    senders.spawn(send_cancels(peer.clone(), cancelled, watched));
    let guard = LineGuard { line: Some(service.cancellation_token()), _senders: senders };
    let context = read_context(&peer).await?;
    let tags = GroupTags::Drawn(RandomState::new());
    let silence = patience.silence;
    let tools = ToolList::new(peer.clone(), tools_announced);
    let remote =
        Remote { peer, context, silence, pace, cancels, tags, secrets, tools, _line: guard };
    Ok((remote, Closed { service, hangs: is_hung }))
}

/// [`connect`] over streamable HTTP.
///
/// # Errors
/// As [`connect`]; also if a header or the address can't be used.
pub async fn connect_http(
    url: &str,
    headers: &BTreeMap<String, String>,
    addresses: &AddressRule,
    patience: Patience,
) -> Result<(Remote, Closed), Fault> {
    let mut custom = std::collections::HashMap::new();
    for (name, value) in headers {
        let name: http::HeaderName = name
            .parse()
            .map_err(|_| Fault::unavailable(format!("{name:?} cannot be the name of a header")))?;
        let value = value.parse().map_err(|_| {
            Fault::unavailable(format!("the value of header {name} cannot be used"))
        })?;
        custom.insert(name, value);
    }
    let config = http_client::config(url, custom);
    let secrets = Arc::new(ServerSecrets::new(url, headers.values().map(String::as_str)));
    // without the URL, in which a key may stand
    let parsed = reqwest::Url::parse(url)
        .map_err(|e| Fault::unavailable(format!("the value of url is not a URL: {e}")))?;
    let builder = client::builder(&parsed, addresses).map_err(Fault::unavailable)?;
    let client = builder.build().map_err(|e| {
        Fault::unavailable(format!("the HTTP client cannot be created: {}", e.without_url()))
    })?;
    let client = McpHttpClient { client: BoundedHttpClient(client), secrets: Arc::clone(&secrets) };
    let transport = StreamableHttpClientTransport::with_client(client, config);
    connect_by(transport, either_lifecycle(), patience, secrets, Reaction::Unwatched).await
}

impl Generate for Remote {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(async move {
            let called = self.call(job, out).await;
            called.map_err(|fault| fault.map_text(|text| self.secrets.hide(text)))
        })
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }

    fn pace(&self, pace: Pace) {
        self.pace.send_if_modified(|before| {
            let changed = (before.duty - pace.duty).abs() >= 0.005 || before.width != pace.width;
            *before = if changed { pace } else { *before };
            changed
        });
    }
}

impl Remote {
    /// The tools of the server.
    pub fn tools(&self) -> &ToolList {
        &self.tools
    }

    async fn call(&self, job: &Job, mut out: Out) -> Result<Usage, Fault> {
        tokio::select! {
            biased;
            may_call = self.tools.may_call() => may_call?,
            () = out.gone() => return Err(Fault::Cancelled),
        }
        let (sink, mut beats) = mpsc::channel(TAP_CHUNKS_MAX + 1);
        let mut request = CallToolRequest::new(params_of(job)?);
        request.extensions.insert(ProgressSink(sink));
        let options = PeerRequestOptions::no_options().with_meta(meta_of(job, &self.tags));
        let handle = self
            .peer
            .send_request_with_option(ClientRequest::CallToolRequest(request), options)
            .await
            .map_err(|e| fault_of(&e))?;
        let mut call = PendingCall { handle: Some(handle), cancels: &self.cancels };
        let (mut bytes, mut signs) = (0, 0);
        // bounded by the pieces, bytes and signs of life that one answer may have
        loop {
            let beat = tokio::select! {
                beat = beats.recv() => beat,
                () = out.gone() => return Err(Fault::Cancelled),
                () = tokio::time::sleep(self.silence) => {
                    let silent = self.silence.as_secs_f32();
                    return Err(Fault::TimedOut(format!("no output for {silent} s")));
                }
            };
            match beat {
                Some(ProgressEvent::Piece(text)) => {
                    bytes += text.len();
                    if bytes > ANSWER_BYTES_MAX || out.written() as usize >= TAP_CHUNKS_MAX {
                        return Err(too_much("pieces or bytes"));
                    }
                    out.write(text).await.map_err(|_| Fault::Cancelled)?;
                }
                Some(ProgressEvent::Alive) => {
                    signs += 1;
                    if signs > PROGRESS_MAX {
                        return Err(too_much("progress notifications"));
                    }
                    out.alive();
                }
                Some(ProgressEvent::Overflow) => return Err(too_much("pieces")),
                // the response has passed, or the connection has broken
                None => break,
            }
        }
        let result = call.result().await?;
        usage_of(job, result, &mut out).await
    }
}

/// A call without a result yet; if it is dropped before that, the server is told to stop.
struct PendingCall<'a> {
    handle: Option<CallHandle>,
    cancels: &'a mpsc::Sender<CallHandle>,
}

impl PendingCall<'_> {
    async fn result(&mut self) -> Result<ServerResult, Fault> {
        let Some(handle) = self.handle.as_mut() else {
            return Err(Fault::Cancelled);
        };
        let result = (&mut handle.rx).await;
        self.handle = None;
        match result {
            Ok(result) => result.map_err(|e| fault_of(&e)),
            Err(_) => Err(Fault::Crashed("connection lost during the call".to_owned())),
        }
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        if self.cancels.try_send(handle).is_err() {
            tracing::debug!("a call is not cancelled: too many cancellations wait");
        }
    }
}

fn params_of(job: &Job) -> Result<CallToolRequestParams, Fault> {
    match serde_json::to_value(Ask::of(job)) {
        Ok(Value::Object(arguments)) => {
            Ok(CallToolRequestParams::new(TOOL).with_arguments(arguments))
        }
        Ok(_) | Err(_) => Err(Fault::ProtocolError("the job cannot be written as JSON".to_owned())),
    }
}

fn meta_of(job: &Job, tags: &GroupTags) -> RequestMetaObject {
    let mut meta = RequestMetaObject::new();
    meta.insert(META_CACHE_GROUP.to_owned(), Value::from(tags.tag(&job.cache_group)));
    meta.insert(META_OPEN_BYTES.to_owned(), Value::from(job.open_bytes));
    let left = millis(job.time_left).max(1);
    meta.insert(META_DEADLINE.to_owned(), Value::from(left));
    meta.insert(META_HOPS.to_owned(), Value::from(job.hops.saturating_add(1)));
    if job.furthest < Locality::Cloud {
        meta.insert(META_FURTHEST.to_owned(), Value::from(job.furthest.name()));
    }
    meta
}

fn fault_of(error: &ServiceError) -> Fault {
    match error {
        ServiceError::McpError(error) if error.code == ErrorCode::INVALID_PARAMS => {
            Fault::Rejected(Refusal::new(Code::Invalid, error.message.to_string()))
        }
        ServiceError::McpError(error) if error.code == LOST => {
            Fault::Crashed(error.message.to_string())
        }
        ServiceError::McpError(error) if error.code == NOT_TAKEN => {
            Fault::unavailable(error.message.to_string())
        }
        ServiceError::McpError(error) => Fault::ProtocolError(error.message.to_string()),
        // this side has not cancelled it: it would not wait for the result
        ServiceError::Cancelled { .. } => cancelled_there(),
        ServiceError::Timeout { .. } => Fault::TimedOut("no answer in time".to_owned()),
        ServiceError::TransportClosed => {
            Fault::Crashed("connection lost during the call".to_owned())
        }
        // the enum is non-exhaustive; in every other case the call was not sent
        ServiceError::TransportSend(_) | ServiceError::UnexpectedResponse | _ => {
            Fault::unavailable(error.to_string())
        }
    }
}

/// The fault of a call that the server states as cancelled, although its client waits for it.
fn cancelled_there() -> Fault {
    Fault::ProtocolError("the server cancelled the call".to_owned())
}

/// Reads the result and checks that no piece was lost, and that the answer is one that was asked for.
async fn usage_of(job: &Job, result: ServerResult, out: &mut Out) -> Result<Usage, Fault> {
    let ServerResult::CallToolResult(CallToolResult {
        structured_content, is_error, content, ..
    }) = result
    else {
        return Err(Fault::ProtocolError("the tool's result has an unexpected type".to_owned()));
    };
    let Some(Value::Object(structured)) = structured_content else {
        let text = content.iter().find_map(|c| c.as_text()).map(|t| t.text.as_str());
        let text = text.unwrap_or("no structured content");
        return Err(Fault::ProtocolError(format!("the tool's result cannot be used: {text}")));
    };
    if is_error == Some(true) {
        let fault = read::<NotGenerated>(structured)?.fault();
        return Err(if fault == Fault::Cancelled { cancelled_there() } else { fault });
    }
    let generated: Generated = read(structured)?;
    let (sent, had) = (generated.usage.chunks, out.written());
    if had == 0 && sent > 0 && !generated.text.is_empty() {
        if generated.text.len() > ANSWER_BYTES_MAX {
            return Err(too_much("bytes"));
        }
        // a server without progress notifications sends the whole answer at once
        out.write(generated.text).await.map_err(|_| Fault::Cancelled)?;
    } else if had != sent {
        return Err(Fault::ProtocolError(format!("{sent} pieces were sent and {had} arrived")));
    }
    check_answer(job, &generated.usage)?;
    Ok(Usage { chunks: out.written(), ..generated.usage })
}

fn read<T: serde::de::DeserializeOwned>(structured: JsonObject) -> Result<T, Fault> {
    serde_json::from_value(Value::Object(structured))
        .map_err(|e| Fault::ProtocolError(format!("the tool's result cannot be parsed: {e}")))
}
