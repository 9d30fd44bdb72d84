//! The MCP server of a model or of the whole service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, CustomNotification,
    ErrorData, Implementation, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    PaginatedRequestParams, ProgressNotificationParam, ProgressToken, ReadResourceRequestParams,
    ReadResourceResponse, ReadResourceResult, Resource, ResourceContents, ResourceTemplate,
    ServerCapabilities, ServerConfig,
};
use rmcp::service::{NotificationContext, RequestContext, RunningService, ServiceExt};
use rmcp::transport::Transport;
use rmcp::{RoleServer, ServerHandler};
use serde_json::Value;
use tokio::sync::oneshot;

use super::contract::{
    EMBED_TOOL, Embed, Generated, NotGenerated, PACE, PaceNote, TOOL, cache_group_of, context_uri,
    deadline_of, embed_tool, furthest_of, hops_of, model_of_uri, open_bytes_of, tool,
};
use super::transport::BoxTransport;
use crate::catalog::catalog::Catalog;
use crate::limits::ANSWER_BYTES_MAX;
use crate::model::context::ModelContext;
use crate::model::generate::{Fault, Generate, Pace};
use crate::model::out::channel;
use crate::request::client::Client;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::refusal::Refusal;
use crate::request::skill::EMBED;
use crate::wire::{Ask, read_value};

/// The models of an MCP server: one that answers, and those behind it.
pub trait ModelHost: Send + Sync + 'static {
    /// The model that answers.
    fn generate(&self) -> &dyn Generate;
    /// The contexts of the models behind it; a single engine has its own alone.
    fn models(&self) -> Vec<ModelContext>;
    /// Tasks and defaults for requests.
    fn catalog(&self) -> Arc<Catalog>;
    /// Whether the service that started this process is its only caller, so that its word on what the
    /// operator wrote counts.
    fn is_private(&self) -> bool {
        false
    }
}

/// The host of a single model.
pub struct SingleModel(pub Arc<dyn Generate>);

impl ModelHost for SingleModel {
    fn generate(&self) -> &dyn Generate {
        self.0.as_ref()
    }

    fn models(&self) -> Vec<ModelContext> {
        vec![self.0.context().clone()]
    }

    fn catalog(&self) -> Arc<Catalog> {
        static NONE: std::sync::LazyLock<Arc<Catalog>> = std::sync::LazyLock::new(Arc::default);
        Arc::clone(&NONE)
    }

    fn is_private(&self) -> bool {
        true
    }
}

/// The MCP handler of a model host.
#[derive(Clone)]
pub struct McpServer {
    host: Arc<dyn ModelHost>,
    /// Whose requests these are, if they do not say it.
    client: Client,
    /// The number of the last [`Pace`] that was obeyed.
    paced: Arc<AtomicU64>,
}

/// Serves over any transport until the client goes; drop or cancel the result to stop.
///
/// # Errors
/// If the client leaves before the handshake is done.
pub async fn serve<T>(
    host: Arc<dyn ModelHost>,
    transport: T,
) -> Result<RunningService<RoleServer, McpServer>, Fault>
where
    T: Transport<RoleServer> + Send + 'static,
{
    serve_client(host, Client::known("mcp"), transport).await
}

