//! The answer of the search: the best run, what binds it, the runners-up and what a little more would buy.

use serde::Serialize;

use crate::plan::assessment::Assessment;
use crate::plan::levers::Lever;
use crate::plan::limit::LimitKind;
use crate::spec::run::RunConfig;

/// A run and what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// The run.
    pub run: RunConfig,
    /// What it takes.
    #[serde(flatten)]
    pub assessment: Assessment,
}

/// What another wish would bring.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// The wish: `a size larger`, `a size smaller`, `a Mac with more memory`.
    pub wish: String,
    /// The machine, where it is another.
    pub machine: Option<String>,
    /// What it brings.
    #[serde(flatten)]
    pub candidate: Candidate,
}

/// Why nothing larger was taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "limit", rename_all = "snake_case")]
pub enum Binding {
    /// The next larger model takes too long.
    Time {
        /// Which.
        model: String,
    },
    /// The next larger model is over this limit at its leanest.
    Memory {
        /// Which.
        model: String,
        /// The limit.
        name: LimitKind,
    },
    /// There is nothing larger to take, or the model was given.
    Nothing,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The best run.
    #[serde(flatten)]
    pub best: Candidate,
    /// Why not more.
    pub binds: Binding,
    /// What can be moved.
    pub levers: Vec<Lever>,
    /// What other wishes would bring.
    pub neighbours: Vec<Neighbour>,
    /// Configurations that were looked at.
    pub considered: usize,
}
