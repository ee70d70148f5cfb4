//! The trainer of an engine.

use std::path::Path;

use crate::error::{Error, Result};
use crate::spec::run::Engine;
use crate::store;
use crate::trainer::Trainer;
use crate::trainer::candle::CandleTrainer;
use crate::trainer::scripted::{Script, ScriptedTrainer};

/// The trainer of an engine, or one that plays the script in its place.
pub(crate) fn trainer(engine: Engine, script: Option<&Path>) -> Result<Box<dyn Trainer>> {
    if let Some(path) = script {
        return Ok(Box::new(ScriptedTrainer::new(store::load_json::<Script>(path)?, engine)));
    }
    match engine {
        Engine::Candle => Ok(Box::new(CandleTrainer)),
        Engine::MlxLm => {
            let reason = "not supported for training yet; `plan` and `predict` work".into();
            Err(Error::Engine { engine: engine.name().into(), reason })
        }
    }
}
