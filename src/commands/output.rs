//! Where answers go: data to stdout, everything else to stderr.

use std::io::{self, Write};
use std::ops::Deref;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::OutputArgs;
use crate::error::{Error, Result};
use crate::report::layout::{printable, printable_json};

/// Answer of a command, which decides its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The answer is yes: exit code 0.
    Yes,
    /// The answer is no: exit code 1.
    No,
}

/// Columns assumed where there is no terminal, and used at most.
const WIDTH: usize = 80;
const WIDEST: usize = 110;

/// Where answers go: data to stdout, everything else to stderr.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    args: OutputArgs,
    /// Whether this is a step of a larger answer that prints nothing on stdout.
    silent: bool,
}

impl Output {
    /// An output with the options of the command line.
    pub(crate) fn new(args: OutputArgs) -> Self {
        Self { args, silent: false }
    }

    /// An answer: `text` for people, `value` for machines.
    pub(crate) fn answer(&self, value: &impl Serialize, text: impl FnOnce(usize) -> String) -> Result<()> {
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
    pub(crate) fn part(&self, text: &str) -> Result<()> {
        if self.args.json || self.silent { Ok(()) } else { print(&printable(&format!("{text}\n"))) }
    }

    /// The whole of an answer whose parts people have seen, for machines.
    pub(crate) fn data(&self, value: &impl Serialize) -> Result<()> {
        if self.args.json { self.answer(value, |_| String::new()) } else { Ok(()) }
    }

    /// For a step of a larger answer: where machines listen, it says nothing.
    pub(crate) fn step(&self) -> Self {
        Self { silent: self.args.json, ..*self }
    }

    /// A bar on stderr over `length` steps; none where nobody looks.
    pub(crate) fn bar(&self, length: u64) -> Bar {
        if self.args.quiet {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(length); // draws on stderr, and not at all where that is no terminal
        Bar(match ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    /// Prints a note on stderr, unless `--quiet` is given.
    pub(crate) fn note(&self, text: &str) {
        if !self.args.quiet {
            // A closed stderr is no reason to fail.
            let _ = writeln!(anstream::stderr(), "{}", printable(text));
        }
    }
}

/// A progress bar whose message may be any text.
#[derive(Clone, Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Sets the text beside the progress bar.
    pub(crate) fn set_message(&self, text: impl AsRef<str>) {
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
