//! One job, run in a child process under hard limits, and what was seen of it.
//!
//! A child, because memory that a finished run has left behind would count in the next, because a
//! run that dies must not take us with it, and because a process can be ended and a thread cannot.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::measure::child::{ChildGroup, End, Heard};
use crate::measure::failure::Failure;
use crate::measure::room::{LOOK, Room, Spare};
use crate::measure::summary;
use crate::spec::record::{Job, Outcome, Step};
use crate::trainer::TrainEvent;
use crate::units::{Bytes, Seconds};

/// Share of the limit that a killed process had taken, from which on it was killed for that.
const NEAR_THE_LIMIT: f64 = 0.9;

/// Conditions on which a trial is stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Footprint above which the child is ended, bytes.
    pub memory: Bytes,
    /// Wall time after which a trial that has measured a step ends.
    pub time: Seconds,
    /// Time without an event after which the trial is given up: it hangs, or its steps are too long.
    pub silence: Seconds,
    /// Fewest steps to measure after the warm-up.
    pub min_steps: usize,
    /// Most steps to measure after the warm-up.
    pub max_steps: usize,
    /// Least time of all measured steps together, however alike the first few are.
    pub min_time: Seconds,
    /// Relative standard error of the median step time at which enough is measured.
    pub precision: f64,
}

/// A line that a trial writes to its stdout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    /// An event of the training, such as a finished step.
    Event(TrainEvent),
    /// How the run ended: the last line.
    Outcome(Outcome),
}

/// What was observed of a trial from outside.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observed {
    /// The [`TrainEvent::Ready`] event, if the trial came that far.
    pub ready: Option<TrainEvent>,
    /// All steps of the trial, the warm-up included.
    pub steps: Vec<Step>,
    /// How the trial ended.
    pub outcome: Outcome,
    /// Highest footprint seen from outside or reported by the trial, bytes.
    pub footprint: Bytes,
    /// Number of lines that were not recognised.
    pub garbage: usize,
    /// Time from the start of the child to its end.
    pub wall_time: Seconds,
}

/// Runs `job` in `command`, which reads it as a line of JSON from stdin and writes [`Line`]s to stdout.
///
/// One at a time: two trials at once would measure each other. `interrupted` ends the trial early;
/// what was measured until then is returned.
pub(crate) fn observe(
    command: &mut Command,
    job: &Job,
    limits: &Limits,
    interrupted: &AtomicBool,
    on: &mut dyn FnMut(&TrainEvent),
) -> Result<Observed> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let input = serde_json::to_string(job).map_err(|e| Error::Serialise { what: "job", reason: e.to_string() })?;
    let engine = job.config.engine.name();
    let child = ChildGroup::start(command, &input)
        .map_err(|e| Error::Engine { engine: engine.into(), reason: format!("the trial could not be started: {e}") })?;
    let mut watch = Watch::new(child, limits);
    let outcome = loop {
        if let Some(outcome) = watch.look(interrupted, on) {
            break outcome;
        }
    };
    watch.child.end();
    if let (Outcome::Crashed { reason, .. }, None) = (&outcome, &watch.ready) {
        // It never came to training: there is nothing to learn about the machine, but something to mend.
        if reason.starts_with("exit code") {
            return Err(Error::Engine { engine: engine.into(), reason: reason.clone() });
        }
    }
    Ok(watch.finish(outcome))
}

struct Watch<'a> {
    child: ChildGroup,
    limits: &'a Limits,
    started: Instant,
    heard: Instant,
    looked: Option<Instant>,
    room: Room,
    /// Spare memory of the system when it was last asked.
    spare: Option<Spare>,
    kills_before: u64,
    ready: Option<TrainEvent>,
    steps: Vec<Step>,
    footprint: Bytes,
    garbage: usize,
    told: Option<Outcome>,
}

impl<'a> Watch<'a> {
    fn new(child: ChildGroup, limits: &'a Limits) -> Self {
        let (now, room) = (Instant::now(), Room::here());
        Self {
            child,
            limits,
            started: now,
            heard: now,
            looked: None,
            spare: None,
            kills_before: room.oom_kills(),
            room,
            ready: None,
            steps: Vec::new(),
            footprint: Bytes(0),
            garbage: 0,
            told: None,
        }
    }

