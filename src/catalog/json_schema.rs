//! The JSON Schema of `mcp.json`, in draft 2020-12: for editors, and for checks outside of this program.
//!
//! The types that the reader deserializes state their own schemas. What the reader takes apart by hand is
//! mirrored here by `McpJson`, `OwnPart` and `PolicyPart`: a new part of the file gets a field in one
//! of these, and a derived schema of its type. The documentation of a field is its description.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::catalog::{AppPolicy, Device, DeviceLimits, HttpPart, ModelsDownload, MqttPart};
use super::model::NAME_PATTERN as MODEL_NAME_PATTERN;
use super::read_budget::RawBudget;
use super::read_models::RawModel;
use super::read_policy::{RawClass, RawRule};
use super::read_provider::RawProvider;
use super::read_server::{RawServer, RawServerOptions};
use super::task::Task;
use crate::limits::models::MODELS_MAX;
use crate::limits::{REDACT_RULES_MAX, SERVERS_MAX, TASKS_MAX};
use crate::model::context::Locality;
use crate::request::job::Mode;
use crate::request::name::{APP_NAME_PATTERN, NAME_PATTERN};

/// A text whose value is not known before its variables are expanded; `$$` is a dollar sign.
const VARIABLE_PATTERN: &str = r"\$[{$]";

/// The configuration of Pilotlight. `${VAR}`, `${VAR:-default}` and `${env:VAR}` in a text are replaced from
/// the environment and `.env`, and `$$` is a dollar sign; numbers, `true`, `false` and keys are literal.
#[derive(JsonSchema)]
#[schemars(title = "mcp.json of Pilotlight", deny_unknown_fields)]
#[schemars(extend("anyOf" = sources(), "not" = {"required": ["mcpServers", "servers"]}))]
#[expect(dead_code, reason = "only its schema counts")]
struct McpJson {
    /// The URL or path of this schema, for editors.
    #[schemars(rename = "$schema", with = "String", default)]
    schema: Option<String>,
    /// The model servers by name, in the order of preference, in the form that MCP clients share.
    #[schemars(rename = "mcpServers", default, extend("maxProperties" = SERVERS_MAX))]
    mcp_servers: BTreeMap<String, RawServer>,
    /// Another name of `mcpServers`, which some MCP clients have.
    #[schemars(default, extend("maxProperties" = SERVERS_MAX))]
    servers: BTreeMap<String, RawServer>,
    /// All that other MCP clients do not know.
    #[schemars(default)]
    pilotlight: OwnPart,
}

/// A file has servers or providers.
fn sources() -> Value {
    let some = |key: &str| json!({"required": [key], "properties": {key: {"minProperties": 1}}});
    let ours = json!({"required": ["pilotlight"], "properties": {"pilotlight": some("providers")}});
    json!([some("mcpServers"), some("servers"), ours])
}

/// The part `pilotlight`.
#[derive(Default, JsonSchema)]
#[schemars(rename = "Pilotlight", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema counts")]
struct OwnPart {
    /// The version of this file, which its author counts.
    #[schemars(default)]
    version: u64,
    /// The names of the device.
    #[schemars(default)]
    device: Device,
    /// The thresholds of heat, memory and disk space; an absent one is derived from the board.
    #[schemars(default)]
    device_limits: DeviceLimits,
    /// The connection to the MQTT broker.
    #[schemars(default)]
    mqtt: MqttPart,
    /// The HTTP interface.
    #[schemars(default)]
    http: HttpPart,
    /// What this program knows of the entries of `mcpServers`, by their names.
    #[schemars(default)]
    servers: BTreeMap<String, RawServerOptions>,
    /// Cloud models in their providers' own protocols, by name.
    #[schemars(default, extend("maxProperties" = SERVERS_MAX))]
    providers: BTreeMap<String, RawProvider>,
    /// Models as artefacts, by the name of the file or folder in the model store.
    #[schemars(default, extend("maxProperties" = MODELS_MAX, "propertyNames" = {"pattern": MODEL_NAME_PATTERN}))]
    models: BTreeMap<String, RawModel>,
    /// Prompt templates by name.
    #[schemars(default, extend("maxProperties" = TASKS_MAX, "propertyNames" = {"pattern": NAME_PATTERN}))]
    tasks: BTreeMap<String, Task>,
    /// Where requests may be answered, what may be spent, and what is redacted.
    #[schemars(default)]
    policy: PolicyPart,
}

