//! One example: its tokens, and which of them are learned.

use std::ops::Range;

use crate::spec::run::RunConfig;

/// A tokenised example, and how many of its tokens are prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Tokens of the whole example, not yet cut to the run's longest length.
    pub tokens: Vec<u32>,
    /// Number of tokens at the start that are prompt.
    pub prompt: usize,
}

/// Positions of an example's target tokens, in a run that does not pad: those within the longest length, after the
/// first, and after the prompt where it is masked.
pub(crate) fn targets(example: &Example, run: &RunConfig) -> Range<usize> {
    let first = if run.recipe.mask_prompt { example.prompt.max(1) } else { 1 };
    first..example.tokens.len().min(run.recipe.max_seq_length)
}
