//! Tools that a model may call, and the check of its calls. The client executes the calls.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::name::is_name;
use super::schema::Schema;
use crate::limits::{TOOL_CALLS_MAX, TOOLS_MAX};

/// One offered tool, in the form of an MCP tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Name, `[A-Za-z0-9_-]{1,64}`.
    pub name: String,
    /// What the tool does and when to call it, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of the arguments, which are an object.
    #[serde(default = "any_object")]
    pub input_schema: Schema,
}

/// Schema of arguments without a schema of their own: any object.
pub fn any_object() -> Schema {
    serde_json::json!({"type": "object"}).into()
}

/// Whether the model must call a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// The model must not call a tool.
    None,
    /// The model must call any tool.
    Required,
    /// The model must call this tool.
    #[serde(untagged)]
    Named(Name),
}

/// Name of a tool, as a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Name of the tool.
    pub name: String,
}

/// One tool call of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// Id of the call; its result refers to it.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// Arguments of the call.
    pub arguments: Map<String, Value>,
}

/// Tools of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// Offered tools; never empty.
    pub offered: Vec<Tool>,
    /// Whether the model must call a tool.
    pub choice: ToolChoice,
    /// Whether parallel calls are allowed.
    pub parallel: bool,
}

impl Tools {
    /// Checks number, names and choice. The bounds of the schemas are checked where they are read, and
    /// the rest when they are compiled.
    ///
    /// # Errors
    /// The field, and what is wrong there.
    pub fn check(&self) -> Result<(), (String, String)> {
        let at = |n: usize, field: &str| format!("tools[{n}].{field}");
        if !(1..=TOOLS_MAX).contains(&self.offered.len()) {
            let message = format!("{} tools, must be 1 to {TOOLS_MAX}", self.offered.len());
            return Err(("tools".to_owned(), message));
        }
        for (n, tool) in self.offered.iter().enumerate() {
            if !is_name(&tool.name) {
                let message = format!("{:?} must be 1 to 64 of A-Z, a-z, 0-9, _ and -", tool.name);
                return Err((at(n, "name"), message));
            }
            if self.offered[..n].iter().any(|other| other.name == tool.name) {
                return Err((at(n, "name"), format!("duplicate tool name {:?}", tool.name)));
            }
            let kind = tool.input_schema.get("type").and_then(Value::as_str);
            if kind != Some("object") {
                let message = "must be a JSON Schema with \"type\": \"object\"".to_owned();
                return Err((at(n, "input_schema"), message));
            }
        }
        match &self.choice {
            ToolChoice::Named(Name { name }) if self.of(name).is_none() => {
                let message = format!("{name:?} is not among the tools");
                Err(("tool_choice.name".to_owned(), message))
            }
            ToolChoice::Auto | ToolChoice::None | ToolChoice::Required | ToolChoice::Named(_) => {
                Ok(())
            }
        }
    }

    /// Checks that the model's calls are allowed and that their arguments conform to the schemas.
    ///
    /// # Errors
    /// What is wrong, without text of the model.
    pub fn allow(&self, calls: &[ToolCall]) -> Result<(), String> {
        if calls.len() > TOOL_CALLS_MAX {
            return Err(format!("the model made more than {TOOL_CALLS_MAX} calls at once"));
        }
        match (&self.choice, calls.len()) {
            (ToolChoice::None, 1..) => {
                return Err("the model called a tool although tool_choice is none".to_owned());
            }
            (ToolChoice::Required | ToolChoice::Named(_), 0) => {
                return Err(
                    "the model did not call a tool although tool_choice requires it".to_owned()
                );
            }
            (_, 2..) if !self.parallel => {
                return Err("the model made parallel calls although parallel_tool_calls is false"
                    .to_owned());
            }
            _ => {}
        }
        for call in calls {
            let tool = self.of(&call.name).ok_or("the model called an unknown tool")?;
            if let ToolChoice::Named(wanted) = &self.choice
                && wanted.name != tool.name
            {
                return Err(format!("the model did not call the required tool {}", wanted.name));
            }
            let arguments = Value::Object(call.arguments.clone());
            tool.input_schema.fits(&arguments).map_err(|place| {
                format!("the model's arguments for {} do not fit the schema{place}", tool.name)
            })?;
        }
        Ok(())
    }

