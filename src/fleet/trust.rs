//! The trust policy of a device: which keys may change its configuration, and how far.
//!
//! The file is local, belongs to root or to the service's user, and no update can change it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::digest::HexDigest;
use super::signature::UpdateKey;
use super::strict;
use super::target::TargetKind;
use super::update::TrialBounds;
use crate::catalog::mistake::{Mistake, Mistakes, Scope};
use crate::catalog::shape::{Members, entries, read_or_default, require};
use crate::catalog::{file_text, shape};
use crate::limits::fleet::{
    REMOTE_CONFIG_DEPTH_MAX, TRIAL_JOBS_MAX, TRIAL_SECONDS_MAX, TRUST_ENTRIES_MAX, VALID_DAYS_MAX,
};
use crate::model::context::Locality;
use crate::money::{Limits, Usd};
use crate::request::name::is_name;

/// The checked trust policy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trust {
    /// The fleet that the device belongs to.
    pub fleet: Option<String>,
    /// The keys by name.
    pub keys: BTreeMap<String, TrustedKey>,
    /// The commands that a remote configuration may name.
    pub commands: BTreeMap<String, AllowedCommand>,
    /// The furthest locality that a remote configuration may permit.
    pub furthest: Option<Locality>,
    /// The highest spending caps of the whole device that a remote configuration may state.
    pub caps: Limits,
    /// Origins of neighbours: hosts of the local network that a remote configuration may name.
    pub neighbours: BTreeSet<String>,
    /// Variables and credentials that a remote configuration may use, with the origins that may get
    /// them.
    pub secrets: BTreeMap<String, BTreeSet<String>>,
    /// How long a configuration is tried with requests of applications.
    pub trial: TrialBounds,
}

/// A key and what it may do.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustedKey {
    /// The public key.
    pub key: UpdateKey,
    /// The kinds of targets that it may sign for.
    pub targets: BTreeSet<TargetKind>,
    /// What it may change.
    pub operations: BTreeSet<Operation>,
    /// The longest time from issue to expiry.
    pub longest: Duration,
}

/// What an update changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The part `models`.
    Models,
    /// All other parts.
    Config,
}

impl Operation {
    /// The name in the trust policy.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Models => "models",
            Operation::Config => "config",
        }
    }
}

/// The program that runs, as the path of an [`AllowedCommand`].
pub const OWN_PROGRAM: &str = "pilotlight";

/// A program with its arguments, which a remote configuration names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowedCommand {
    /// The absolute path of the program, or [`OWN_PROGRAM`].
    pub path: String,
    /// The digest of the program's file; none of this program, which changes with each update of the system.
    pub sha256: Option<HexDigest>,
    /// All arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

/// The mirror of one key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrustedKey {
    public_key: Option<String>,
    targets: Option<BTreeSet<TargetKind>>,
    operations: Option<BTreeSet<Operation>>,
    longest_days: Option<u64>,
}

/// The mirror of the ceiling.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCeiling {
    #[serde(rename = "reach")]
    furthest: Option<Locality>,
    usd_per_hour: Option<f64>,
    usd_per_day: Option<f64>,
    usd_per_month: Option<f64>,
}

const PARTS: [&str; 7] = ["fleet", "keys", "commands", "ceiling", "neighbours", "secrets", "trial"];
const KEY_PARTS: [&str; 4] = ["public_key", "targets", "operations", "longest_days"];
/// The highest cap of a ceiling, in US dollars: that of `policy.budget`.
const CAP_MAX: f64 = 1_000_000.0;

