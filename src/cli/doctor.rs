//! `doctor`: checks the machine, its sensors, the configuration, the model files and the broker.

#[cfg(feature = "engine")]
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{DONE, NOT_READY};
use crate::catalog::server::Endpoint;
use crate::config;
use crate::config::{BrokerLogin, Config};
use crate::device::{Sensors, memory};
use crate::limits::SAMPLE_EVERY;
use crate::money::account::{ClockState, is_set};
use crate::store::{broker_password, ledger};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FindingLevel {
    /// As it should be.
    Ok,
    /// Something optional is missing.
    Note,
    /// Something required is missing or wrong.
    Warn,
}

impl FindingLevel {
    fn of(is_good: bool) -> FindingLevel {
        if is_good { FindingLevel::Ok } else { FindingLevel::Warn }
    }

    /// The word before a finding, in a column of four.
    fn name(self) -> &'static str {
        match self {
            FindingLevel::Ok => "ok  ",
            FindingLevel::Note => "note",
            FindingLevel::Warn => "warn",
        }
    }
}

/// Result of one check.
struct DoctorFinding {
    what: &'static str,
    level: FindingLevel,
    detail: String,
}

pub(super) async fn run(path: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let mut findings = vec![machine(), memory()];
    #[cfg(feature = "cpu-variants")]
    findings.push(cpu_variant());
    let config = config::variables().and_then(|variables| config::load(path, &variables));
    match config {
        Ok(config) => {
            findings.extend(sensors_of(&config));
            findings.extend(configuration(&config));
            findings.push(clock(&config));
            findings.extend(models(&config));
            #[cfg(feature = "engine")]
            findings.push(sandbox());
            findings.push(broker(&config).await);
        }
        Err(mistakes) => findings.extend(mistakes.iter().map(|mistake| DoctorFinding {
            what: "configuration",
            level: FindingLevel::Warn,
            detail: mistake.to_string(),
        })),
    }
    let good = findings.iter().all(|finding| finding.level != FindingLevel::Warn);
    if json {
        let all: Vec<_> = findings
            .iter()
            .map(|f| json!({"what": f.what, "good": f.level != FindingLevel::Warn, "said": f.detail}))
            .collect();
        print_line!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for DoctorFinding { what, level, detail } in &findings {
            print_line!("{} {what}: {detail}", level.name());
        }
    }
    Ok(if good { DONE } else { NOT_READY })
}

/// Prints samples of all sensors as JSON lines, one per second.
pub(super) async fn samples(path: Option<&Path>, count: u32) -> anyhow::Result<u8> {
    let config = config::variables().and_then(|variables| config::load(path, &variables));
    let mut sensors = match &config {
        Ok(config) => Sensors::new(&config.sensors, config.written()),
        Err(_) => Sensors::new(Path::new("/"), Path::new(".")),
    };
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    for _ in 0..count {
        ticks.tick().await;
        print_line!("{}", serde_json::to_string(&sensors.read(None))?);
    }
    Ok(DONE)
}

/// The sensors that the device monitor reads. A missing sensor is a note, not a fault.
fn sensors_of(config: &Config) -> Vec<DoctorFinding> {
    let limits = config.catalog.device_limits.zones.clone();
    let sensors = Sensors::new(&config.sensors, config.written()).with_limits(limits);
    let found = sensors.findings().into_iter();
    found
        .map(|finding| DoctorFinding {
            what: finding.what,
            level: if finding.found { FindingLevel::Ok } else { FindingLevel::Note },
            detail: finding.said,
        })
        .collect()
}

fn machine() -> DoctorFinding {
    let os = sysinfo::System::long_os_version().unwrap_or_else(|_| "unknown system".to_owned());
    let kernel = sysinfo::System::kernel_version().unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let detail =
        format!("{os}, kernel {kernel}, {}, {processors} processor(s)", std::env::consts::ARCH);
    DoctorFinding { what: "machine", level: FindingLevel::Ok, detail }
}

/// The variant of llama.cpp's code that engines use on this processor.
#[cfg(feature = "cpu-variants")]
fn cpu_variant() -> DoctorFinding {
    let variant = crate::engines::gguf::cpu_variant();
    let detail = variant.map_or("no library of llama.cpp runs on this processor", |name| name);
    let level = FindingLevel::of(variant.is_some());
    DoctorFinding { what: "processor variant", level, detail: detail.to_owned() }
}

fn memory() -> DoctorFinding {
    match memory::read() {
        Some(memory) => DoctorFinding {
            what: "memory",
            level: FindingLevel::of(memory.available > 256 << 20),
            detail: format!("{} of {} MiB available", memory.available >> 20, memory.total >> 20),
        },
        None => DoctorFinding {
            what: "memory",
            level: FindingLevel::Warn,
            detail: "cannot be read".to_owned(),
        },
    }
}

fn configuration(config: &Config) -> Vec<DoctorFinding> {
    let shown = config.path.display();
    let what = "configuration";
    if config.warnings.is_empty() {
        let detail = format!("{shown} has no mistakes");
        return vec![DoctorFinding { what, level: FindingLevel::Ok, detail }];
    }
    let warned = config.warnings.iter().map(|warning| DoctorFinding {
        what,
        level: FindingLevel::Warn,
        detail: format!("{shown}: {warning}"),
    });
    warned.collect()
}

