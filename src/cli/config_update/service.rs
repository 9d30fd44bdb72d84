//! `config apply`, and `config rollback` while the service runs: the service does it, and this waits for the
//! end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cli::running::RunningService;
use crate::cli::status::print_config;
use crate::cli::{BROKE, DONE, WRONG};
use crate::clock;
use crate::fleet::update::UpdateState;
use crate::limits::fleet::{APPLY_POLL, PROBE_MAX, SIGNED_BYTES_MAX, TRIAL_SECONDS_MAX};
use crate::status::ConfigStatus;
use crate::store::files;

/// The service that runs: its models may take their time.
///
/// # Errors
/// If its HTTP interface is off.
pub(in crate::cli) fn find(path: Option<&Path>) -> anyhow::Result<RunningService> {
    RunningService::find(path, PROBE_MAX * 4)
}

/// An `update.signed`.
///
/// # Errors
/// If it can't be read, or is too large.
pub(in crate::cli) fn signed(file: &Path) -> anyhow::Result<Vec<u8>> {
    let most = SIGNED_BYTES_MAX as u64;
    files::read(file, most).with_context(|| format!("{} can't be read", file.display()))
}

/// Lets the service do this with an `update.signed`; returns the state afterwards, or why it is refused.
///
/// # Errors
/// If no service is reachable, or it answers otherwise.
pub(in crate::cli) async fn send(
    service: &RunningService,
    route: &str,
    update: Vec<u8>,
) -> anyhow::Result<Result<ConfigStatus, Value>> {
    let answer = service.post(route, "application/octet-stream", update).await?;
    outcome(service, answer, StatusCode::UNPROCESSABLE_ENTITY)
}

/// Lets the service return to the configuration before; returns the state afterwards, or why it can't.
///
/// # Errors
/// If no service is reachable, or it answers otherwise.
pub(in crate::cli) async fn take_back(
    service: &RunningService,
    steps_down: bool,
) -> anyhow::Result<Result<ConfigStatus, Value>> {
    let body = json!({"allow_downgrade": steps_down}).to_string().into_bytes();
    let answer = service.post("/config/rollback", "application/json", body).await?;
    outcome(service, answer, StatusCode::CONFLICT)
}

/// The state of the service's configuration.
///
/// # Errors
/// If no service is reachable, or it answers otherwise.
pub(in crate::cli) async fn state(service: &RunningService) -> anyhow::Result<ConfigStatus> {
    let Some((code, mut body)) = service.ask(Method::GET, "/readyz").await? else {
        bail!("the service has ended");
    };
    let status = serde_json::from_value(body["config"].take());
    status.with_context(|| format!("{} answers {code}", service.addr))
}

/// Waits until the update on trial is kept or rolled back.
///
/// # Errors
/// If the service is not reachable any more, or the trial takes longer than any may.
pub(in crate::cli) async fn ended(
    service: &RunningService,
    mut status: ConfigStatus,
) -> anyhow::Result<ConfigStatus> {
    let end = clock::now() + Duration::from_secs(TRIAL_SECONDS_MAX);
    while status.state.is_in_progress() {
        if clock::now() > end {
            bail!("the trial has not ended");
        }
        tokio::time::sleep(APPLY_POLL).await;
        status = state(service).await?;
    }
    Ok(status)
}

fn outcome(
    service: &RunningService,
    answer: Option<(StatusCode, Value)>,
    refusal: StatusCode,
) -> anyhow::Result<Result<ConfigStatus, Value>> {
    let Some((code, mut body)) = answer else {
        bail!("start the service, or see whether its HTTP interface is on (PILOTLIGHT_HTTP)");
    };
    if code == refusal {
        return Ok(Err(body["error"].take()));
    }
    let message = body["error"]["message"].as_str().unwrap_or_default();
    if code != StatusCode::OK {
        bail!("{} answers {code}: {message}", service.addr);
    }
    let status = serde_json::from_value(body);
    Ok(Ok(status.with_context(|| format!("{} is no service of this version", service.addr))?))
}

/// Applies an update to the running service.
///
/// # Errors
/// If the file can't be read, or no service is reachable.
pub(super) async fn apply(
    path: Option<&Path>,
    file: &Path,
    waits: bool,
    as_json: bool,
) -> anyhow::Result<u8> {
    let update = signed(file)?;
    let service = find(path)?;
    let status = match send(&service, "/config/apply", update).await? {
        Ok(status) if waits => {
            let version = status.offered.unwrap_or_default();
            if status.state == UpdateState::Verified && !as_json {
                print_error!("the models of version {version} are downloaded");
            } else if status.state == UpdateState::Trial && !as_json {
                print_error!("version {version} answers requests on trial");
            }
            ended(&service, status).await?
        }
        Ok(status) => status,
        Err(refusal) => return refused(&refusal, as_json),
    };
    print(&status, as_json)?;
    Ok(if status.state == UpdateState::RolledBack { WRONG } else { DONE })
}

/// Lets the service that uses the state folder return to the configuration before.
///
/// # Errors
/// If it is not reachable.
pub(super) async fn roll_back(
    path: Option<&Path>,
    folder: &Path,
    steps_down: bool,
    as_json: bool,
) -> anyhow::Result<u8> {
    let context = || format!("another process uses {}", folder.display());
    let service = find(path).with_context(context)?;
    match take_back(&service, steps_down).await.with_context(context)? {
        Ok(status) => {
            print(&status, as_json)?;
            Ok(DONE)
        }
        Err(refusal) => {
            refused(&refusal, as_json)?;
            Ok(BROKE)
        }
    }
}

fn refused(refusal: &Value, as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        print_line!("{refusal:#}");
    } else {
        let code = refusal["code"].as_str().unwrap_or_default();
        print_error!("{code}: {}", refusal["message"].as_str().unwrap_or_default());
    }
    Ok(WRONG)
}

fn print(status: &ConfigStatus, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        print_line!("{}", serde_json::to_string_pretty(status)?);
        return Ok(());
    }
    print_config(status)?;
    Ok(())
}
