//! The tools that are called, pinned by the digest of name, description and input schema: found in the
//! server's list within bounds, and compared with the pins at each handshake and after each change that the
//! server announces.
//!
//! A tool has several members besides. Title, icons, annotations, output schema and `_meta` are not
//! pinned: nothing of them is used, and they change for reasons of display. Other tools of the server
//! are never called, and may come and go.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rmcp::RoleClient;
use rmcp::model::{
    ClientRequest, ErrorCode, ListToolsRequest, ListToolsResult, PaginatedRequestParams,
    ServerResult, Tool,
};
use rmcp::service::{Peer, ServiceError};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::contract::TOOL;
use super::handshake::{PageBounds, broken};
use crate::clock::now;
use crate::fleet::digest::Digest;
use crate::limits::tools::{
    TOOL_TEXT_BYTES_MAX, TOOLS_CHECK_EVERY, TOOLS_CHECK_MAX, TOOLS_CHECK_REST,
};
use crate::model::generate::Fault;
use crate::store::tool_pins::{CheckedTool, PinVerdict, ToolForm, ToolPins};

/// Digests of the forms that [`TOOL`] has had in versions of this program, the present one last. A server of
/// this program is known by them: it may be updated, or exchanged for one of another version, without an
/// approval. A version that changes the tool adds its digest.
const KNOWN: [&str; 2] = [
    "sha256:465bfddd6669c35e2a13ec9959d6b2dd636d69e9c2ded66dc5c8ecd196f1d6a8",
    "sha256:f5fe9671aecdcba3f158cf4d3572c3063ea5888119e2c4125b5248a3a426075e",
];

/// How the tools of one server are checked.
#[derive(Debug, Clone)]
pub struct ToolPolicy {
    /// The server's name.
    pub server: String,
    /// Where it is, without secrets.
    pub place: String,
    /// The digests that `mcp.json` states, by tool.
    pub stated: BTreeMap<String, String>,
    /// The digests that were recorded.
    pub pins: Arc<ToolPins>,
}

/// Why the tools of a server are not called.
#[derive(Debug)]
pub enum ToolFault {
    /// They can't be read.
    Unreadable(Fault),
    /// One has changed: which, how, and what to do.
    Quarantined(String),
}

/// Why tools must be checked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// The server has announced a change.
    Announced,
    /// The last check was long ago.
    Old,
}

/// Whether calls may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToolCheck {
    /// The server's tools are not pinned.
    Unpinned,
    /// They were checked after so many announced changes.
    After(u64),
    /// One has changed.
    Quarantined,
}

/// The tool list of a connection.
#[derive(Debug, Clone)]
pub struct ToolList {
    peer: Peer<RoleClient>,
    /// Changes that the server has announced.
    announced: watch::Receiver<u64>,
    checked: watch::Sender<ToolCheck>,
}

impl ToolList {
    pub(super) fn new(peer: Peer<RoleClient>, announced: watch::Receiver<u64>) -> ToolList {
        ToolList { peer, announced, checked: watch::Sender::new(ToolCheck::Unpinned) }
    }

    /// Checks the tools that are called; calls wait for the check after each announced change from now on.
    ///
    /// # Errors
    /// [`ToolFault`]: nothing may be called.
    pub async fn check(&self, policy: &ToolPolicy) -> Result<(), ToolFault> {
        let announced = *self.announced.borrow();
        let form = find(&self.peer).await.map_err(ToolFault::Unreadable)?.as_ref().map(form_of);
        let checked = CheckedTool {
            server: policy.server.clone(),
            place: policy.place.clone(),
            tool: TOOL.to_owned(),
            is_known: form.as_ref().is_some_and(|form| KNOWN.contains(&form.digest.as_str())),
            form,
            stated: policy.stated.get(TOOL).cloned(),
        };
        let (pins, tool) = (Arc::clone(&policy.pins), checked.clone());
        let mut work = JoinSet::new();
        work.spawn_blocking(move || pins.check(&tool));
        let verdict = match work.join_next().await {
            Some(Ok(verdict)) => verdict,
            Some(Err(_)) | None => Err(io::Error::other("the thread of the check has ended")),
        };
        let check = match verdict {
            Ok(PinVerdict::Same) => Ok(()),
            Ok(PinVerdict::Changed { pinned }) => {
                Err(ToolFault::Quarantined(changed(&checked, &pinned)))
            }
            Err(error) => Err(ToolFault::Quarantined(format!(
                "its tools can't be compared with those that are pinned: {error}"
            ))),
        };
        let state = check.as_ref().map_or(ToolCheck::Quarantined, |()| ToolCheck::After(announced));
        self.checked.send_replace(state);
        check
    }

