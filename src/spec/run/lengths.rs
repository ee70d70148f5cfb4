//! Lengths of examples in tokens.

use serde::{Deserialize, Serialize};

use crate::spec::run::packing::pack;

/// Token lengths of a data set's examples, before any cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLengths {
    /// Lengths of the training examples in tokens, ascending.
    lengths: Vec<u32>,
    /// Share of the tokens that are not prompt, from 0 to 1.
    completion: f64,
    /// Lengths of the validation examples in tokens, in their order.
    #[serde(default)]
    validation: Vec<u32>,
}

impl TokenLengths {
    /// Token lengths of examples, given in any order.
    pub(crate) fn new(lengths: Vec<u32>) -> Self {
        Self { lengths: Vec::new(), completion: 1.0, validation: Vec::new() }.with_lengths(lengths)
    }

    /// Stands for rows that are all filled up to the greatest length, whatever that is.
    pub(crate) fn filled() -> Self {
        Self::new(vec![u32::MAX])
    }

    /// The same lengths, with only this share of the tokens outside of prompts.
    pub(crate) fn with_completion(self, completion: f64) -> Self {
        Self { completion, ..self }
    }

    /// The same lengths, with validation examples of these lengths, in the order of the data.
    pub(crate) fn with_validation(self, validation: Vec<u32>) -> Self {
        Self { validation, ..self }
    }

    /// Lengths of the validation examples in tokens, in their order; empty without validation.
    pub(crate) fn validation(&self) -> &[u32] {
        &self.validation
    }

    /// Share of the tokens that are not prompt, from 0 to 1.
    pub(crate) fn completion(&self) -> f64 {
        self.completion
    }

    /// What is taken for granted of unknown data: exponentially distributed lengths, 99 % of which are at most
    /// `longest`, so that the mean is a little over a fifth of it. Instruction sets are like that: many short
    /// examples and a long tail.
    pub(crate) fn assumed(examples: usize, longest: usize) -> Self {
        let mean = longest as f64 / 100f64.ln();
        let at = |i| -mean * (1.0 - (i as f64 + 0.5) / examples as f64).ln();
        Self::new((0..examples).map(|i| at(i).ceil() as u32).collect())
    }

    /// Number of training examples, or of rows once they are packed.
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are no examples.
    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Lengths of the training examples in tokens, ascending.
    pub(crate) fn sorted(&self) -> &[u32] {
        &self.lengths
    }

    /// Length of the longest example in tokens, 0 if there is none.
    pub(crate) fn max(&self) -> usize {
        self.lengths.last().map_or(0, |&n| n as usize)
    }

    /// Mean length in tokens once examples are cut to `cap` tokens.
    pub(crate) fn mean_cut(&self, cap: usize) -> f64 {
        let sum: u64 = self.lengths.iter().map(|&n| u64::from(n).min(cap as u64)).sum();
        sum as f64 / self.len().max(1) as f64
    }

    /// Tokens of each row once the examples, cut to `cap`, are packed into rows of at most `cap`.
    pub(crate) fn packed(&self, cap: usize) -> Self {
        let lengths: Vec<usize> = self.lengths.iter().map(|&n| n as usize).collect();
        let fill = |row: Vec<usize>| row.into_iter().map(|i| lengths[i].min(cap) as u32).sum();
        self.clone().with_lengths(pack(&lengths, cap).into_iter().map(fill).collect())
    }

    fn with_lengths(self, mut lengths: Vec<u32>) -> Self {
        lengths.sort_unstable();
        Self { lengths, ..self }
    }

    /// The shortest length that leaves at least `fraction` of the examples uncut.
    pub(crate) fn uncut(&self, fraction: f64) -> usize {
        let rank = (fraction * self.len() as f64).ceil() as usize;
        self.lengths.get(rank.clamp(1, self.len().max(1)) - 1).map_or(0, |&n| n as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_and_quantile() {
        let lengths = TokenLengths::new(vec![30, 10, 20, 40]);
        assert_eq!(lengths.sorted(), [10, 20, 30, 40]);
        assert_eq!(lengths.uncut(0.75), 30);
        assert_eq!(lengths.uncut(0.99), 40);
        assert_eq!(lengths.mean_cut(25), (10 + 20 + 25 + 25) as f64 / 4.0);
        assert_eq!(TokenLengths::new(vec![]).uncut(0.99), 0);
    }

    #[test]
    fn assumed_lengths_have_their_tail_where_it_was_asked_for() {
        let lengths = TokenLengths::assumed(2000, 2048);
        assert_eq!(lengths.len(), 2000);
        assert!((2030..=2060).contains(&lengths.uncut(0.99)), "{}", lengths.uncut(0.99));
        assert!((lengths.mean_cut(2048) - 441.0).abs() < 5.0, "{}", lengths.mean_cut(2048));
    }
}