/// The same for a known client.
///
/// # Errors
/// If the client leaves before the handshake is done.
pub async fn serve_client<T>(
    host: Arc<dyn ModelHost>,
    client: Client,
    transport: T,
) -> Result<RunningService<RoleServer, McpServer>, Fault>
where
    T: Transport<RoleServer> + Send + 'static,
{
    McpServer { client, ..McpServer::new(host) }
        .serve(BoxTransport::new(transport))
        .await
        .map_err(|e| Fault::unavailable(format!("the MCP handshake failed: {e}")))
}

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_resources().build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("pilotlight", env!("CARGO_PKG_VERSION")))
            .with_instructions(
                "Call the tool generate with a prompt. The resource model://NAME/context describes \
                 each model.",
            )
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools()))
    }

    fn get_tool(&self, name: &str) -> Option<rmcp::model::Tool> {
        match name {
            TOOL => Some(tool()),
            EMBED_TOOL if self.embeds() => Some(embed_tool()),
            _ => None,
        }
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resource = |context: ModelContext| {
            let name = context.identification.name;
            Resource::new(context_uri(&name), name)
                .with_description(
                    "ModelContext: identity, capabilities, settings, tokenizer, runtime.",
                )
                .with_mime_type("application/json")
        };
        let resources = self.host.models().into_iter().map(resource).collect();
        Ok(ListResourcesResult::with_all_items(resources))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template = ResourceTemplate::new("model://{name}/context", "model context")
            .with_description("What a model is and can do.")
            .with_mime_type("application/json");
        Ok(ListResourceTemplatesResult::with_all_items(vec![template]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let name = model_of_uri(&request.uri);
        let model =
            self.host.models().into_iter().find(|m| Some(m.identification.name.as_str()) == name);
        let Some(model) = model else {
            let message = format!("there is no resource {}", request.uri);
            let data = serde_json::json!({"uri": request.uri});
            return Err(ErrorData::resource_not_found(message, Some(data)));
        };
        let text = serde_json::to_string(&model)
            .map_err(|e| ErrorData::internal_error(e.to_string(), None))?;
        let contents = ResourceContents::text(text, request.uri).with_mime_type("application/json");
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    async fn on_custom_notification(
        &self,
        notification: CustomNotification,
        _context: NotificationContext<RoleServer>,
    ) {
        if notification.method != PACE {
            return;
        }
        let Ok(Some(PaceNote { n, duty, width })) = notification.params_as::<PaceNote>() else {
            return tracing::debug!("invalid pace notification");
        };
        if self.paced.fetch_max(n, Ordering::Relaxed) < n && (0.0..=1.0).contains(&duty) {
            let width = width.unwrap_or(u32::MAX).max(1);
            self.host.generate().pace(Pace { duty, width });
        }
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if self.get_tool(&request.name).is_none() {
            let tools: Vec<String> = self.tools().into_iter().map(|t| t.name.into()).collect();
            let known = tools.join(", ");
            let message = format!("there is no tool {:?}; there are: {known}", request.name);
            return Err(ErrorData::invalid_params(message, None));
        }
        let job = match self.job_of(request, &context) {
            Ok(job) => job,
            Err(refusal) => return Ok(not_generated(&Fault::Rejected(refusal))),
        };
        let result = match self.run(&job, &context).await {
            Ok(generated) if job.format == Format::Embedding => embedded(generated),
            Ok(generated) => done(generated),
            Err(fault) => not_generated(&fault),
        };
        Ok(result)
    }
}

impl McpServer {
    /// A handler of this model host.
    pub fn new(host: Arc<dyn ModelHost>) -> McpServer {
        McpServer { host, client: Client::known("mcp"), paced: Arc::default() }
    }

    /// The tools that can be called: embeddings only if a model has the skill.
    fn tools(&self) -> Vec<rmcp::model::Tool> {
        if self.embeds() { vec![tool(), embed_tool()] } else { vec![tool()] }
    }

    fn embeds(&self) -> bool {
        self.host.models().iter().any(|model| model.capabilities.has(EMBED))
    }

    /// The application whose token the HTTP request has, else the one that this server is for.
    fn client_of(&self, context: &RequestContext<RoleServer>) -> Client {
        let parts = context.extensions.get::<http::request::Parts>();
        let holder = parts.and_then(|parts| parts.extensions.get::<Client>());
        holder.filter(|client| !client.is_interface()).unwrap_or(&self.client).clone()
    }

    fn job_of(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<Job, Refusal> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let ask: Ask = if request.name == EMBED_TOOL {
            read_value::<Embed>(arguments)?.ask()
        } else {
            read_value(arguments)?
        };
        let stream = ask.stream;
        let mut job = ask.check(&self.client_of(context), &self.host.catalog())?;
        job.streamed = stream.unwrap_or(context.meta.get_progress_token().is_some());
        if let Some(left) = deadline_of(&context.meta) {
            job.time_left = job.time_left.min(left);
        }
        job.hops = hops_of(&context.meta);
        job.cache_group = format!("{}/{}", job.cache_group, cache_group_of(&context.meta));
        if self.host.is_private() {
            job.open_bytes = open_bytes_of(&context.meta);
        }
        job.furthest = job.furthest.min(furthest_of(&context.meta)?);
        Ok(job)
    }

    /// Runs the job and sends each piece as progress before the next is taken.
    async fn run(
        &self,
        job: &Job,
        context: &RequestContext<RoleServer>,
    ) -> Result<Generated, Fault> {
        let (out, mut chunks) = channel();
        let token = context.meta.get_progress_token();
        let (over, mut is_over) = oneshot::channel::<()>();
        let generate = async {
            let usage = self.host.generate().generate(job, out).await?;
            drop(over);
            Ok(usage)
        };
        let send = async {
            let mut text = String::new();
            let mut sent = 0.0;
            let mut is_open = true;
            loop {
                let chunk = tokio::select! {
                    biased;
                    chunk = chunks.recv() => chunk,
                    // an abandoned backend may hold the channel for longer
                    _ = &mut is_over, if is_open => {
                        is_open = false;
                        chunks.close();
                        continue;
                    }
                };
                let Some(chunk) = chunk else { break };
                if text.len() + chunk.text.len() > ANSWER_BYTES_MAX {
                    return Err(Fault::ProtocolError(
                        "the answer exceeds the size limit".to_owned(),
                    ));
                }
                text.push_str(&chunk.text);
                if let Some(token) = &token {
                    sent += 1.0;
                    send_progress(context, token, sent, chunk.text).await?;
                }
            }
            Ok(text)
        };
        let work = async { futures::try_join!(generate, send) };
        tokio::select! {
            done = work => {
                let (usage, text) = done?;
                Ok(Generated { text, usage })
            }
            () = context.ct.cancelled() => Err(Fault::Cancelled),
        }
    }
}

async fn send_progress(
    context: &RequestContext<RoleServer>,
    token: &ProgressToken,
    sent: f64,
    text: String,
) -> Result<(), Fault> {
    let mut progress = ProgressNotificationParam::new(token.clone(), sent);
    progress.message = Some(text).filter(|text| !text.is_empty());
    context.peer.notify_progress(progress).await.map_err(|_| Fault::Cancelled)
}

fn done(generated: Generated) -> CallToolResponse {
    let content = vec![ContentBlock::text(generated.text.clone())];
    let mut result = CallToolResult::success(content);
    result.structured_content = serde_json::to_value(generated).ok();
    result.into()
}

/// The result of [`EMBED_TOOL`]: embeddings as numbers, beside their text.
fn embedded(generated: Generated) -> CallToolResponse {
    let mut value = serde_json::to_value(&generated).unwrap_or_default();
    value["embeddings"] = serde_json::from_str(&generated.text).unwrap_or_default();
    let mut result = CallToolResult::success(vec![ContentBlock::text(generated.text)]);
    result.structured_content = Some(value);
    result.into()
}

fn not_generated(fault: &Fault) -> CallToolResponse {
    let error = NotGenerated::of(fault);
    let said = match fault {
        Fault::Rejected(refusal) => refusal.to_string(),
        Fault::Cancelled
        | Fault::Unavailable { .. }
        | Fault::Crashed(_)
        | Fault::TimedOut(_)
        | Fault::ProtocolError(_) => fault.to_string(),
    };
    let mut result = CallToolResult::error(vec![ContentBlock::text(said)]);
    result.structured_content = serde_json::to_value(error).ok();
    result.into()
}
