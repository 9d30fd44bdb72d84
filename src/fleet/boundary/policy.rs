//! The policy of a remote configuration against the local one: reach, modes, applications, money and
//! redaction.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::catalog::catalog::{AppPolicy, Catalog};
use crate::catalog::mistake::{Mistakes, Scope};
use crate::fleet::trust::Trust;
use crate::model::context::Locality;
use crate::money::{Limits, SPANS, Span};
use crate::request::client::UNLISTED;
use crate::request::job::Mode;

/// Tokens of applications are those of the device.
pub(super) fn check_text(remote: &Value, mistakes: &mut Mistakes) {
    let mut ours = mistakes.at("pilotlight");
    let mut scope = ours.at("policy");
    let mut scope = scope.at("apps");
    let apps = remote["pilotlight"]["policy"]["apps"].as_object();
    for (name, app) in apps.into_iter().flatten() {
        if app.get("http_token").is_some() {
            let message = "is always that of the device's own mcp.json; remove it";
            scope.at(name).at("http_token").add(message);
        }
    }
}

pub(super) fn check(local: &Catalog, effective: &Catalog, trust: &Trust, mistakes: &mut Mistakes) {
    let mut ours = mistakes.at("pilotlight");
    check_tasks(local, effective, &mut ours.at("tasks"));
    let mut scope = ours.at("policy");
    let scope = &mut scope;
    check_locality(local, effective, trust, scope);
    check_apps(local, effective, scope);
    check_caps(local, effective, trust, &mut scope.at("budget"));
    check_downloads(local, effective, &mut scope.at("models_download"));
    for rule in local.redactor.lacking_in(&effective.redactor) {
        let message = format!(
            "lacks the rule {rule} of the device's own mcp.json; add it: a remote configuration may \
             add rules and not drop them"
        );
        scope.at("redact").add(message);
    }
}

fn check_locality(local: &Catalog, effective: &Catalog, trust: &Trust, scope: &mut Scope<'_>) {
    let most = trust.furthest.map_or(local.furthest, |ceiling| ceiling.min(local.furthest));
    if effective.furthest > most {
        let most = most.name();
        scope.at("reach").add(format!("must be {most} at most, as on the device itself"));
    }
    if local.default_mode == Mode::LocalOnly && effective.default_mode != Mode::LocalOnly {
        scope.at("default_mode").add("must be local-only, as on the device itself");
    }
}

/// A download costs what the network costs.
fn check_downloads(local: &Catalog, effective: &Catalog, scope: &mut Scope<'_>) {
    let (own, other) = (local.models_download, effective.models_download);
    for (key, is_dropped) in [
        ("only_cool", own.only_cool && !other.only_cool),
        ("only_unmetered", own.only_unmetered && !other.only_unmetered),
    ] {
        if is_dropped {
            scope.at(key).add("must be true, as on the device itself");
        }
    }
}

/// A task of the local file keeps its reach.
fn check_tasks(local: &Catalog, effective: &Catalog, scope: &mut Scope<'_>) {
    for (name, task) in &local.tasks {
        let (Some(most), Some(other)) = (task.furthest, effective.tasks.get(name)) else {
            continue;
        };
        if other.furthest.is_none_or(|furthest| furthest > most) {
            let most = most.name();
            let message = format!("must be {most} at most, as on the device itself");
            scope.at(name).at("reach").add(message);
        }
    }
}

/// All names that a policy or budget of either configuration lists, and all others together.
fn listed<'c>(local: &'c Catalog, effective: &'c Catalog) -> BTreeSet<&'c str> {
    let of = |catalog: &'c Catalog| catalog.apps.keys().chain(catalog.caps.apps.keys());
    of(local).chain(of(effective)).map(String::as_str).chain([UNLISTED]).collect()
}

/// The name under which a catalog counts an application.
fn principal<'n>(catalog: &Catalog, name: &'n str) -> &'n str {
    let is_listed = catalog.apps.contains_key(name) || catalog.caps.apps.contains_key(name);
    if is_listed { name } else { UNLISTED }
}

fn app_policy<'c>(catalog: &'c Catalog, name: &str) -> &'c AppPolicy {
    catalog.apps.get(principal(catalog, name)).unwrap_or(&AppPolicy::DEFAULT)
}

fn check_apps(local: &Catalog, effective: &Catalog, scope: &mut Scope<'_>) {
    let mut scope = scope.at("apps");
    for name in listed(local, effective) {
        let (own, other) = (app_policy(local, name), app_policy(effective, name));
        let mut scope = scope.at(name);
        if own.refuse && !other.refuse {
            scope.at("refuse").add("must be true, as on the device itself");
        }
        // the most urgent class is the first
        if other.most_urgent < own.most_urgent {
            scope.at("class").add("must not be more urgent than on the device itself");
        }
        let furthest = |app: &AppPolicy| app.furthest.unwrap_or(Locality::Cloud);
        if furthest(other) > furthest(own) {
            let most = furthest(own).name();
            scope.at("reach").add(format!("must be {most} at most, as on the device itself"));
        }
        if other.trust_group.is_some() && other.trust_group != own.trust_group {
            let message = "joins the application to a group that it has not on the device itself";
            scope.at("trust_group").add(message);
        }
    }
}

fn key_of(span: Span) -> &'static str {
    match span {
        Span::Hour => "usd_per_hour",
        Span::Day => "usd_per_day",
        Span::Month => "usd_per_month",
    }
}

/// No cap is higher than the local one and the ceiling, and none that they have is missing.
fn check_caps(local: &Catalog, effective: &Catalog, trust: &Trust, scope: &mut Scope<'_>) {
    within(&effective.caps.device, &local.caps.device, "the device's own mcp.json", scope);
    within(&effective.caps.device, &trust.caps, "the ceiling of the trust policy", scope);
    let of = |catalog: &Catalog, name: &str| *catalog.caps.of(principal(catalog, name));
    for name in listed(local, effective) {
        let (own, other) = (of(local, name), of(effective, name));
        let mut scope = scope.at("apps");
        within(&other, &own, "the device's own mcp.json", &mut scope.at(name));
    }
}

fn within(caps: &Limits, most: &Limits, whose: &str, scope: &mut Scope<'_>) {
    for span in SPANS {
        let Some(most) = most.of(span) else { continue };
        if caps.of(span).is_none_or(|cap| cap > most) {
            let message = format!("must be stated and {} at most, by {whose}", most.dollars());
            scope.at(key_of(span)).add(message);
        }
    }
}
