//! The `headroom` command: parse, run, and say what went wrong.

use std::error::Error as _;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Parser;
use headroom::cli::Cli;
use headroom::commands::{self, Answer, interrupt};
use headroom::error::Error;

fn main() -> ExitCode {
    match commands::run(&Cli::parse()) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        // Whoever read the answer has seen enough of it.
        Err(Error::Write { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::from(match error {
                Error::Interrupted { .. } => interrupt::exit_code(),
                _ => error.exit_code(),
            })
        }
    }
}

/// `error:` what happened, its causes indented, and `hint:` what to do.
fn say(error: &Error) {
    let bold = |colour: AnsiColor| Style::new().bold().fg_color(Some(colour.into()));
    let (red, cyan) = (bold(AnsiColor::Red), bold(AnsiColor::Cyan));
    let mut text = format!("{red}error:{red:#} {error}\n");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!("  {inner}\n");
        cause = inner.source();
    }
    if let Some(hint) = error.hint() {
        text += &format!("\n{cyan}hint:{cyan:#} {hint}\n");
    }
    // With stderr closed there is nobody left to tell.
    let _ = anstream::stderr().write_all(text.as_bytes());
}
