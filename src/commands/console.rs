//! The terminal: data on stdout, everything else on stderr, and a Ctrl-C that is asked about.

use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::{Error, Result};

/// How to speak.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console {
    /// For machines.
    pub json: bool,
    /// Only answers.
    pub quiet: bool,
    /// Not even answers: a step of a larger answer.
    pub silent: bool,
}

impl Console {
    /// A part of the answer, for people; nothing when machines listen.
    pub fn answer(self, text: &str) {
        if !self.json && !self.silent {
            // A reader that has gone away (`| head`) is no error of ours.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// The answer, for machines; nothing when people read.
    pub fn data<T: Serialize>(self, value: &T) -> Result<()> {
        if self.json && !self.silent {
            let text = serde_json::to_string_pretty(value)
                .map_err(|e| Error::Serialise { what: "answer", reason: e.to_string() })?;
            let _ = writeln!(std::io::stdout(), "{text}");
        }
        Ok(())
    }

    /// Something by the way.
    pub fn note(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// A bar on stderr over `length` steps; none when nobody looks.
    pub fn bar(self, length: u64) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(length); // draws on stderr, and not at all where that is no terminal
        match ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Set by the first Ctrl-C (or SIGTERM) from the first call of this on. The second ends the process at once.
pub fn interrupted() -> &'static AtomicBool {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // Where a handler cannot be had, Ctrl-C ends the process as it always does.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
    });
    &INTERRUPTED
}