impl Trust {
    /// Reads the content of the file.
    ///
    /// # Errors
    /// All mistakes, each with its path.
    pub fn read(bytes: &[u8]) -> Result<Trust, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        let value = file_text::decode(bytes);
        let value = value.and_then(|text| strict::parse(text, REMOTE_CONFIG_DEPTH_MAX));
        let trust = match value {
            Ok(value) => Trust::read_parts(value, &mut mistakes.at("")),
            Err(message) => {
                mistakes.at("trust policy").add(message);
                Trust::default()
            }
        };
        let mistakes = mistakes.into_vec();
        if mistakes.is_empty() { Ok(trust) } else { Err(mistakes) }
    }

    fn read_parts(value: Value, scope: &mut Scope<'_>) -> Trust {
        let mut parts = Members::read(value, &PARTS, scope);
        let fleet: Option<String> = read_or_default(parts.take("fleet"), &mut scope.at("fleet"));
        if fleet.as_ref().is_some_and(|name| !is_name(name)) {
            scope.at("fleet").add("must be [A-Za-z0-9_-]{1,64}");
        }
        let keys = keys(listed(parts.take("keys"), &mut scope.at("keys")), &mut scope.at("keys"));
        let commands = listed(parts.take("commands"), &mut scope.at("commands"));
        let commands = commands_of(commands, &mut scope.at("commands"));
        let ceiling: RawCeiling = read_or_default(parts.take("ceiling"), &mut scope.at("ceiling"));
        let caps = ceiling.caps(&mut scope.at("ceiling"));
        let neighbours: Vec<String> =
            read_or_default(parts.take("neighbours"), &mut scope.at("neighbours"));
        let neighbours = origins(&neighbours, &mut scope.at("neighbours"));
        let secrets = listed(parts.take("secrets"), &mut scope.at("secrets"));
        let secrets = secrets.into_iter().map(|(name, urls)| {
            let mut scope = scope.at("secrets");
            let mut scope = scope.at(&name);
            let urls: Vec<String> = read_or_default(Some(urls), &mut scope);
            let all = origins(&urls, &mut scope);
            (name, all)
        });
        let secrets = secrets.collect();
        let trial: RawTrial = read_or_default(parts.take("trial"), &mut scope.at("trial"));
        let trial = trial.check(&mut scope.at("trial"));
        let furthest = ceiling.furthest;
        Trust { fleet, keys, commands, furthest, caps, neighbours, secrets, trial }
    }
}

/// The part `trial`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTrial {
    good_jobs: Option<u32>,
    seconds: Option<u64>,
}

impl RawTrial {
    fn check(&self, scope: &mut Scope<'_>) -> TrialBounds {
        let default = TrialBounds::default();
        let good_jobs = self.good_jobs.unwrap_or(default.good_jobs);
        let seconds = self.seconds.unwrap_or(default.time.as_secs());
        if !(1..=TRIAL_JOBS_MAX).contains(&good_jobs) {
            scope.at("good_jobs").add(format!("must be 1 to {TRIAL_JOBS_MAX}"));
        }
        if !(1..=TRIAL_SECONDS_MAX).contains(&seconds) {
            scope.at("seconds").add(format!("must be 1 to {TRIAL_SECONDS_MAX}"));
        }
        TrialBounds { good_jobs, time: Duration::from_secs(seconds) }
    }
}

/// The entries of a part, not too many of them.
fn listed(value: Option<Value>, scope: &mut Scope<'_>) -> Vec<(String, Value)> {
    let value = value.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let all = entries(Some(value), scope);
    if all.len() > TRUST_ENTRIES_MAX {
        scope.add(format!("has {} entries, at most {TRUST_ENTRIES_MAX}", all.len()));
    }
    all
}

fn keys(all: Vec<(String, Value)>, scope: &mut Scope<'_>) -> BTreeMap<String, TrustedKey> {
    let mut found: BTreeMap<String, TrustedKey> = BTreeMap::new();
    for (name, value) in all {
        let mut scope = scope.at(&name);
        if !is_name(&name) {
            scope.add("the name of a key must be [A-Za-z0-9_-]{1,64}");
        }
        require(&value, &KEY_PARTS, &mut scope);
        let raw = shape::read::<RawTrustedKey>(value, &mut scope);
        let Some(key) = raw.and_then(|raw| raw.check(&mut scope)) else { continue };
        if let Some((other, _)) = found.iter().find(|(_, other)| other.key.id == key.key.id) {
            scope.at("public_key").add(format!("has the identifier of the key {other}"));
        }
        found.insert(name, key);
    }
    found
}

