//! The service as a model host for MCP: one model that answers, and the contexts of all models behind it.

use std::sync::Arc;

use crate::catalog::catalog::Catalog;
use crate::dispatch::Dispatch;
use crate::ingress::answers::{self, ReplyOrigin};
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::mcp::server::ModelHost;
use crate::model::context::{Capabilities, Identification, ModelContext, Runtime};
use crate::model::generate::{BoxFuture, Fault, Generate, Usage};
use crate::model::out::Out;
use crate::request::job::Job;
use crate::scheduler::Verdict;
use crate::strategy;

/// The whole service as one model.
pub struct Service {
    dispatch: Dispatch,
    context: ModelContext,
}

impl Service {
    /// The service of this dispatcher.
    pub fn new(dispatch: Dispatch) -> Service {
        let context = ModelContext {
            identification: Identification {
                name: "pilotlight".to_owned(),
                family: "service".to_owned(),
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                ..Identification::default()
            },
            capabilities: Capabilities {
                max_output_tokens: OUTPUT_TOKENS_MAX,
                modalities: vec!["text".to_owned()],
                json_schema: true,
                streaming: true,
                ..Capabilities::default()
            },
            runtime: Runtime {
                backend: "pilotlight".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                location: "device".to_owned(),
                slots: u32::try_from(crate::limits::RUNNING_JOBS_MAX).unwrap_or(1),
                ..Runtime::default()
            },
            ..ModelContext::default()
        };
        Service { dispatch, context }
    }

    async fn run(&self, job: &Job, mut out: Out) -> Result<Usage, Fault> {
        let reader = out.watch();
        let (lent, lease) = out.lend(None);
        let answer = strategy::submit_to(&self.dispatch, job.clone(), lent).await;
        let answer = answer.map_err(Fault::Rejected)?;
        let mut end = tokio::select! {
            end = answer.end() => end,
            () = reader.gone() => return Err(Fault::Cancelled),
        };
        answers::ended(&ReplyOrigin::of("mcp", job), &end);
        drop(lease);
        if let Some(text) = end.buffered.take().filter(|text| !text.is_empty()) {
            out.write(text).await.map_err(|_| Fault::Cancelled)?;
        }
        match (end.verdict, end.usage) {
            (Verdict::Done, Some(usage)) => Ok(Usage {
                decision: serde_json::to_value(&end.decision).ok(),
                cost_usd: end.decision.cost_usd(),
                chunks: out.written(),
                ..usage
            }),
            (Verdict::Done, None) => {
                Err(Fault::ProtocolError("answered without a count".to_owned()))
            }
            (Verdict::Refused(refusal), _) => Err(Fault::Rejected(refusal)),
            (Verdict::Expired, _) => Err(Fault::TimedOut("the deadline passed".to_owned())),
            (Verdict::Cancelled, _) => Err(Fault::Cancelled),
            (Verdict::Failed(fault), _) => Err(fault),
        }
    }
}

impl Generate for Service {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(self.run(job, out))
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }
}

impl ModelHost for Service {
    fn generate(&self) -> &dyn Generate {
        self
    }

    /// The context of the service, then that of every model that is up.
    fn models(&self) -> Vec<ModelContext> {
        let behind = self.dispatch.backends().into_iter().filter_map(|status| status.context);
        let behind: Vec<ModelContext> = behind.collect();
        let mut service = self.context.clone();
        // the union of the models' capabilities
        let lengths = behind.iter().map(|model| model.capabilities.context_tokens);
        service.capabilities.context_tokens = lengths.max().unwrap_or(OUTPUT_TOKENS_MAX);
        for model in &behind {
            let can = &model.capabilities;
            service.capabilities.embeddings |= can.embeddings;
            service.capabilities.logprobs |= can.logprobs;
            service.capabilities.tools |= can.tools;
            service.capabilities.skills.extend(can.skills.iter().cloned());
        }
        service.capabilities.skills.sort();
        service.capabilities.skills.dedup();
        std::iter::once(service).chain(behind).collect()
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.dispatch.catalog()
    }
}
