//! An optimizer step as a sum of terms.

use serde::{Deserialize, Serialize};

/// One kind of work in an optimizer step, with its cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// Name of the work, such as `forward`, `attention` or `optimizer`.
    pub name: String,
    /// Floating-point operations; a multiply-add counts as two. Those that a waiting thread could have done count too.
    pub flops: f64,
    /// Memory traffic: bytes read and written.
    pub bytes: f64,
    /// Number of kernels launched.
    pub launches: f64,
}

/// Cost of one optimizer step, term by term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// Kinds of work in the step, with the cost of each.
    pub terms: Vec<Term>,
    /// Tokens of the examples of the step, without padding.
    pub tokens: f64,
    /// Tokens processed in the step, padding included: rows of its matrices.
    pub rows: f64,
}

impl StepCost {
    /// Floating-point operations of all terms together.
    pub fn flops(&self) -> f64 {
        self.terms.iter().map(|t| t.flops).sum()
    }

    /// Memory traffic of all terms together, bytes.
    pub fn bytes(&self) -> f64 {
        self.terms.iter().map(|t| t.bytes).sum()
    }

    /// Kernel launches of all terms together.
    pub fn launches(&self) -> f64 {
        self.terms.iter().map(|t| t.launches).sum()
    }
}
