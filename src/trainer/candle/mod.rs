//! Our own trainer: LoRA on a frozen base, layer by layer, with a backward pass written by hand.

pub(crate) mod generate;
pub mod nn;
pub mod optim;
pub mod replay;
pub(crate) mod resume;
pub(crate) mod self_test;
mod session;

use std::time::Instant;

use self::session::Session;
use crate::error::Result;
use crate::spec::record::{Job, Outcome};
use crate::spec::run::Engine;
use crate::trainer::{Flow, TrainEvent, Trainer};
use crate::units::Seconds;

/// The candle version this is built on, part of the key of a calibration; a test holds it to Cargo.lock.
const CANDLE: &str = "0.11.1";

/// Headroom's own LoRA trainer, built on candle.
#[derive(Debug, Default)]
pub struct CandleTrainer;

impl Trainer for CandleTrainer {
    fn engine(&self) -> Engine {
        Engine::Candle
    }

    fn version(&self) -> String {
        format!("{}+candle-{CANDLE}", env!("CARGO_PKG_VERSION"))
    }

    fn train(&mut self, job: &Job, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Outcome> {
        let started = Instant::now();
        let mut session = Session::open(job)?;
        let (params, base) = session.parameters();
        if let Some(resumed) = session.earlier.resumed.take() {
            on(&resumed);
        }
        let flow = on(&TrainEvent::Ready {
            trainable_params: params,
            total_params: params + base,
            total_steps: session.total_steps,
            done_steps: session.optimizer.steps,
            load_time: Seconds(started.elapsed().as_secs_f64()),
        });
        if flow != Flow::Continue {
            return Ok(Outcome::Stopped { at_step: session.optimizer.steps });
        }
        session.run(job, on)
    }
}

#[cfg(test)]
mod tests {
    use super::CANDLE;

    /// Measurements of one candle must not be taken for those of another.
    #[test]
    fn the_version_of_candle_is_that_of_cargo_lock() {
        let lock: toml::Table = toml::from_str(include_str!("../../../Cargo.lock")).unwrap();
        let packages = lock["package"].as_array().unwrap().iter();
        let versions: Vec<&str> = packages
            .filter(|p| p["name"].as_str().is_some_and(|name| name.starts_with("candle-") && name != "candle-ug"))
            .map(|p| p["version"].as_str().unwrap())
            .collect();
        assert!(versions.len() >= 3, "{versions:?}");
        assert!(versions.iter().all(|v| *v == CANDLE), "{versions:?} in Cargo.lock, {CANDLE} here");
    }
}
