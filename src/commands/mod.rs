//! One file a verb: reads, calls, writes. No arithmetic here.

pub mod auto;
pub mod bench;
pub mod calibrate;
pub mod console;
pub mod launch;
pub mod report;
pub mod trial;

use crate::cli::{Cli, Command};
use crate::error::Result;

pub use console::Console;

/// Does what was asked.
pub fn run(cli: &Cli) -> Result<()> {
    let console = Console { json: cli.json, quiet: cli.quiet, silent: false };
    match &cli.command {
        Command::Calibrate(args) => calibrate::run(args, console),
        Command::Launch(args) => launch::run(args, console).map(|_| ()),
        Command::Auto(args) => auto::run(args, console),
        Command::Report(args) => report::run(args, console).map(|_| ()),
        Command::Trial(args) => trial::run(args),
    }
}
