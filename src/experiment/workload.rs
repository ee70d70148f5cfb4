//! What a run is about: its model, and the lengths of its data.

use crate::checkpoint::source::ModelSource;
use crate::data::lengths::{Counted, lengths, lengths_of_run};
use crate::error::Result;
use crate::spec::model::{Model, ModelSpec};
use crate::spec::run::{RunConfig, TokenLengths};

/// Model and data lengths of a run.
pub(crate) struct Workload {
    /// Architecture of the model.
    pub spec: ModelSpec,
    /// Token lengths of the training and validation rows.
    pub lengths: TokenLengths,
}

impl Workload {
    /// The workload of a run, whose model and data must be there.
    pub(crate) fn of(run: &RunConfig) -> Result<Self> {
        let model = found(run)?;
        let lengths = lengths(&model, &run.data)?;
        Ok(Self { spec: model.spec, lengths })
    }

    /// The workload of a run that is to be trained, and a note about the model and its rows, if any.
    pub(crate) fn to_train(run: &RunConfig) -> Result<(Self, Option<String>)> {
        let model = found(run)?;
        let Counted { lengths, note } = lengths_of_run(&model, run)?;
        let note = model.understood.into_iter().chain(note).reduce(|a, b| format!("{a}\n{b}"));
        Ok((Self { spec: model.spec, lengths }, note))
    }

    /// The same with every row padded to the greatest length, as trials do it.
    pub(crate) fn padded(&self) -> Self {
        Self { spec: self.spec.clone(), lengths: TokenLengths::filled() }
    }
}

/// The model of a run, whose files must be there.
fn found(run: &RunConfig) -> Result<Model> {
    Ok(Model::new(&run.model, ModelSource::find(&run.model)?.spec()?))
}
