//! One file a verb: reads, calls, writes; no arithmetic.

pub mod accuracy;
pub mod auto;
pub mod bench;
pub mod calibrate;
pub mod common;
pub mod doctor;
pub mod export;
pub mod generate;
pub mod interrupt;
pub mod launch;
pub mod pages;
pub mod plan;
pub mod predict;
pub mod report;
pub mod sweep;
pub mod trial;

use std::io::{self, Write};
use std::ops::Deref;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{Cli, Command, OutputArgs, ReportOf};
use crate::error::{Error, Result};
use crate::report::layout::printable_json;

pub use crate::report::layout::printable;

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
    crate::trainer::memory::keep_freed_memory();
    crate::trainer::candle::compute_here();
    let output = Output { args: cli.output, silent: false };
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

/// Columns assumed where there is no terminal, and used at most.
const WIDTH: usize = 80;
const WIDEST: usize = 110;

/// Where answers go: data to stdout, everything else to stderr.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    args: OutputArgs,
    /// A step of a larger answer: nothing on stdout.
    silent: bool,
}

impl Output {
    /// An answer: `text` for people, `value` for machines.
    pub fn answer(&self, value: &impl Serialize, text: impl FnOnce(usize) -> String) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        let text = if self.args.json {
            let json = serde_json::to_string_pretty(value);
            let json = json.map_err(|e| Error::Serialise { what: "the answer", reason: e.to_string() })?;
            printable_json(&json) + "\n"
        } else {
            let width = terminal_size::terminal_size().map_or(WIDTH, |(w, _)| usize::from(w.0).clamp(60, WIDEST));
            printable(&text(width))
        };
        print(&text)
    }

    /// A part of a longer answer, for people; machines get the whole at its end, by [`Output::data`].
    pub fn part(&self, text: &str) -> Result<()> {
        if self.args.json || self.silent { Ok(()) } else { print(&printable(&format!("{text}\n"))) }
    }

    /// The whole of an answer whose parts people have seen, for machines.
    pub fn data(&self, value: &impl Serialize) -> Result<()> {
        if self.args.json { self.answer(value, |_| String::new()) } else { Ok(()) }
    }

    /// For a step of a larger answer: where machines listen, it says nothing.
    pub fn step(&self) -> Self {
        Self { silent: self.args.json, ..*self }
    }

    /// A bar on stderr over `length` steps; none where nobody looks.
    pub fn bar(&self, length: u64) -> Bar {
        if self.args.quiet {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(length); // draws on stderr, and not at all where that is no terminal
        Bar(match ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    /// A remark beside the answer.
    pub fn note(&self, text: &str) {
        if !self.args.quiet {
            // A closed stderr is no reason to fail.
            let _ = writeln!(anstream::stderr(), "{}", printable(text));
        }
    }
}

/// A progress bar whose message may be any text.
#[derive(Clone, Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// What is being done.
    pub fn set_message(&self, text: impl AsRef<str>) {
        self.0.set_message(printable(text.as_ref()));
    }
}

impl Deref for Bar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.0
    }
}

/// Text that [`printable`] has seen, or JSON that [`printable_json`] has.
fn print(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(closed)
}

fn closed(source: io::Error) -> Error {
    Error::Write { path: "standard output".into(), source }
}
