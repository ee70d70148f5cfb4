//! The `headroom` command.

use std::process::ExitCode;

use clap::Parser;
use headroom::cli::Cli;
use headroom::commands;

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    let Err(error) = commands::run(&Cli::parse()) else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        eprintln!("  caused by: {inner}");
        cause = inner.source();
    }
    if let Some(hint) = error.hint() {
        eprintln!("\nhint: {hint}");
    }
    ExitCode::from(error.exit_code())
}
