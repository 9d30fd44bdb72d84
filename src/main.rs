//! The program; everything in it is [`pilotlight`]'s.

use std::process::ExitCode;

fn main() -> ExitCode {
    pilotlight::cli::main()
}
