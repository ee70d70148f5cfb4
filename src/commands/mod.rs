//! One file a verb: reads, calls, writes; no arithmetic.

pub mod accuracy;
pub mod auto;
pub mod calibrate;
pub mod doctor;
pub mod export;
pub mod generate;
pub mod inputs;
pub mod interrupt;
pub mod launch;
pub mod output;
pub mod pages;
pub mod plan;
pub mod predict;
pub mod report;
pub mod sweep;
pub mod trial;

pub use self::output::Answer;
use self::output::Output;
use crate::cli::report::ReportOf;
use crate::cli::{Cli, Command};
use crate::error::Result;

/// Does what was typed.
pub fn run(cli: &Cli) -> Result<Answer> {
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