    /// Hears one line, looks at the memory and the clock, and says whether that was the end.
    fn look(&mut self, interrupted: &AtomicBool, on: &mut dyn FnMut(&TrainEvent)) -> Option<Outcome> {
        match self.child.hear(self.spare.map_or(LOOK, Spare::pause)) {
            Heard::Line(line) => self.take(&line, on),
            Heard::Silence => {}
            Heard::End => return Some(self.ended()),
        }
        let at_step = self.steps.len();
        if self.over_memory() {
            return Some(Outcome::OutOfMemory { at_step });
        }
        if self.told.is_some() {
            return None; // Only its end is missing.
        }
        if interrupted.load(Ordering::Relaxed) || self.enough() {
            return Some(Outcome::Stopped { at_step });
        }
        if self.heard.elapsed().as_secs_f64() > self.limits.silence.0 {
            return Some(Outcome::TimedOut { at_step });
        }
        let late = self.started.elapsed().as_secs_f64() > self.limits.time.0;
        (late && at_step > summary::WARMUP_STEPS).then_some(Outcome::Stopped { at_step })
    }

    fn take(&mut self, line: &str, on: &mut dyn FnMut(&TrainEvent)) {
        match serde_json::from_str(line) {
            Ok(Line::Event(event)) if plausible(&event) => {
                self.heard = Instant::now();
                on(&event);
                match event {
                    TrainEvent::Step(step) => {
                        self.footprint = self.footprint.max(step.footprint_bytes);
                        self.steps.push(step);
                    }
                    TrainEvent::Ready { .. } => self.ready = Some(event),
                    _ => {}
                }
            }
            Ok(Line::Outcome(outcome)) => self.told = Some(outcome),
            _ if line.trim().is_empty() => {}
            _ => self.garbage += 1,
        }
    }

    /// Over the limit, or so near to the end of all memory that the system would end it, or somebody else, any moment.
    fn over_memory(&mut self) -> bool {
        // This is asked at every line and as often as little is left, and takes no time; the other goes through all
        // processes that there are.
        self.spare = self.room.spare();
        let gone = self.spare.is_some_and(Spare::is_gone);
        if gone || self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
            self.looked = Some(Instant::now());
            self.footprint = self.footprint.max(self.child.footprint().highest());
        }
        gone || self.footprint > self.limits.memory
    }

    /// Whether enough steps are measured: as many as asked, or the median known well.
    fn enough(&self) -> bool {
        let measured = self.steps.len().saturating_sub(summary::WARMUP_STEPS);
        let time: f64 = summary::counted(&self.steps).iter().map(|s| s.step_time_s).sum();
        measured >= self.limits.max_steps
            || (measured >= self.limits.min_steps.max(2)
                && time >= self.limits.min_time.0
                && summary::time(&self.steps).is_some_and(|t| t.relative_error <= self.limits.precision))
    }

    /// The outcome of a child that ended by itself.
    fn ended(&mut self) -> Outcome {
        let at_step = self.steps.len();
        let end = self.child.wait();
        match (self.told.take(), end) {
            // Its own word counts: a trial that ran out of memory may say so and leave with an error code.
            (Some(outcome), _) => outcome,
            (None, None) => Outcome::Crashed { at_step, reason: "it ended without a report".into() },
            (None, Some(end)) => {
                let words = self.child.last_words();
                let failures: Vec<Failure> = words.iter().filter_map(|line| Failure::of(line)).collect();
                if failures.contains(&Failure::OutOfMemory) || (end.killed && self.killed_for_memory()) {
                    return Outcome::OutOfMemory { at_step };
                }
                // Ours says what was wrong and then what to do about it; others say what was wrong last.
                let said =
                    words.iter().rev().find_map(|line| line.strip_prefix("error: ")).or(words.last().map(|l| &**l));
                let said = failures.first().map(|failure| failure.what()).or(said);
                let last = said.map_or_else(String::new, |line| format!(": {line}"));
                let End { how, .. } = end;
                Outcome::Crashed { at_step, reason: format!("{how}{last}") }
            }
        }
    }

    /// Somebody killed it. It was the kernel, for want of memory, where the kernel counts one more of those; it most
    /// likely was for that where little of its limit was left.
    fn killed_for_memory(&self) -> bool {
        self.room.oom_kills() > self.kills_before || self.footprint > self.limits.memory.scale(NEAR_THE_LIMIT)
    }

    fn finish(self, outcome: Outcome) -> Observed {
        Observed {
            ready: self.ready,
            steps: self.steps,
            outcome,
            footprint: self.footprint,
            garbage: self.garbage,
            wall_time: Seconds(self.started.elapsed().as_secs_f64()),
        }
    }
}

/// A step that took no time, or whose figures are no numbers, is garbage however well it parses.
fn plausible(event: &TrainEvent) -> bool {
    match event {
        TrainEvent::Step(s) => s.step_time_s.is_finite() && s.step_time_s > 0.0 && s.tokens_per_s.is_finite(),
        _ => true,
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
