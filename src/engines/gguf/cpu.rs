//! The variants of llama.cpp's code for processors. A program that is built with `cpu-variants` has one
//! library for each level of instructions beside it, and loads the best that the processor runs; any other
//! program has the code for the least processor of its architecture.

use std::path::Path;
use std::sync::OnceLock;

use llama_cpp_2::llama_backend;

/// The folder of the libraries of an installed program, from the folder of the program.
const LIBRARIES: &str = "../lib/pilotlight";
/// What the name of a variant's library begins with; its name and `.so` follow.
const LIBRARY: &str = "libggml-cpu-";

/// Loads the best variant, once in a process, and returns its name, such as `armv8.2_2` or `haswell`. It must
/// be called before the sandbox is entered, which has no access to the libraries. None if there is none
/// that this processor runs.
pub(super) fn load_variant() -> Option<&'static str> {
    static VARIANT: OnceLock<Option<String>> = OnceLock::new();
    let load = || {
        let program = std::env::current_exe().ok()?;
        let installed = program.parent()?.join(LIBRARIES);
        if installed.is_dir() {
            llama_backend::load_backends_from_path(&installed);
        } else {
            // a program in its build folder
            llama_backend::load_backends();
        }
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(variant_of)
    };
    VARIANT.get_or_init(load).as_deref()
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
