//! Which examples go into which step: a fixed function of the seed, so that a run can go on from any step.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::data::example::{Example, targets};
use crate::spec::run::{RunConfig, packing};

/// Examples laid end to end, without padding. A row is a token that predicts the next one, so the last token of
/// an example is a target only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Input token of each row, examples end to end.
    pub tokens: Vec<u32>,
    /// Range of rows that each example takes.
    pub examples: Vec<Range<usize>>,
    /// Target tokens: the row, and the token it must predict.
    pub targets: Vec<(u32, u32)>,
}

/// Indices of the examples that share each row: those that packing puts together, else one a row.
pub fn rows(examples: &[Example], run: &RunConfig) -> Vec<Vec<usize>> {
    if !run.recipe.packing {
        return (0..examples.len()).map(|i| vec![i]).collect();
    }
    let lengths: Vec<usize> = examples.iter().map(|e| e.tokens.len()).collect();
    packing::pack(&lengths, run.recipe.max_seq_length)
}

/// Draws the micro-batches of a run, in the order that its seed gives.
pub struct Batches<'a> {
    examples: &'a [Example],
    rows: Vec<Vec<usize>>,
    run: &'a RunConfig,
    /// Fill every example up to the longest length, to see the worst case in a short trial.
    pad_to_max: bool,
    epoch: Option<(usize, Vec<usize>)>,
}

impl<'a> Batches<'a> {
    /// Micro-batches over these examples, for the run's batch sizes and seed.
    pub fn new(examples: &'a [Example], run: &'a RunConfig, pad_to_max: bool) -> Self {
        Self { examples, rows: rows(examples, run), run, pad_to_max, epoch: None }
    }

    /// Index of the `n`-th row of the run.
    fn index(&mut self, n: usize) -> usize {
        let (epoch, at) = (n / self.rows.len(), n % self.rows.len());
        if !self.run.recipe.shuffle {
            return at;
        }
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut order: Vec<usize> = (0..self.rows.len()).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(self.run.seed);
            rng.set_stream(1 + epoch as u64);
            order.shuffle(&mut rng);
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(at, |(_, order)| order[at])
    }

    /// The micro-batches of optimizer step `step` (counted from 0).
    pub fn step(&mut self, step: usize) -> Vec<MicroBatch> {
        let (all, micro) = (self.run.recipe.effective_batch_size, self.run.execution.batch_size);
        let first = step * all;
        (0..all / micro)
            .map(|m| {
                let indices: Vec<usize> = (0..micro).map(|i| self.index(first + m * micro + i)).collect();
                // A row that is filled up by repeating its first example has no room for others.
                let most = if self.pad_to_max { 1 } else { usize::MAX };
                let rows = indices.into_iter().flat_map(|i| self.rows[i].iter().take(most));
                let chosen: Vec<&Example> = rows.map(|&i| &self.examples[i]).collect();
                pack(&chosen, self.run, self.pad_to_max)
            })
            .collect()
    }
}

/// Lays examples end to end, each cut to the run's longest length.
pub fn pack(examples: &[&Example], run: &RunConfig, pad_to_max: bool) -> MicroBatch {
    let cap = run.recipe.max_seq_length;
    let mut batch = MicroBatch::default();
    for example in examples {
        let mut tokens: Vec<u32> = example.tokens.iter().copied().take(cap).collect();
        if pad_to_max {
            tokens = example.tokens.iter().copied().cycle().take(cap).collect();
        }
        let start = batch.tokens.len();
        let rows = tokens.len() - 1;
        let learned = if pad_to_max { 1..tokens.len() } else { targets(example, run) };
        batch.targets.extend(learned.map(|t| ((start + t - 1) as u32, tokens[t])));
        batch.tokens.extend(&tokens[..rows]);
        batch.examples.push(start..start + rows);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> RunConfig {
        let text = format!("model = \"m\"\ndata = \"d\"\n{text}");
        RunConfig::from_toml(&text, std::path::Path::new("run.toml")).unwrap()
    }

    fn examples(lengths: &[usize]) -> Vec<Example> {
        lengths
            .iter()
            .enumerate()
            .map(|(i, n)| Example { tokens: (0..*n as u32).map(|t| t + 100 * i as u32).collect(), prompt: 2 })
            .collect()
    }

    #[test]
    fn rows_predict_the_next_token_of_their_own_example() {
        let examples = examples(&[4, 3]);
        let run = run("[recipe]\nmax_seq_length = 3\nmask_prompt = true");
        let batch = pack(&[&examples[0], &examples[1]], &run, false);
        assert_eq!(batch.tokens, [0, 1, 100, 101]);
        assert_eq!(batch.examples, [0..2, 2..4]);
        assert_eq!(batch.targets, [(1, 2), (3, 102)]);
        let full = pack(&[&examples[1]], &run, true);
        assert_eq!((full.tokens, full.targets), (vec![100, 101], vec![(0, 101), (1, 102)]));
    }

    #[test]
    fn packed_rows_hold_several_examples_and_every_epoch_sees_each_once() {
        let examples = examples(&[2, 7, 3, 9, 4, 5]);
        let run = run("seed = 3\n[recipe]\npacking = true\nmax_seq_length = 10\neffective_batch_size = 1");
        let mut batches = Batches::new(&examples, &run, false);
        let rows = batches.rows.len();
        // 9 alone, 7 with 3, 5 with 4, and no room left for 2.
        assert_eq!(rows, 4);
        let epoch: Vec<MicroBatch> = (0..rows).flat_map(|s| batches.step(s)).collect();
        assert!(epoch.iter().all(|b| b.tokens.len() + b.examples.len() <= 10));
        let mut starts: Vec<u32> = epoch.iter().flat_map(|b| b.examples.iter().map(|e| b.tokens[e.start])).collect();
        starts.sort_unstable();
        assert_eq!(starts, [0, 100, 200, 300, 400, 500]);
        // No row predicts a token of its neighbour.
        assert!(epoch.iter().flat_map(|b| &b.targets).all(|(_, token)| token % 100 > 0));
        let full = Batches::new(&examples, &run, true).step(0);
        assert_eq!((full[0].tokens.len(), full[0].examples.len()), (9, 1));
    }

    #[test]
    fn every_epoch_sees_every_example_once_in_its_own_order() {
        let examples = examples(&[2; 6]);
        let run = run("seed = 3\n[recipe]\neffective_batch_size = 3\n[execution]\nbatch_size = 1");
        let mut batches = Batches::new(&examples, &run, false);
        let first: Vec<u32> = (0..4).flat_map(|s| batches.step(s)).map(|b| b.tokens[0]).collect();
        let epochs: Vec<Vec<u32>> = first.chunks(6).map(<[u32]>::to_vec).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 100, 200, 300, 400, 500]);
        }
        assert_ne!(epochs[0], epochs[1]);
        // A step asked for alone is the same step.
        let alone = Batches::new(&examples, &run, false).step(3);
        assert_eq!(alone, Batches::new(&examples, &run, false).step(3));
        assert_eq!(alone.iter().map(|b| b.tokens[0]).collect::<Vec<_>>(), first[9..12]);
    }
}