    fn of(&self, name: &str) -> Option<&Tool> {
        self.offered.iter().find(|tool| tool.name == name)
    }

    /// Bytes of all offered tools as JSON.
    pub fn bytes(&self) -> usize {
        serde_json::to_string(&self.offered).map_or(0, |text| text.len())
    }
}

impl ToolCall {
    /// The arguments as JSON text.
    pub fn text(&self) -> String {
        serde_json::to_string(&self.arguments).unwrap_or_default()
    }

    /// Bytes of the name and the arguments.
    pub fn bytes(&self) -> usize {
        self.name.len() + self.text().len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools(choice: Value, parallel: bool) -> Tools {
        let offered = json!([
            {"name": "valve", "description": "Opens or shuts it.", "input_schema": {"type": "object",
             "properties": {"open": {"type": "boolean"}}, "required": ["open"]}},
            {"name": "siren"},
        ]);
        let offered = serde_json::from_value(offered).unwrap();
        Tools { offered, choice: serde_json::from_value(choice).unwrap(), parallel }
    }

    fn call(name: &str, arguments: &Value) -> ToolCall {
        let arguments = arguments.as_object().unwrap().clone();
        ToolCall { id: "c".to_owned(), name: name.to_owned(), arguments }
    }

    #[test]
    fn a_choice_is_a_keyword_or_a_name() {
        for choice in [json!("auto"), json!("none"), json!("required"), json!({"name": "siren"})] {
            let read: ToolChoice = serde_json::from_value(choice.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), choice);
            assert_eq!(tools(choice, true).check(), Ok(()));
        }
        let (field, message) = tools(json!({"name": "door"}), true).check().unwrap_err();
        assert_eq!((field.as_str(), message.contains("door")), ("tool_choice.name", true));
        assert!(serde_json::from_value::<ToolChoice>(json!("maybe")).is_err());
    }

    #[test]
    fn only_offered_tools_may_be_called() {
        let (valve, siren) = (call("valve", &json!({"open": true})), call("siren", &json!({})));
        let auto = tools(json!("auto"), true);
        assert_eq!(auto.allow(&[]), Ok(()));
        assert_eq!(auto.allow(&[valve.clone(), siren.clone()]), Ok(()));
        assert!(auto.allow(&[call("door", &json!({}))]).unwrap_err().contains("unknown tool"));
        let wrong = auto.allow(&[call("valve", &json!({"open": "secret"}))]).unwrap_err();
        assert!(wrong.contains("valve") && wrong.contains("/properties/open"), "{wrong}");
        assert!(!wrong.contains("secret"), "{wrong}");
        assert!(auto.allow(&vec![siren.clone(); TOOL_CALLS_MAX + 1]).is_err());
        assert!(tools(json!("auto"), false).allow(&[valve.clone(), siren.clone()]).is_err());
        assert!(tools(json!("none"), true).allow(std::slice::from_ref(&siren)).is_err());
        assert!(tools(json!("required"), true).allow(&[]).is_err());
        let named = tools(json!({"name": "siren"}), true);
        assert!(named.allow(&[]).is_err() && named.allow(&[valve]).is_err());
        assert_eq!(named.allow(&[siren]), Ok(()));
    }

    #[test]
    fn offered_tools_are_checked() {
        let check = |offered: Value| {
            let offered = serde_json::from_value(offered).unwrap();
            Tools { offered, ..tools(json!("auto"), true) }.check().unwrap_err().0
        };
        assert_eq!(check(json!([])), "tools");
        assert_eq!(check(json!([{"name": "two words"}])), "tools[0].name");
        assert_eq!(check(json!([{"name": "a"}, {"name": "a"}])), "tools[1].name");
        let list = json!({"type": "array"});
        assert_eq!(check(json!([{"name": "a", "input_schema": list}])), "tools[0].input_schema");
    }
}
