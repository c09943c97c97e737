//! `sluice completions SHELL` and `sluice man [COMMAND]`: shell completions and manual pages.

use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use sluice::error::{ConfigError, Error};

use super::print::print_as_is;

/// Arguments of `sluice completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell to complete in.
    shell: Shell,
}

/// Supported shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Arguments of `sluice man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Command whose page to print; by default sluice's own.
    command: Option<String>,
}

/// Print the script that completes the commands and options of `sluice`.
pub fn completions(args: &CompletionsArgs, sluice: &mut Command) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, sluice, "sluice", &mut script);
    print_as_is(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Print a manual page of `sluice`, as roff.
pub fn man(args: &ManArgs, mut sluice: Command) -> anyhow::Result<ExitCode> {
    sluice.build();
    let command = match &args.command {
        None => sluice,
        Some(name) => sluice.find_subcommand(name).cloned().ok_or_else(|| {
            let message = format!("{name} is not a command of sluice");
            Error::from(ConfigError::Argument { argument: "COMMAND", message })
        })?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print_as_is(&page)?;
    Ok(ExitCode::SUCCESS)
}
