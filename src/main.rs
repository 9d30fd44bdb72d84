//! The program `pilotlight`; the library has all of its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pilotlight::cli::main()
}
