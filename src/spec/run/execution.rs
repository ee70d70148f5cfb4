//! How a run is executed: what changes memory and speed, and never what is learned.

use serde::{Deserialize, Serialize};

use crate::spec::model::Dtype;
use crate::spec::model::Weights;

/// Where the base weights live during a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// In memory for the whole run.
    #[default]
    Resident,
}

/// How a run is executed; none of these settings changes the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Execution {
    /// Examples per micro-batch; a divisor of `effective_batch_size`.
    pub batch_size: usize,
    /// Activation checkpointing: keep only each block's input, and run the block again in backward.
    pub grad_checkpoint: bool,
    /// Number format in which the base weights are held.
    pub weights: Weights,
    /// Number format that activations are computed in.
    pub compute_dtype: Dtype,
    /// Number of tokens whose logits exist at one time.
    pub loss_chunk: usize,
    /// Number of query rows whose attention scores exist at one time.
    pub attention_chunk: usize,
    /// Number of rows that a block's MLP works on at one time.
    pub mlp_chunk: usize,
    /// Where the base weights live during the run.
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
