//! Entry point of the fuzz target `chat`: the bodies of the two endpoints, up to the checked job.

use super::chat::{ChatRequest, with_api_field};
use super::embeddings::EmbeddingsRequest;
use crate::catalog::catalog::Catalog;
use crate::request::client::Client;
use crate::request::job::Job;
use crate::request::refusal::Refusal;
use crate::wire::read;

/// The job of a body of `POST /v1/chat/completions`.
///
/// # Errors
/// As the endpoint.
pub fn chat(body: &[u8], catalog: &Catalog) -> Result<Job, Refusal> {
    let request: ChatRequest = read(body)?;
    let _ = request.includes_usage();
    request.ask()?.check(&Client::known("http"), catalog).map_err(with_api_field)
}

/// The job of a body of `POST /v1/embeddings`.
///
/// # Errors
/// As the endpoint.
pub fn embeddings(body: &[u8], catalog: &Catalog) -> Result<Job, Refusal> {
    let request: EmbeddingsRequest = read(body)?;
    request.ask()?.check(&Client::known("http"), catalog)
}