    /// Waits until the tools must be checked again: after an announced change, and from time to time.
    pub async fn stale(&self) -> Staleness {
        let mut announced = self.announced.clone();
        let due = Instant::from(now()) + TOOLS_CHECK_EVERY;
        sleep(TOOLS_CHECK_REST).await;
        let checked = *self.checked.borrow();
        let changed = async {
            if announced.wait_for(|n| ToolCheck::After(*n) != checked).await.is_err() {
                // the connection has ended, which its owner knows
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => Staleness::Announced,
            () = sleep_until(due) => Staleness::Old,
        }
    }

    /// Waits until a call may be sent.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if a changed list was not checked in [`TOOLS_CHECK_MAX`], or a tool has
    /// changed.
    pub(super) async fn may_call(&self) -> Result<(), Fault> {
        let is_decided = |check: &ToolCheck| match check {
            ToolCheck::After(n) => *n == *self.announced.borrow(),
            ToolCheck::Unpinned | ToolCheck::Quarantined => true,
        };
        let mut checked = *self.checked.borrow();
        if !is_decided(&checked) {
            let mut checks = self.checked.subscribe();
            let decided = timeout(TOOLS_CHECK_MAX, checks.wait_for(is_decided)).await;
            checked = decided.ok().and_then(Result::ok).map_or(checked, |check| *check);
        }
        match checked {
            ToolCheck::Quarantined => Err(Fault::unavailable("its tool has changed")),
            check if is_decided(&check) => Ok(()),
            ToolCheck::Unpinned | ToolCheck::After(_) => {
                Err(Fault::unavailable("its tool list has changed and was not checked in time"))
            }
        }
    }
}

/// What a user is told of a tool that is not as it was.
fn changed(tool: &CheckedTool, pinned: &str) -> String {
    let CheckedTool { server, tool: name, form, stated, .. } = tool;
    let Some(form) = form else {
        return format!("the tool {name} is not listed any more; it was {pinned}");
    };
    let found = &form.digest;
    if stated.is_some() {
        return format!(
            "the tool {name} is {found}, and mcp.json states {pinned}; if it is right, change tools of \
             {server} there"
        );
    }
    format!(
        "the tool {name} has changed from {pinned} to {found}; see `pilotlight tools list`, and if it is \
         right, `pilotlight tools approve {server}`"
    )
}

/// The tool that is called, if the server lists it. The client of rmcp would answer from its cache for as
/// long as the server states.
async fn find(peer: &Peer<RoleClient>) -> Result<Option<Tool>, Fault> {
    let mut bounds = PageBounds::new("tools");
    let mut cursor: Option<String> = None;
    // bounded by the pages
    loop {
        let params =
            cursor.clone().map(|at| PaginatedRequestParams::default().with_cursor(Some(at)));
        let request = ListToolsRequest { params, ..ListToolsRequest::default() };
        let page = peer.send_request(ClientRequest::ListToolsRequest(request)).await;
        let page = match page {
            // it lists no tools at all
            Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                return Ok(None);
            }
            page => page.map_err(|e| unreadable(&e))?,
        };
        let ServerResult::ListToolsResult(page) = page else {
            return Err(broken("its list of tools has an unexpected type"));
        };
        let ListToolsResult { tools, next_cursor, .. } = &page;
        bounds.take(tools.len(), &page)?;
        if let Some(tool) = tools.iter().find(|tool| tool.name == TOOL) {
            return Ok(Some(tool.clone()));
        }
        if next_cursor.is_none() {
            return Ok(None);
        }
        bounds.turn(cursor.as_ref(), next_cursor.as_ref())?;
        cursor.clone_from(next_cursor);
    }
}

fn unreadable(error: &ServiceError) -> Fault {
    Fault::unavailable(format!("its tools can't be listed: {error}")).bounded()
}

fn form_of(tool: &Tool) -> ToolForm {
    let description = tool.description.as_deref().unwrap_or_default();
    let end = description.floor_char_boundary(TOOL_TEXT_BYTES_MAX);
    ToolForm { digest: digest(tool), description: description[..end].to_owned() }
}

/// The digest of a tool: SHA-256 of the JSON object with `description`, `inputSchema` and `name`, whose keys
/// are in the order of their characters at each level, without white space. `description` is null if
/// there is none.
///
/// ```text
/// jq -jcS '{name, description, inputSchema}' tool.json | sha256sum
/// ```
fn digest(tool: &Tool) -> String {
    let schema = Value::Object(tool.input_schema.as_ref().clone());
    let form = json!({"name": tool.name, "description": tool.description, "inputSchema": schema});
    Digest::of(sorted(form).to_string().as_bytes()).to_string()
}

/// The value with the keys of all objects in order. Its depth is that of the parser, 128.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let members: BTreeMap<String, Value> =
                map.into_iter().map(|(key, member)| (key, sorted(member))).collect();
            Value::Object(members.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::contract::tool;

    /// Whoever changes the tool adds its digest to [`KNOWN`], or callers of the version before have to approve
    /// it.
    #[test]
    fn the_tool_of_this_program_is_known() {
        assert_eq!(KNOWN.last().copied(), Some(digest(&tool()).as_str()));
    }

    #[test]
    fn a_digest_is_that_of_its_three_members() {
        let of = |value: Value| digest(&serde_json::from_value(value).unwrap());
        let schema = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {}}});
        let tool = json!({"name": "generate", "description": "Says.", "inputSchema": schema});
        let known = of(tool.clone());
        // by jq and sha256sum
        assert_eq!(
            known,
            "sha256:d0792ad7bfe2396eb4eca0f830e5033ce1dfeb7a995bd3428a361bc2e62a5452"
        );
        let reordered: Value = serde_json::from_str(
            r#"{"inputSchema": {"properties": {"a": {}, "b": {"type": "string"}}, "type": "object"},
                "description": "Says.", "name": "generate", "title": "T", "_meta": {"a": 1},
                "outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": true}}"#,
        )
        .unwrap();
        assert_eq!(of(reordered), known);
        for (at, value) in [
            ("/description", json!("Says!")),
            ("/description", json!("Says.\u{200b}")),
            ("/description", Value::Null),
            ("/inputSchema/type", json!("array")),
            ("/inputSchema/properties/a", json!({"description": "x"})),
            ("/inputSchema/properties/b/type", json!("number")),
        ] {
            let mut other = tool.clone();
            *other.pointer_mut(at).unwrap() = value;
            assert_ne!(of(other.clone()), known, "{other}");
        }
    }
}