/// Checks that the clock is set and agrees with the ledger of spending.
fn clock(config: &Config) -> DoctorFinding {
    let what = "clock";
    if !is_set(ledger::hour()) {
        let detail = "the clock is not set: budgets count by the ledger until it is; set the time, or wait \
                      for a time service";
        return DoctorFinding { what, level: FindingLevel::Warn, detail: detail.to_owned() };
    }
    let folder = config.state.as_deref();
    let account = folder.and_then(|folder| ledger::account(folder, ledger::hour()).ok().flatten());
    let (level, detail) = match account.map(|account| account.clock_state()) {
        None => (FindingLevel::Ok, "set; there is no ledger to compare it with".to_owned()),
        Some(state @ ClockState::Agrees) => (FindingLevel::Ok, state.to_string()),
        Some(state @ ClockState::SetBack(_)) => (FindingLevel::Note, state.to_string()),
        Some(state @ ClockState::Behind(_)) => (FindingLevel::Warn, state.to_string()),
    };
    DoctorFinding { what, level, detail }
}

/// Checks that the GGUF files of the engines exist and fit into the available memory.
fn models(config: &Config) -> Vec<DoctorFinding> {
    let available = memory::read().map_or(u64::MAX, |memory| memory.available);
    let file_of = |link: &Endpoint| match link {
        Endpoint::Child { args, .. } => {
            args.iter().skip_while(|arg| *arg != "--gguf").nth(1).map(std::path::PathBuf::from)
        }
        Endpoint::Http { .. } | Endpoint::Mqtt { .. } | Endpoint::Provider(_) => None,
    };
    let checked = |path: std::path::PathBuf| match std::fs::metadata(&path) {
        Ok(meta) if meta.len() < available => {
            let detail = format!("{}, {} MiB", path.display(), meta.len() >> 20);
            DoctorFinding { what: "model", level: FindingLevel::Ok, detail }
        }
        Ok(meta) => {
            let detail = format!(
                "{} has {} MiB and does not fit into the available memory",
                path.display(),
                meta.len() >> 20
            );
            DoctorFinding { what: "model", level: FindingLevel::Warn, detail }
        }
        Err(error) => {
            let mut detail = format!("{} cannot be read: {error}", path.display());
            if config.models.as_ref().is_some_and(|store| path.starts_with(store)) {
                detail += "; run `pilotlight model pull`";
            }
            DoctorFinding { what: "model", level: FindingLevel::Warn, detail }
        }
    };
    config.catalog.servers.iter().filter_map(|s| file_of(&s.endpoint)).map(checked).collect()
}

/// How clients log in at the embedded broker.
fn login(config: &Config) -> String {
    let (broker, user) = (config.broker.map(|broker| broker.login), broker_password::USER);
    match (broker, config.state.as_deref().map(broker_password::path)) {
        (Some(BrokerLogin::Anonymous), _) => "it asks for no password".to_owned(),
        (_, Some(file)) if file.exists() => {
            format!("user {user}, password in {}", file.display())
        }
        (_, Some(file)) => {
            format!("user {user}; the password is configured, or generated in {}", file.display())
        }
        (_, None) => "its password is configured, or known to the service alone".to_owned(),
    }
}

/// Starts an engine process that tries what its sandbox denies. What this kernel can't deny is a note.
#[cfg(feature = "engine")]
fn sandbox() -> DoctorFinding {
    let what = "engine sandbox";
    let tried = std::env::current_exe().and_then(|program| {
        std::process::Command::new(program)
            .args(["engine", "--gguf", "none", "--probe-sandbox"])
            .env("PILOTLIGHT_LOG", "error")
            .output()
    });
    let denied: BTreeMap<String, bool> = match tried {
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    };
    let named = |is_denied: bool| {
        let names = denied.iter().filter(|(_, denied)| **denied == is_denied);
        names.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (denied, allowed) = (named(true), named(false));
    let (level, detail) = match (denied.is_empty(), allowed.is_empty()) {
        (true, _) => (FindingLevel::Note, "off, or not supported by this kernel".to_owned()),
        (false, true) => (FindingLevel::Ok, format!("denies {denied}")),
        (false, false) => {
            let detail = format!("denies {denied}; this kernel can't deny {allowed}");
            (FindingLevel::Note, detail)
        }
    };
    DoctorFinding { what, level, detail }
}

async fn broker(config: &Config) -> DoctorFinding {
    let what = "broker";
    let Some(mqtt) = &config.mqtt else {
        return DoctorFinding { what, level: FindingLevel::Ok, detail: "off".to_owned() };
    };
    let place = (mqtt.host.as_str(), mqtt.port);
    let connect = tokio::net::TcpStream::connect(place);
    let reached = matches!(tokio::time::timeout(Duration::from_secs(3), connect).await, Ok(Ok(_)));
    let detail = match (reached, config.broker.is_some()) {
        (true, false) => {
            format!("{}:{} accepts connections (login not tested)", mqtt.host, mqtt.port)
        }
        (true, true) => format!("embedded broker, running; {}", login(config)),
        (false, true) => {
            format!("embedded broker; reachable while the service runs; {}", login(config))
        }
        (false, false) => format!("{}:{} does not answer", mqtt.host, mqtt.port),
    };
    DoctorFinding { what, level: FindingLevel::of(reached || config.broker.is_some()), detail }
}
