//! One example: its tokens, and which of them are learned.

use std::ops::Range;

use crate::spec::run::RunConfig;

/// One example: its tokens, and the first of them that is a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Not cut yet.
    pub tokens: Vec<u32>,
    /// Tokens before this one are prompt.
    pub prompt: usize,
}

/// Which tokens of an example are learned, in a run that does not pad: those within the longest length, after the first,
/// and after the prompt where it is masked.
pub(crate) fn targets(example: &Example, run: &RunConfig) -> Range<usize> {
    let first = if run.recipe.mask_prompt { example.prompt.max(1) } else { 1 };
    first..example.tokens.len().min(run.recipe.max_seq_length)
}