impl RawTrustedKey {
    /// The key; none if a field is missing or wrong, which is a mistake then.
    fn check(self, scope: &mut Scope<'_>) -> Option<TrustedKey> {
        let key = match UpdateKey::parse(&self.public_key?) {
            Ok(key) => Some(key),
            Err(message) => {
                scope.at("public_key").add(message);
                None
            }
        };
        let (targets, operations, days) = (self.targets?, self.operations?, self.longest_days?);
        if !(1..=VALID_DAYS_MAX).contains(&days) {
            scope.at("longest_days").add(format!("must be 1 to {VALID_DAYS_MAX}"));
        }
        for (part, is_empty) in
            [("targets", targets.is_empty()), ("operations", operations.is_empty())]
        {
            if is_empty {
                scope.at(part).add("is empty: the key could do nothing; remove the key");
            }
        }
        let longest = Duration::from_secs(days.min(VALID_DAYS_MAX) * 24 * 3600);
        Some(TrustedKey { key: key?, targets, operations, longest })
    }
}

fn commands_of(
    all: Vec<(String, Value)>,
    scope: &mut Scope<'_>,
) -> BTreeMap<String, AllowedCommand> {
    let mut found = BTreeMap::new();
    for (name, value) in all {
        let mut scope = scope.at(&name);
        if !is_name(&name) {
            scope.add("the name of a command must be [A-Za-z0-9_-]{1,64}");
        }
        let Some(command) = shape::read::<AllowedCommand>(value, &mut scope) else { continue };
        let parts = command.path.split('/').skip(1);
        let is_plain = parts.into_iter().all(|part| !matches!(part, "" | "." | ".."));
        match (command.path.as_str(), &command.sha256) {
            (OWN_PROGRAM, None) => {}
            (OWN_PROGRAM, Some(_)) => {
                scope
                    .at("sha256")
                    .add("must not be there: \"pilotlight\" is the program that runs");
            }
            (path, _) if !path.starts_with('/') || !is_plain => scope
                .at("path")
                .add("must be an absolute path without . and .., or \"pilotlight\", this program"),
            (_, None) => scope.add("sha256 is missing: the digest of the program"),
            (_, Some(_)) => {}
        }
        found.insert(name, command);
    }
    found
}

impl RawCeiling {
    fn caps(&self, scope: &mut Scope<'_>) -> Limits {
        let mut cap = |name: &str, usd: Option<f64>| {
            let usd = usd?;
            if !(0.0..=CAP_MAX).contains(&usd) {
                scope.at(name).add(format!("must be US dollars, 0 to {CAP_MAX}"));
            }
            Some(Usd::at_least(usd))
        };
        Limits {
            hour: cap("usd_per_hour", self.usd_per_hour),
            day: cap("usd_per_day", self.usd_per_day),
            month: cap("usd_per_month", self.usd_per_month),
        }
    }
}

/// The origins of these URLs.
fn origins(urls: &[String], scope: &mut Scope<'_>) -> BTreeSet<String> {
    if urls.len() > TRUST_ENTRIES_MAX {
        scope.add(format!("has {} entries, at most {TRUST_ENTRIES_MAX}", urls.len()));
    }
    let mut found = BTreeSet::new();
    for (at, text) in urls.iter().enumerate() {
        match origin(text) {
            Some((origin, rest)) if rest == "/" => {
                found.insert(origin);
            }
            Some(_) | None => {
                let message =
                    "must be the scheme, host and port of a URL, such as https://10.0.0.7:8080";
                scope.item(at).add(message);
            }
        }
    }
    found
}

/// The origin of an `http` or `https` URL (RFC 6454), and what follows its host.
pub(super) fn origin(text: &str) -> Option<(String, String)> {
    let url = Url::parse(text).ok()?;
    let has_login = !url.username().is_empty() || url.password().is_some();
    if !matches!(url.scheme(), "http" | "https") || has_login {
        return None;
    }
    let rest = url[url::Position::BeforePath..].to_owned();
    Some((url.origin().ascii_serialization(), rest))
}
