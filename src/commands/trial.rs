//! `headroom trial` (hidden): one job from stdin, what happens as JSON lines on stdout.
//!
//! By hand (`headroom trial < job.json`) the job is all of stdin. With `--tethered`, as the other commands start it, the
//! job is its first line and stdin stays open for as long as whoever started it lives; when it is closed the trial ends
//! at once, in the middle of its step, so that it never outlives them with its memory.

use std::io::{BufRead, Read, Write};

use crate::cli::measure::TrialArgs;
use crate::error::{Error, Result};
use crate::experiment::engine;
use crate::measure::observe::Line;
use crate::spec::record::Job;
use crate::trainer::{Flow, TrainEvent};

/// Exit code of a trial that was left alone; there is nobody to read it.
const LEFT_ALONE: i32 = 1;

/// Runs `headroom trial`: reads a job from stdin and runs it, reporting to stdout.
pub(crate) fn run(args: &TrialArgs) -> Result<()> {
    let failed = |reason: String| Error::Engine { engine: "trial".into(), reason };
    let mut text = String::new();
    let mut stdin = std::io::stdin().lock();
    let read = if args.tethered { stdin.read_line(&mut text) } else { stdin.read_to_string(&mut text) };
    read.map_err(|e| failed(format!("the job could not be read: {e}")))?;
    drop(stdin);
    let job: Job = serde_json::from_str(&text).map_err(|e| failed(format!("stdin is not a job: {e}")))?;
    if args.tethered {
        end_with_stdin();
    }
    let mut trainer = engine::trainer(job.config.engine, args.script.as_deref())?;
    let outcome = trainer.train(&job, &mut |event| {
        if *event == TrainEvent::Working {
            return Flow::Continue;
        }
        // Whoever started us has gone: there is nobody to train for.
        if say(&Line::Event(event.clone())).is_ok() { Flow::Continue } else { Flow::Stop }
    })?;
    say(&Line::Outcome(outcome)).map_err(|e| failed(e.to_string()))
}

/// Ends this process when there is no more of stdin.
fn end_with_stdin() {
    std::thread::spawn(|| {
        // Nothing more is sent: this returns when the other end is closed.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(LEFT_ALONE);
    });
}

fn say(line: &Line) -> std::io::Result<()> {
    let text = serde_json::to_string(line)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
