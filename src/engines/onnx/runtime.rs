//! Finds, verifies and loads the ONNX Runtime library, once in a process.
//!
//! The library is loaded at run time: a board may need its vendor's build. A truncated file would end
//! the process with SIGBUS, so its length is compared with its ELF header first.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;

use crate::engines::worker::sha256;
use crate::model::generate::Fault;

/// Folder of the package's libraries.
const PACKAGE: &str = "/usr/lib/pilotlight";
/// Library folders of the system; `*` is the name of the architecture.
const SYSTEM: [&str; 4] = ["/usr/local/lib", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib"];
/// Prefix of the library's name.
const NAME: &str = "libonnxruntime.so";
/// Suffix of the checksum file beside a library.
const CHECKSUM: &str = ".sha256";
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// The runtime of this process.
pub(super) struct OnnxRuntime {
    pub(super) environment: Environment,
    pub(super) version: String,
}

/// Starts the runtime, or returns the running one: there is one in a process.
///
/// # Errors
/// [`Fault::Unavailable`] that names the searched folders, or what is wrong with the library.
pub(super) fn start(asked: Option<&Path>) -> Result<&'static OnnxRuntime, Fault> {
    static RUNTIME: OnceLock<OnnxRuntime> = OnceLock::new();
    // the runtime refuses a second environment, so concurrent calls wait for the first
    static STARTING: Mutex<()> = Mutex::new(());
    let _guard = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let path = find(asked)?;
    check(&path)
        .map_err(|why| Fault::unavailable(format!("{} is not loaded: {why}", path.display())))?;
    let broken = |e: &dyn std::fmt::Display| {
        Fault::unavailable(format!("ONNX Runtime at {} cannot be used: {e}", path.display()))
    };
    let builder = ort::init_from(&path).map_err(|e| broken(&e))?;
    let environment =
        builder.with_name("pilotlight").with_telemetry(false).build().map_err(|e| broken(&e))?;
    let runtime = OnnxRuntime { environment, version: version(&path) };
    tracing::info!(library = %path.display(), version = runtime.version, "ONNX Runtime is loaded");
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// Searches in this order: the configured path, `$ORT_DYLIB_PATH`, the package's folder, the folder of
/// this program, the system's folders.
fn find(asked: Option<&Path>) -> Result<PathBuf, Fault> {
    let variable = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let told = asked.map(Path::to_owned).or(variable.filter(|path| !path.as_os_str().is_empty()));
    if let Some(path) = told {
        // a configured path has no fallback
        let found = if path.is_dir() { in_folder(&path) } else { Some(path.clone()) };
        return found.filter(|path| path.is_file()).ok_or_else(|| {
            Fault::unavailable(format!("there is no ONNX Runtime library at {}", path.display()))
        });
    }
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent).map(Path::to_owned);
    let system = SYSTEM.iter().map(|path| path.replace('*', std::env::consts::ARCH));
    let folders: Vec<PathBuf> = std::iter::once(PathBuf::from(PACKAGE))
        .chain(beside)
        .chain(system.map(PathBuf::from))
        .collect();
    folders.iter().find_map(|folder| in_folder(folder)).ok_or_else(|| {
        let looked: Vec<String> = folders.iter().map(|path| path.display().to_string()).collect();
        Fault::unavailable(format!(
            "ONNX Runtime not found: no {NAME} in {}; set --runtime or $ORT_DYLIB_PATH",
            looked.join(", ")
        ))
    })
}

/// The library of the highest version in a folder.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let libraries = files.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(NAME) && !name.ends_with(CHECKSUM)
    });
    libraries.max_by_key(|path| numbers(path))
}

/// The version in a library's name, as numbers.
fn numbers(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix(NAME).unwrap_or_default().trim_start_matches('.');
    version.split('.').filter_map(|n| n.parse().ok()).collect()
}

fn version(path: &Path) -> String {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let numbers: Vec<String> = numbers(&real).iter().map(u32::to_string).collect();
    if numbers.is_empty() { ort::info().to_owned() } else { numbers.join(".") }
}

/// Checks that the file is an ELF library for this architecture, has the length of its header, and
/// matches the checksum file beside it if there is one.
fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut head = [0_u8; 64];
    file.read_exact_at(&mut head, 0).map_err(|_| "it is not a shared library".to_owned())?;
    // 64 bits, little-endian
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is not a shared library for a 64-bit machine".to_owned());
    }
    let two = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let machine = two(18);
    if machine != MACHINE {
        return Err(format!("the library is for another architecture (ELF machine {machine})"));
    }
    let mut sections = [0; 8];
    sections.copy_from_slice(&head[40..48]);
    let table = u64::from(two(58)) * u64::from(two(60));
    let end = u64::from_le_bytes(sections).saturating_add(table);
    if end > length {
        return Err(format!("it is truncated: {length} of {end} bytes are there"));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(CHECKSUM);
    let Ok(told) = fs::read_to_string(&beside) else {
        return Ok(());
    };
    let expected = told.split_whitespace().next().unwrap_or_default().to_lowercase();
    let found = sha256(path).map_err(|e| e.to_string())?;
    if found == expected {
        Ok(())
    } else {
        Err(format!("SHA-256 is {found}, expected {expected} (from the .sha256 file)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_in_a_folder_is_used() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libother.so.9"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        fs::write(folder.path().join("libonnxruntime.so.1.32.0.sha256"), "x").unwrap();
        let found = in_folder(folder.path()).unwrap();
        assert!(found.ends_with("libonnxruntime.so.1.32.0"));
        assert_eq!(version(&found), "1.32.0");
    }

    #[test]
    fn damaged_libraries_are_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let real = fs::read(std::env::current_exe().unwrap()).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            check(&path).err()
        };
        assert_eq!(refused(&real), None);
        assert!(refused(&real[..real.len() - 1]).unwrap().contains("truncated"));
        assert!(refused(b"no library").unwrap().contains("shared library"));
        let mut foreign = real.clone();
        foreign[18] = 40;
        assert!(refused(&foreign).unwrap().contains("another architecture"));
        fs::write(folder.path().join("libonnxruntime.so.sha256"), "00  x").unwrap();
        assert!(refused(&real).unwrap().contains("SHA-256"));
    }
}
