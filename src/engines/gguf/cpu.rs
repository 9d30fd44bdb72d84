//! The variants of llama.cpp's code for processors. A program that is built with `cpu-variants` has one
//! library for each level of instructions beside it, and loads the best that the processor runs; any other
//! program has the code for the least processor of its architecture.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder of the libraries of an installed program, from the folder of the program.
const LIBRARIES: &str = "../lib/pilotlight";
/// The same of a program in its build folder, from the folders that Cargo makes for each build of the library.
const LIBRARIES_BUILT: &str = "out/backends";
/// What the name of a variant's library begins with; its name and `.so` follow.
const LIBRARY: &str = "libggml-cpu-";

/// Loads the best variant, once in a process, and returns its name, such as `armv8.2_2` or `haswell`. It must
/// be called before the sandbox is entered, which has no access to the libraries. None if there is none
/// that this processor runs.
#[cfg(feature = "cpu-variants")]
pub(super) fn load_variant() -> Option<&'static str> {
    use llama_cpp_2::llama_backend;
    use std::sync::OnceLock;

    static VARIANT: OnceLock<Option<String>> = OnceLock::new();
    let load = || {
        let program = std::env::current_exe().ok()?;
        llama_backend::load_backends_from_path(&libraries(&program)?);
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(variant_of)
    };
    VARIANT.get_or_init(load).as_deref()
}

/// The folder of the libraries of a program. The folder in which the library was built is not looked at, although its
/// path is known: on another machine anyone could have made it.
fn libraries(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    let installed = folder.join(LIBRARIES);
    if installed.is_dir() {
        return Some(installed);
    }
    let owner = program.metadata().ok()?.uid();
    // Cargo puts tests and benches into a folder of their own
    let builds = folder.ancestors().take(2).map(|folder| folder.join("build"));
    let mut own = builds.filter(|builds| builds.metadata().is_ok_and(|found| found.uid() == owner));
    own.find_map(|builds| built(&builds))
}

/// The newest of the library's builds: there is one for each set of features.
fn built(builds: &Path) -> Option<PathBuf> {
    let all = std::fs::read_dir(builds).ok()?.filter_map(Result::ok);
    let all = all.map(|build| build.path().join(LIBRARIES_BUILT));
    all.filter_map(|folder| Some((folder.metadata().ok()?.modified().ok()?, folder)))
        .max()
        .map(|(_, folder)| folder)
}

/// The name of the variant whose library is mapped by a line of `/proc/PID/maps` (`proc_pid_maps(5)`).
fn variant_of(line: &str) -> Option<String> {
    let file = Path::new(line.split_ascii_whitespace().nth(5)?).file_name()?.to_str()?;
    let name = file.strip_prefix(LIBRARY)?.strip_suffix(".so")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_of_the_installed_program_or_of_the_newest_build() {
        let root = tempfile::tempdir().unwrap();
        let programs = root.path().join("release");
        let make = |path: &str| {
            let folder = programs.join(path);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        let program = programs.join("pilotlight");
        let test = make("deps").join("test");
        for file in [&program, &test] {
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(libraries(&program), None);
        make("build/llama-cpp-sys-2-0/out/lib");
        assert_eq!(libraries(&program), None);
        make("build/llama-cpp-sys-2-1/out/backends");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let newer = make("build/llama-cpp-sys-2-0/out/backends");
        assert_eq!(libraries(&program), Some(newer.clone()));
        assert_eq!(libraries(&test), Some(newer));
        let installed = make("../lib/pilotlight");
        assert_eq!(libraries(&program), Some(installed));
    }

    #[test]
    fn a_variant_is_known_by_its_library() {
        let line = "7f00-7f10 r-xp 00001000 08:01 17  /usr/lib/pilotlight/libggml-cpu-armv8.2_2.so";
        assert_eq!(variant_of(line).as_deref(), Some("armv8.2_2"));
        for other in [
            "7f00-7f10 r-xp 00001000 08:01 17  /usr/lib/pilotlight/libggml-base.so",
            "7f00-7f10 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(variant_of(other), None, "{other:?}");
        }
    }
}
