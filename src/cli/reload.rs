//! `reload`: lets the running service read its configuration again, and prints what became of it.

use std::path::Path;

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode};

use super::running::RunningService;
use super::status::print_config;
use super::{DONE, NOT_READY, WRONG};
use crate::limits::DRAIN_MAX;
use crate::limits::reload::BACKEND_WARM_MAX;
use crate::status::ConfigStatus;

pub(super) async fn run(path: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    // another reload may run before
    let service = RunningService::find(path, BACKEND_WARM_MAX * 2 + DRAIN_MAX)?;
    let Some((code, body)) = service.ask(Method::POST, "/reload").await? else {
        return Ok(NOT_READY);
    };
    if !matches!(code, StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY) {
        let message = body["error"]["message"].as_str().unwrap_or_default();
        bail!("{} answers {code}: {message}", service.addr);
    }
    if json {
        print_line!("{body:#}");
    }
    let status: ConfigStatus = serde_json::from_value(body)
        .with_context(|| format!("{} is no service of this version", service.addr))?;
    if !json {
        print_config(&status)?;
    }
    Ok(if status.is_refused() { WRONG } else { DONE })
}
