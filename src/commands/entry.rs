//! From the command line to the exit code: parse, dispatch, and say what went wrong.

use std::error::Error as _;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Parser;

use crate::cli::report::ReportOf;
use crate::cli::{Cli, Command};
use crate::commands::output::{Answer, Output};
use crate::commands::{
    accuracy, auto, calibrate, doctor, export, generate, interrupt, launch, plan, predict, report, sweep, trial,
};
use crate::error::{Error, Result};
use crate::measure::devices;
use crate::report::layout::printable;

/// Does what was typed; the exit code is 0 for yes, 1 for no, 2 for an error, and 128 and its number after a signal.
pub fn main() -> ExitCode {
    match run(&Cli::try_parse().unwrap_or_else(|error| misunderstood(&error))) {
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

/// Runs the command that was typed.
fn run(cli: &Cli) -> Result<Answer> {
    let output = Output::new(cli.output);
    if let Some(args) = cli.command.device() {
        devices::choose(args.device)?;
        if let Some(reason) = devices::why_not_metal().filter(|_| args.device.is_none() && cli.command.computes()) {
            output.note(&format!("the CPU computes: Metal is not used, because {reason}"));
        }
    }
    match &cli.command {
        Command::Plan(args) => plan::run(args, &output),
        Command::Predict(args) => predict::run(args, &output),
        Command::Sweep(args) => sweep::run(args, &output),
        Command::Doctor(args) => doctor::run(args, &output),
        Command::Calibrate(args) => calibrate::run(args, &output).map(|_| Answer::Yes),
        Command::Launch(args) => launch::run(args, &output).map(|_| Answer::Yes),
        Command::Auto(args) => auto::run(args, &output).map(|_| Answer::Yes),
        Command::Report(args) => match &args.of {
            Some(ReportOf::Accuracy(args)) => accuracy::run(args, &output),
            Some(ReportOf::Guides(args)) => accuracy::guides(args, &output),
            None => report::run(args, &output).map(|_| Answer::Yes),
        },
        Command::Generate(args) => generate::run(args, &output),
        Command::Export(args) => export::run(args, &output),
        Command::Trial(args) => trial::run(args).map(|()| Answer::Yes),
    }
}

/// What was typed is no command, or asks for help. clap shows what was typed as it is: where that holds control characters
/// it is shown without colours.
fn misunderstood(error: &clap::Error) -> ! {
    let typed = |arg: std::ffi::OsString| arg.to_string_lossy().into_owned();
    if std::env::args_os().map(typed).all(|arg| printable(&arg) == arg) {
        error.exit();
    }
    let _ = anstream::stderr().write_all(printable(&error.render().to_string()).as_bytes());
    std::process::exit(error.exit_code());
}

/// `error:` what happened, its causes indented, and `hint:` what to do.
fn say(error: &Error) {
    let bold = |colour: AnsiColor| Style::new().bold().fg_color(Some(colour.into()));
    let (red, cyan) = (bold(AnsiColor::Red), bold(AnsiColor::Cyan));
    let mut text = format!("{red}error:{red:#} {}\n", printable(&error.to_string()));
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!("  {}\n", printable(&inner.to_string()));
        cause = inner.source();
    }
    if let Some(hint) = error.hint() {
        text += &format!("\n{cyan}hint:{cyan:#} {}\n", printable(&hint));
    }
    // With stderr closed there is nobody left to tell.
    let _ = anstream::stderr().write_all(text.as_bytes());
}
