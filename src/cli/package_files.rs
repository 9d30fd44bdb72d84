//! Man pages and shell completions, written to a folder for packages.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, DONE};

/// Shells with completions in a package.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Prints the completions for a shell.
pub(super) fn print_completions(shell: Shell) -> u8 {
    clap_complete::generate(shell, &mut Cli::command(), "pilotlight", &mut std::io::stdout());
    DONE
}

/// Writes `man1/*.1` and `completions/*` below the folder.
///
/// # Errors
/// If a file can't be written.
pub(super) fn write(folder: &Path) -> anyhow::Result<u8> {
    let (pages, completions) = (folder.join("man1"), folder.join("completions"));
    for folder in [&pages, &completions] {
        let shown = folder.display();
        fs::create_dir_all(folder).with_context(|| format!("{shown} can't be created"))?;
    }
    clap_mangen::generate_to(Cli::command(), &pages).context("the man pages can't be written")?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Cli::command(), "pilotlight", &completions)
            .context("the completions can't be written")?;
    }
    Ok(DONE)
}