/// The part `policy`.
#[derive(Default, JsonSchema)]
#[schemars(rename = "Policy", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema counts")]
struct PolicyPart {
    /// The privacy mode of a request that states none.
    #[schemars(default)]
    default_mode: Mode,
    /// The furthest locality that may read a request, whatever it states: `cloud`, or `device` with the
    /// default mode `local-only`, if not stated.
    #[schemars(rename = "reach")]
    locality: Option<Locality>,
    /// The policies of single applications by name; `+` stands for all that are not listed.
    #[schemars(default, extend("propertyNames" = {"pattern": APP_NAME_PATTERN}))]
    apps: BTreeMap<String, AppPolicy>,
    /// The spending caps.
    #[schemars(default)]
    budget: RawBudget,
    /// What is replaced by placeholders before a prompt leaves the device.
    #[schemars(default, length(max = REDACT_RULES_MAX))]
    redact: Vec<RawRule>,
    /// The deadlines by priority.
    #[schemars(default)]
    classes: Classes,
    /// When models may be downloaded.
    #[schemars(default)]
    models_download: ModelsDownload,
}

/// What the policy states for each priority.
#[derive(Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema counts")]
struct Classes {
    /// A person waits for the answer.
    #[schemars(default, extend("default" = {"deadline_ms": 30000}))]
    interactive: RawClass,
    /// The priority of a request that states none.
    #[schemars(default, extend("default" = {"deadline_ms": 120_000}))]
    normal: RawClass,
    /// Any time before the deadline.
    #[schemars(default, extend("default" = {"deadline_ms": 900_000}))]
    batch: RawClass,
}

/// The JSON Schema of `mcp.json`.
pub fn value() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<McpJson>().to_value();
    finish(&mut schema);
    schema
}

/// The text of the JSON Schema, as `pilotlight schema` prints it.
pub fn text() -> String {
    format!("{:#}", value())
}

/// Finishes a schema and those within it: descriptions of one line, bounds of integers, and variables in
/// every text. Names of members are left out, because variables are not expanded there.
fn finish(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    if map.get("default").is_some_and(Value::is_null) {
        map.shift_remove("default");
    }
    if let Some(Value::String(text)) = map.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    // formats of numbers are none of JSON Schema, and editors warn of them
    if map.shift_remove("format") == Some(json!("uint32")) {
        map.entry("maximum").or_insert(json!(u32::MAX));
    }
    let has_names = choices(map);
    for (key, value) in &mut *map {
        match (key.as_str(), value) {
            ("properties" | "$defs", Value::Object(all)) => all.values_mut().for_each(finish),
            ("anyOf" | "allOf" | "prefixItems", Value::Array(all)) => {
                all.iter_mut().for_each(finish);
            }
            ("oneOf", Value::Array(all)) if !has_names => all.iter_mut().for_each(finish),
            ("additionalProperties" | "items" | "if" | "then", value) => finish(value),
            _ => {}
        }
    }
    allow_variables(map);
}

/// Adds the choice of a text with variables to choices that have names; false if there are none.
fn choices(map: &mut Map<String, Value>) -> bool {
    let Some(Value::Array(all)) = map.get_mut("oneOf") else { return false };
    if !all.iter().any(|one| one["type"] == "string") {
        return false;
    }
    for one in &mut *all {
        if let Some(Value::String(text)) = one.get_mut("description") {
            *text = text.replace('\n', " ");
        }
    }
    all.push(json!({"type": "string", "pattern": VARIABLE_PATTERN}));
    true
}

/// Lets a text with variables through the bounds of a text.
fn allow_variables(map: &mut Map<String, Value>) {
    let is_text = match map.get("type") {
        Some(Value::Array(kinds)) => kinds.contains(&json!("string")),
        Some(kind) => kind == "string",
        None => map
            .get("enum")
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().any(Value::is_string)),
    };
    let mut bounds = Map::new();
    if is_text && map.get("pattern") != Some(&json!(VARIABLE_PATTERN)) {
        for key in ["enum", "const", "pattern", "minLength", "maxLength"] {
            bounds.extend(map.shift_remove(key).map(|bound| (key.to_owned(), bound)));
        }
    }
    if !bounds.is_empty() {
        let variable = json!({"type": "string", "pattern": VARIABLE_PATTERN});
        map.insert("anyOf".to_owned(), json!([bounds, variable]));
    }
}
