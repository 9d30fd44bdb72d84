//! Pinned tools of MCP servers: the digest of each tool at its first use, or as approved.
//!
//! The file belongs to the service and to the operator's command, which approves a change while the service
//! runs. Each change is made under a lock, and the service reads the file at each check.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::file_lock::FileLock;
use super::files;
use crate::limits::FILE_LOCK_WAIT;
use crate::limits::tools::{TOOL_PINS_BYTES_MAX, TOOL_PINS_MAX};

/// The file's name in the state folder.
const NAME: &str = "tools.json";
/// The lock of its changes.
const LOCK: &str = "tools.lock";

/// The pinned tools of a device.
#[derive(Debug, Default)]
pub struct ToolPins {
    folder: Option<PathBuf>,
    /// The pins of a device without a state folder.
    kept: Mutex<Vec<ToolPin>>,
}

/// One pinned tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolPin {
    /// The server's name in `mcp.json`.
    pub server: String,
    /// Where the server is, without secrets. At another place it is another server.
    pub place: String,
    /// The tool's name.
    pub tool: String,
    /// The form that may be called.
    pub pinned: ToolForm,
    /// Another form that the server had at the last check; the tool is quarantined then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<ToolForm>,
    /// The pinned digest is that of `mcp.json`.
    #[serde(default)]
    pub is_stated: bool,
}

/// The form of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolForm {
    /// The digest of name, description and input schema.
    pub digest: String,
    /// The beginning of its description.
    pub description: String,
}

/// A tool whose form is checked.
#[derive(Debug, Clone)]
pub struct CheckedTool {
    /// The server's name.
    pub server: String,
    /// Where the server is.
    pub place: String,
    /// The tool's name.
    pub tool: String,
    /// The form that it has; none if the server does not list it, or lists no tools at all.
    pub form: Option<ToolForm>,
    /// The digest that `mcp.json` states.
    pub stated: Option<String>,
    /// The form is one that this program itself has: it is accepted in the place of any recorded one.
    pub is_known: bool,
}

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinVerdict {
    /// The tool may be called.
    Same,
    /// The tool has another form than this one.
    Changed {
        /// The pinned digest.
        pinned: String,
    },
}

impl ToolPins {
    /// The pins in this folder; without one they are those of this process.
    pub fn new(folder: Option<&Path>) -> ToolPins {
        ToolPins { folder: folder.map(Path::to_owned), kept: Mutex::default() }
    }

    /// Compares a tool with its pin, and pins it at its first use. The state is on disk then.
    ///
    /// # Errors
    /// If the file can't be read or written: nothing may be called for the first time again.
    pub fn check(&self, checked: &CheckedTool) -> io::Result<PinVerdict> {
        self.change(|pins| verdict(pins, checked))
    }

    /// Approves the present forms of a server's tools; returns the tools whose pins have changed.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn approve(&self, server: &str, digest: Option<&str>) -> io::Result<Vec<ToolPin>> {
        self.change(|pins| {
            let mut approved = Vec::new();
            for pin in pins.iter_mut().filter(|pin| pin.server == server && !pin.is_stated) {
                let is_meant = |form: &mut ToolForm| digest.is_none_or(|only| form.digest == only);
                if let Some(form) = pin.found.take_if(is_meant) {
                    pin.pinned = form;
                    approved.push(pin.clone());
                }
            }
            approved
        })
    }

    /// All pins.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn list(&self) -> io::Result<Vec<ToolPin>> {
        match &self.folder {
            Some(folder) => read(folder),
            None => Ok(self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<ToolPin>) -> T) -> io::Result<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(folder) = &self.folder else { return Ok(change(&mut kept)) };
        let lock = folder.join(LOCK);
        let taken = FileLock::take(&lock, FILE_LOCK_WAIT)?;
        let in_use = || io::Error::other(format!("another process uses {}", lock.display()));
        let _taken = taken.ok_or_else(in_use)?;
        give_to_owner(folder, &lock)?;
        let before = read(folder)?;
        let mut pins = before.clone();
        let done = change(&mut pins);
        if pins != before {
            let path = folder.join(NAME);
            files::replace(&path, &serde_json::to_vec_pretty(&pins)?)?;
            give_to_owner(folder, &path)?;
        }
        Ok(done)
    }
}

