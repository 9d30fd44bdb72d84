//! Variables of the environment and of `.env`.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::one;
use crate::catalog::env_file;
use crate::catalog::env_file::{ENV_FILE, EnvFile};
use crate::catalog::expand::Variables;
use crate::catalog::mistake::{FILE, Mistake};
use crate::catalog::secret;
use crate::catalog::server::{ENGINE_SANDBOX, ENGINES, PREFIXES};
use crate::limits::CONFIG_BYTES_MAX;
use crate::store::files;

/// The folder of the configuration of an installed package.
const INSTALLED: &str = "/etc/pilotlight";
/// The variable that names `mcp.json`.
const CONFIG: &str = "PILOTLIGHT_CONFIG";

/// Environment variables and their meanings; any other with the prefix `PILOTLIGHT_` is a mistake.
pub const VARIABLES: [(&str, &str); 17] = [
    ("PILOTLIGHT_CONFIG", "path of mcp.json (default: mcp.json, else /etc/pilotlight/mcp.json)"),
    (
        "PILOTLIGHT_DEVICE",
        "name of this device in topics (default: HOST-ID, the host's name and an id)",
    ),
    ("PILOTLIGHT_MQTT", "mqtt://host[:port], mqtts://host[:port], embedded, or off"),
    ("PILOTLIGHT_MQTT_USERNAME", "user name at the broker"),
    ("PILOTLIGHT_MQTT_PASSWORD", "password at the broker"),
    ("PILOTLIGHT_BROKER", "address of the embedded broker (default: 127.0.0.1:1883)"),
    ("PILOTLIGHT_BROKER_ANONYMOUS", "yes: the embedded broker asks for no password, for a try-out"),
    ("PILOTLIGHT_HTTP", "address of the HTTP interface (default: 127.0.0.1:8080), or off"),
    ("PILOTLIGHT_HTTP_TOKEN", "bearer token of HTTP clients"),
    ("PILOTLIGHT_SENSORS", "root folder of the sensors (default: /)"),
    ("PILOTLIGHT_STATE", "folder of persistent state (default: of systemd or of the user), or off"),
    ("PILOTLIGHT_MODELS", "folder of downloaded models (default: models in the state folder)"),
    ("PILOTLIGHT_TRUST", "path of the trust policy for remote configurations (default: none)"),
    (ENGINE_SANDBOX, "off: engines start without their sandbox, to look for a fault"),
    (
        PREFIXES,
        "folder of saved beginnings of prompts (default: prefixes in the state folder), or off",
    ),
    (ENGINES, "socket at which systemd starts engines (default: none, they are child processes)"),
    ("PILOTLIGHT_LOG", "log filter, such as info or pilotlight=debug"),
];

/// The variables of `.env` and of the environment, which takes precedence.
///
/// # Errors
/// If `.env` exists and cannot be read, or a variable of this program is not UTF-8.
pub fn variables() -> Result<Variables, Vec<Mistake>> {
    let mut variables = env_file()?.variables;
    let mut mistakes = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => {
                variables.insert(name, value);
            }
            (Ok(name), Err(_)) if name.starts_with("PILOTLIGHT_") => {
                mistakes.extend(one(&name, "is not UTF-8".to_owned()));
            }
            // a variable of another program
            (Ok(name), Err(_)) => {
                variables.remove(&name);
            }
            (Err(_), _) => {}
        }
    }
    if mistakes.is_empty() { Ok(variables) } else { Err(mistakes) }
}

/// The folder of `mcp.json` and `.env` where none is named: the current directory, empty as a path, or
/// [`INSTALLED`] if the current directory has neither file.
pub(super) fn default_folder() -> &'static Path {
    let here = [FILE, ENV_FILE].into_iter().any(|name| Path::new(name).exists());
    let is_named = IS_NAMED.load(Ordering::Relaxed) || std::env::var_os(CONFIG).is_some();
    let installed = Path::new(INSTALLED);
    if !here && !is_named && installed.join(FILE).exists() { installed } else { Path::new("") }
}

/// Whether the command line names an `mcp.json`: the `.env` of an installed package is not that one's.
static IS_NAMED: AtomicBool = AtomicBool::new(false);

/// Tells that the command line names an `mcp.json`. To be called before anything is read.
pub fn set_named() {
    IS_NAMED.store(true, Ordering::Relaxed);
}

/// The variables of the environment alone, for a command that can do without those of `.env`.
pub(super) fn environment() -> Variables {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The path of `.env`.
pub(super) fn env_path() -> PathBuf {
    default_folder().join(ENV_FILE)
}

/// The content of `.env`; none if there is no such file.
fn env_file() -> Result<EnvFile, Vec<Mistake>> {
    let path = env_path();
    match files::read(&path, CONFIG_BYTES_MAX) {
        Ok(bytes) => env_file::parse(&bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(EnvFile::default()),
        Err(error) => Err(one(&path.display().to_string(), format!("cannot be read: {error}"))),
    }
}

/// Warnings of `.env`: what is meant differently, and secrets that others can read.
pub(super) fn env_file_warnings() -> Vec<Mistake> {
    let Ok(mut file) = env_file() else { return Vec::new() };
    if file.variables.keys().any(|name| secret::is_secret_variable(name)) {
        file.warnings.extend(readable_by_others(&env_path()));
    }
    file.warnings
}

/// A warning if a file that holds a secret can be read by other users.
pub(super) fn readable_by_others(path: &Path) -> Option<Mistake> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let shown = path.display().to_string();
    // a service's group may read it
    (mode & 0o027 != 0).then(|| {
        let message = format!(
            "holds a secret and has the mode {:03o}, so that other users can read or change it; run \
             chmod 600 {shown}",
            mode & 0o777
        );
        Mistake::new(shown, message)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::VARIABLES;

    #[test]
    fn the_documented_variables_are_the_known_ones() {
        let text = std::fs::read_to_string("docs/configuration.md").unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `PILOTLIGHT_"));
        let first = rows.filter_map(|row| row.split('|').nth(1));
        let documented: BTreeSet<&str> =
            first.flat_map(|cell| cell.split('`')).filter(|name| name.contains('_')).collect();
        let known: BTreeSet<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
        assert_eq!(documented, known);
    }
}
