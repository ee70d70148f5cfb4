//! The answer of the search: the best run, what binds it, the runners-up and what a little more would buy.

use serde::Serialize;

use crate::plan::assessment::Assessment;
use crate::plan::levers::Lever;
use crate::plan::limit::LimitKind;
use crate::plan::quality::Quality;
use crate::spec::run::RunConfig;

/// A run together with its assessment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Configuration of the run.
    pub run: RunConfig,
    /// Predicted memory and time of the run, held against the machine's limits.
    #[serde(flatten)]
    pub assessment: Assessment,
}

/// The plan for a different wish, such as a larger model or another Mac.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Name of the wish: `a size larger`, `a size smaller`, `a Mac with more memory`.
    pub wish: String,
    /// Name of the machine, where the wish is for another.
    pub machine: Option<String>,
    /// Run that answers the wish, with its assessment.
    #[serde(flatten)]
    pub candidate: Candidate,
}

/// Reason for which no larger model was chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "limit", rename_all = "snake_case")]
pub enum Binding {
    /// The next larger model takes longer than the time limit.
    Time {
        /// Name of the next larger model.
        model: String,
    },
    /// The next larger model exceeds this limit even in its smallest configuration.
    Memory {
        /// Name of the next larger model.
        model: String,
        /// Limit that it exceeds.
        name: LimitKind,
    },
    /// There is nothing larger to take, or the model was given.
    Nothing,
}

/// Result of the search: the best run, what limits it, and its alternatives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Best run that fits and finishes in time.
    #[serde(flatten)]
    pub best: Candidate,
    /// Reason for which no larger model was chosen.
    pub binds: Binding,
    /// Trade-offs: single changes to the best run, with what each saves and costs.
    pub levers: Vec<Lever>,
    /// Runs that other wishes would lead to.
    pub neighbours: Vec<Neighbour>,
    /// What the format of the base costs, where it is quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quality: Option<Quality>,
    /// Number of configurations that were assessed.
    pub considered: usize,
}
