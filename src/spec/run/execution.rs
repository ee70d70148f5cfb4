//! How a run is executed: what changes memory and speed, and never what is learned.

use serde::{Deserialize, Serialize};

use crate::spec::model::Dtype;
use crate::spec::model::storage::Weights;

/// Where the base weights live while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// In memory.
    #[default]
    Resident,
}

/// How it is run; none of it changes the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Execution {
    /// Examples per micro-batch; a divisor of `effective_batch_size`.
    pub batch_size: usize,
    /// Keep each block's input only, and run the block again in backward.
    pub grad_checkpoint: bool,
    /// Format of the base weights.
    pub weights: Weights,
    /// Format that activations are computed in.
    pub compute_dtype: Dtype,
    /// Tokens whose logits exist at one time.
    pub loss_chunk: usize,
    /// Query rows whose scores exist at one time.
    pub attention_chunk: usize,
    /// Rows of a block's MLP that exist at one time.
    pub mlp_chunk: usize,
    /// Where the base lives.
    pub residency: Residency,
}

impl Default for Execution {
    fn default() -> Self {
        Self {
            batch_size: 1,
            grad_checkpoint: true,
            weights: Weights::Stored,
            compute_dtype: Dtype::F32,
            loss_chunk: 512,
            attention_chunk: 256,
            mlp_chunk: 1024,
            residency: Residency::Resident,
        }
    }
}
