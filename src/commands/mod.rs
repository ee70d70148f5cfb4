//! One file a verb: reads, calls, writes; no arithmetic.

pub(crate) mod accuracy;
pub(crate) mod auto;
pub(crate) mod calibrate;
pub(crate) mod doctor;
mod entry;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inputs;
pub(crate) mod interrupt;
pub(crate) mod launch;
pub(crate) mod output;
pub(crate) mod pages;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod report;
pub(crate) mod sweep;
pub(crate) mod trial;

pub use self::entry::main;
pub(crate) use self::output::Answer;
use self::output::Output;
use crate::cli::report::ReportOf;
use crate::cli::{Cli, Command};
use crate::error::Result;

/// Does what was typed.
pub(crate) fn run(cli: &Cli) -> Result<Answer> {
    let output = Output::new(cli.output);
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
