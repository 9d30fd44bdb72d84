//! The reader of `pilotlight.policy`: default mode, spending caps, redaction, deadlines.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::bounds::deadline_ms_max;
use super::catalog::{AppPolicy, ModelsDownload};
use super::mistake::Scope;
use super::read_budget::{APP_NAME, RawBudget};
use super::shape::{Members, entries, read, read_or_default};
use crate::limits::{DEADLINE_MAX, REDACT_PATTERN_BYTES_MAX, REDACT_RULES_MAX};
use crate::model::context::Locality;
use crate::money::Caps;
use crate::redact::{KnownPattern, Redactor};
use crate::request::client::{INTERFACES, UNLISTED};
use crate::request::job::{Mode, Priority};
use crate::request::name::{is_app_name, is_name};

/// The policy, checked.
#[derive(Debug, Default)]
pub(super) struct CheckedPolicy {
    pub(super) default_mode: Mode,
    pub(super) furthest: Locality,
    pub(super) apps: BTreeMap<String, AppPolicy>,
    pub(super) caps: Caps,
    pub(super) redactor: Redactor,
    pub(super) deadlines: BTreeMap<Priority, Duration>,
    pub(super) models_download: ModelsDownload,
}

/// One redaction rule: the name of a known pattern, or a pattern of the configuration's own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(rename = "RedactionRule")]
#[serde(untagged, expecting = "must be a name, or an object with name and pattern")]
pub(super) enum RawRule {
    /// The name of a known pattern.
    Known(#[schemars(extend("enum" = KnownPattern::ALL.map(|(name, _)| name)))] String),
    /// A pattern of the configuration's own.
    Own(#[serde(deserialize_with = "of_object")] RawPattern),
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(rename = "RedactionPattern")]
#[serde(deny_unknown_fields)]
pub(super) struct RawPattern {
    /// What stands in the placeholder, as in `[BADGE_1]`: letters and digits.
    #[schemars(regex(pattern = "^[A-Za-z0-9]{1,16}$"))]
    name: String,
    /// A regular expression in the syntax of the crate `regex`, without look-around.
    #[schemars(length(min = 1, max = REDACT_PATTERN_BYTES_MAX))]
    pattern: String,
}

/// Serde takes an array of values for a struct, too.
fn of_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RawPattern, D::Error> {
    let map = Map::deserialize(deserializer)?;
    RawPattern::deserialize(Value::Object(map)).map_err(D::Error::custom)
}

/// What the policy states for one priority.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Class")]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawClass {
    /// The deadline of a request that states none, in milliseconds.
    #[schemars(range(min = 1, max = deadline_ms_max()))]
    deadline_ms: Option<u64>,
}

impl CheckedPolicy {
    pub(super) fn read(policy: Option<Value>, scope: &mut Scope<'_>) -> CheckedPolicy {
        let policy = policy.unwrap_or(Value::Object(Map::new()));
        let mut parts = Members::read(
            policy,
            &["default_mode", "reach", "apps", "budget", "redact", "classes", "models_download"],
            scope,
        );
        let default_mode =
            read_or_default(parts.take("default_mode"), &mut scope.at("default_mode"));
        // a policy that keeps requests on the device is no mere default
        let by_mode = match default_mode {
            Mode::LocalOnly => Locality::Device,
            Mode::PreferLocal | Mode::PreferCloud | Mode::CloudOnly => Locality::Cloud,
        };
        let stated: Option<Locality> = read_or_default(parts.take("reach"), &mut scope.at("reach"));
        let furthest = stated.unwrap_or(by_mode);
        if default_mode == Mode::CloudOnly && furthest == Locality::Device {
            scope
                .at("reach")
                .add("is device, but default_mode is cloud-only: no model could answer");
        }
        let apps = entries(parts.take("apps"), &mut scope.at("apps"));
        let apps = apps_of(apps, &mut scope.at("apps"));
        let classes = entries(parts.take("classes"), &mut scope.at("classes"));
        let deadlines = deadlines(classes, &mut scope.at("classes"));
        let budget: RawBudget = read_or_default(parts.take("budget"), &mut scope.at("budget"));
        let caps = budget.check(&mut scope.at("budget"));
        let rules: Vec<RawRule> = read_or_default(parts.take("redact"), &mut scope.at("redact"));
        let redactor = redactor(&rules, &mut scope.at("redact"));
        let models_download =
            read_or_default(parts.take("models_download"), &mut scope.at("models_download"));
        CheckedPolicy { default_mode, furthest, apps, caps, redactor, deadlines, models_download }
    }
}

/// The policies of single applications.
fn apps_of(entries: Vec<(String, Value)>, scope: &mut Scope<'_>) -> BTreeMap<String, AppPolicy> {
    let mut apps = BTreeMap::new();
    for (name, value) in entries {
        let mut scope = scope.at(&name);
        if !is_app_name(&name) && name != UNLISTED {
            scope.add(APP_NAME);
        }
        let Some(app) = read::<AppPolicy>(value, &mut scope) else { continue };
        if app.trust_group.as_ref().is_some_and(|group| !is_name(group)) {
            scope.at("trust_group").add("must be [A-Za-z0-9_-]{1,64}");
        }
        if app.http_token.is_some() && (name == UNLISTED || INTERFACES.contains(&name.as_str())) {
            scope
                .at("http_token")
                .add(format!("a token belongs to one application of its own; {name:?} is none"));
        }
        apps.insert(name, app);
    }
    apps
}

pub(super) fn is_deadline(ms: u64) -> bool {
    ms >= 1 && Duration::from_millis(ms) <= DEADLINE_MAX
}

/// The message for a deadline out of range.
pub(super) fn deadline_range() -> String {
    format!("must be 1 to {} ms", DEADLINE_MAX.as_millis())
}

/// The deadlines by priority.
fn deadlines(classes: Vec<(String, Value)>, scope: &mut Scope<'_>) -> BTreeMap<Priority, Duration> {
    let mut deadlines = BTreeMap::new();
    for (name, class) in classes {
        let mut scope = scope.at(&name);
        let RawClass { deadline_ms } = read_or_default(Some(class), &mut scope);
        let priority = match name.as_str() {
            "interactive" => Priority::Interactive,
            "normal" => Priority::Normal,
            "batch" => Priority::Batch,
            _ => {
                scope.add("must be interactive, normal or batch");
                continue;
            }
        };
        match deadline_ms {
            Some(ms) if is_deadline(ms) => {
                deadlines.insert(priority, Duration::from_millis(ms));
            }
            Some(_) => scope.at("deadline_ms").add(deadline_range()),
            None => {}
        }
    }
    deadlines
}

/// The redactor with these rules.
fn redactor(rules: &[RawRule], scope: &mut Scope<'_>) -> Redactor {
    let mut redactor = Redactor::default();
    if rules.len() > REDACT_RULES_MAX {
        scope.add(format!("must be at most {REDACT_RULES_MAX} rules"));
        return redactor;
    }
    for (n, rule) in rules.iter().enumerate() {
        let added = match rule {
            RawRule::Own(RawPattern { name, pattern }) => redactor.add(name, pattern),
            RawRule::Known(name) => match KnownPattern::ALL.iter().find(|(known, _)| known == name)
            {
                Some((_, known)) => redactor.add_known(*known),
                None => {
                    let known = KnownPattern::ALL.map(|(name, _)| name).join(", ");
                    Err(format!(
                        "{name:?} is not one of {known}; an own pattern needs the keys name and \
                         pattern"
                    ))
                }
            },
        };
        if let Err(message) = added {
            scope.item(n).add(message);
        }
    }
    redactor
}
