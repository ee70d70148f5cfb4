//! One file a verb: reads, calls, writes; no arithmetic.

pub mod common;
pub mod doctor;
pub mod plan;
pub mod predict;

use std::io::{self, Write};

use serde::Serialize;

use crate::cli::{Cli, Command, OutputArgs};
use crate::error::{Error, Result};

/// Whether the answer was yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1.
    No,
}

/// Does what was typed.
pub fn run(cli: &Cli) -> Result<Answer> {
    let output = Output { args: cli.output };
    match &cli.command {
        Command::Plan(args) => plan::run(args, &output),
        Command::Predict(args) => predict::run(args, &output),
        Command::Doctor(args) => doctor::run(args, &output),
    }
}

/// Columns assumed where there is no terminal, and used at most.
const WIDTH: usize = 80;
const WIDEST: usize = 110;

/// Where answers go: data to stdout, everything else to stderr.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    args: OutputArgs,
}

impl Output {
    /// An answer: `text` for people, `value` for machines.
    pub fn answer(&self, value: &impl Serialize, text: impl FnOnce(usize) -> String) -> Result<()> {
        let text = if self.args.json {
            let json = serde_json::to_string_pretty(value);
            json.map_err(|e| Error::Serialise { what: "the answer", reason: e.to_string() })? + "\n"
        } else {
            text(terminal_size::terminal_size().map_or(WIDTH, |(w, _)| usize::from(w.0).clamp(60, WIDEST)))
        };
        let mut stdout = anstream::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(closed)
    }

    /// A remark beside the answer.
    pub fn note(&self, text: &str) {
        if !self.args.quiet {
            // A closed stderr is no reason to fail.
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }
}

fn closed(source: io::Error) -> Error {
    Error::Write { path: "standard output".into(), source }
}
