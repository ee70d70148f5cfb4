//! An optimizer step as a sum of terms.

use serde::{Deserialize, Serialize};

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// What.
    pub name: String,
    /// Floating-point operations; a multiply-add counts as two. Those that a waiting thread could have done count too.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Kernels started.
    pub launches: f64,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// What is done.
    pub terms: Vec<Term>,
    /// Tokens of the examples.
    pub tokens: f64,
    /// Rows worked on, padding included.
    pub rows: f64,
}

impl StepCost {
    /// Sum of the FLOPs.
    pub fn flops(&self) -> f64 {
        self.terms.iter().map(|t| t.flops).sum()
    }

    /// Sum of the bytes.
    pub fn bytes(&self) -> f64 {
        self.terms.iter().map(|t| t.bytes).sum()
    }

    /// Sum of the launches.
    pub fn launches(&self) -> f64 {
        self.terms.iter().map(|t| t.launches).sum()
    }
}
