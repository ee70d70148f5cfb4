//! `headroom trial` (hidden): one job from stdin, what happens as JSON lines on stdout.

use std::io::{Read, Write};

use crate::cli::TrialArgs;
use crate::commands::bench;
use crate::error::{Error, Result};
use crate::measure::observe::Line;
use crate::trainer::{Flow, Job, TrainEvent};

/// Runs it.
pub fn run(args: &TrialArgs) -> Result<()> {
    let failed = |reason: String| Error::Engine { engine: "trial".into(), reason };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| failed(format!("the job could not be read: {e}")))?;
    let job: Job = serde_json::from_str(&text).map_err(|e| failed(format!("stdin is not a job: {e}")))?;
    let mut trainer = bench::trainer(job.config.engine, args.script.as_deref())?;
    let outcome = trainer.train(&job, &mut |event| {
        if *event == TrainEvent::Working {
            return Flow::Continue;
        }
        // Whoever started us has gone: there is nobody to train for.
        if say(&Line::Event(event.clone())).is_ok() { Flow::Continue } else { Flow::Stop }
    })?;
    say(&Line::Outcome(outcome)).map_err(|e| failed(e.to_string()))
}

fn say(line: &Line) -> std::io::Result<()> {
    let text = serde_json::to_string(line)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