/// A file that root's command has made belongs to the service, as the folder does; nobody else can give
/// files away.
fn give_to_owner(folder: &Path, file: &Path) -> io::Result<()> {
    let (owner, of_file) = (fs::metadata(folder)?, fs::symlink_metadata(file)?);
    if (owner.uid(), owner.gid()) == (of_file.uid(), of_file.gid()) {
        return Ok(());
    }
    match lchown(file, Some(owner.uid()), Some(owner.gid())) {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn verdict(pins: &mut Vec<ToolPin>, checked: &CheckedTool) -> PinVerdict {
    let CheckedTool { server, place, tool, form, stated, is_known } = checked;
    let at =
        pins.iter().position(|pin| (&pin.server, &pin.place, &pin.tool) == (server, place, tool));
    let recorded = at.map(|at| pins[at].pinned.clone());
    let wanted = match (stated, &recorded, form) {
        (Some(stated), _, _) => Some(stated.clone()),
        (None, Some(_), Some(form)) if *is_known => Some(form.digest.clone()),
        (None, Some(recorded), _) => Some(recorded.digest.clone()),
        (None, None, form) => form.as_ref().map(|form| form.digest.clone()),
    };
    // a server that has never listed the tool: there is no form that could change
    let Some(wanted) = wanted else { return PinVerdict::Same };
    let is_same = form.as_ref().is_some_and(|form| form.digest == wanted);
    let description = |form: &ToolForm| form.description.clone();
    let known = form.iter().chain(&recorded).find(|form| form.digest == wanted).map(description);
    let pinned = ToolForm { digest: wanted.clone(), description: known.unwrap_or_default() };
    let pin = ToolPin {
        server: server.clone(),
        place: place.clone(),
        tool: tool.clone(),
        pinned,
        found: form.clone().filter(|_| !is_same),
        is_stated: stated.is_some(),
    };
    match at {
        Some(at) => pins[at] = pin,
        None => {
            if pins.len() >= TOOL_PINS_MAX {
                pins.remove(0);
            }
            pins.push(pin);
        }
    }
    if is_same { PinVerdict::Same } else { PinVerdict::Changed { pinned: wanted } }
}

fn read(folder: &Path) -> io::Result<Vec<ToolPin>> {
    let path = folder.join(NAME);
    let read = match files::read(&path, TOOL_PINS_BYTES_MAX) {
        Ok(bytes) => files::parse(&bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error),
    };
    read.map_err(|error| {
        let path = path.display();
        let what_to_do =
            "check the tools of all servers and remove it, so that they are pinned anew";
        io::Error::new(error.kind(), format!("{path} can't be used: {error}; {what_to_do}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(server: &str, digest: &str) -> CheckedTool {
        CheckedTool {
            server: server.to_owned(),
            place: "https://h.example".to_owned(),
            tool: "generate".to_owned(),
            form: Some(ToolForm { digest: digest.to_owned(), description: "Says.".to_owned() }),
            stated: None,
            is_known: false,
        }
    }

    #[test]
    fn a_server_is_its_name_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let pins = ToolPins::new(Some(folder.path()));
        let changed = |pinned: &str| PinVerdict::Changed { pinned: pinned.to_owned() };
        assert_eq!(pins.check(&checked("a", "1")).unwrap(), PinVerdict::Same);
        assert_eq!(pins.check(&checked("a", "2")).unwrap(), changed("1"));
        let other = CheckedTool { place: "mqtt:big".to_owned(), ..checked("a", "2") };
        assert_eq!(pins.check(&other).unwrap(), PinVerdict::Same);
        assert_eq!(pins.check(&checked("b", "2")).unwrap(), PinVerdict::Same);
        // another process has the same record
        let again = ToolPins::new(Some(folder.path()));
        assert_eq!(again.check(&checked("a", "2")).unwrap(), changed("1"));
        let gone = CheckedTool { form: None, ..checked("a", "") };
        assert_eq!(again.check(&gone).unwrap(), changed("1"));
        assert_eq!(again.check(&checked("a", "1")).unwrap(), PinVerdict::Same);
        assert!(again.list().unwrap().iter().all(|pin| pin.found.is_none()));
    }

    #[test]
    fn pins_are_bounded_and_the_oldest_goes() {
        let pins = ToolPins::default();
        let description = "\u{1}".repeat(crate::limits::tools::TOOL_TEXT_BYTES_MAX);
        for n in 0..=TOOL_PINS_MAX {
            for digest in ["0", "1"] {
                let mut tool = checked(&format!("{n:064}"), &digest.repeat(71));
                let long = |form: ToolForm| ToolForm { description: description.clone(), ..form };
                tool.form = tool.form.map(long);
                pins.check(&tool).unwrap();
            }
        }
        let all = pins.list().unwrap();
        assert_eq!((all.len(), &all[0].server), (TOOL_PINS_MAX, &format!("{:064}", 1)));
        let bytes = serde_json::to_vec_pretty(&all).unwrap().len() as u64;
        assert!(bytes <= TOOL_PINS_BYTES_MAX, "{bytes}");
    }
}
