//! What a run is about: its model, and the lengths of its data.

use crate::checkpoint::source::ModelSource;
use crate::data::lengths::{Counted, lengths, lengths_of_run};
use crate::error::Result;
use crate::spec::model::{Model, ModelSpec};
use crate::spec::run::{RunConfig, TokenLengths};

/// What a run is about.
pub(crate) struct Workload {
    /// The model.
    pub spec: ModelSpec,
    /// Lengths of its training rows.
    pub lengths: TokenLengths,
}

impl Workload {
    /// Of a run: model and data must be there.
    pub(crate) fn of(run: &RunConfig) -> Result<Self> {
        let model = found(run)?;
        let lengths = lengths(&model, &run.data)?;
        Ok(Self { spec: model.spec, lengths })
    }

    /// Of a run that is to be done, and what is to be said of its rows.
    pub(crate) fn to_train(run: &RunConfig) -> Result<(Self, Option<String>)> {
        let model = found(run)?;
        let Counted { lengths, note } = lengths_of_run(&model, run)?;
        Ok((Self { spec: model.spec, lengths }, note))
    }

    /// The same with every row padded to the greatest length, as trials do it.
    pub(crate) fn padded(&self) -> Self {
        Self { spec: self.spec.clone(), lengths: TokenLengths::filled() }
    }
}

/// The model of a run, whose files must be there.
fn found(run: &RunConfig) -> Result<Model> {
    Ok(Model { name: run.model.clone(), spec: ModelSource::find(&run.model)?.spec()? })
}
