//! Which examples go into which step: a fixed function of the seed, so that a run can go on from any step.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::candle::model::MicroBatch;
use super::rows::Example;
use crate::spec::run::RunConfig;

/// The order of the examples over the whole run.
pub struct Batches<'a> {
    examples: &'a [Example],
    run: &'a RunConfig,
    /// Fill every example up to the longest length, to see the worst case in a short trial.
    pad_to_max: bool,
    epoch: Option<(usize, Vec<usize>)>,
}

impl<'a> Batches<'a> {
    /// Over these examples.
    pub fn new(examples: &'a [Example], run: &'a RunConfig, pad_to_max: bool) -> Self {
        Self { examples, run, pad_to_max, epoch: None }
    }

    /// Index of the `n`-th example of the run.
    fn index(&mut self, n: usize) -> usize {
        let (epoch, at) = (n / self.examples.len(), n % self.examples.len());
        if !self.run.recipe.shuffle {
            return at;
        }
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut order: Vec<usize> = (0..self.examples.len()).collect();
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
                let chosen: Vec<&Example> = indices.into_iter().map(|i| &self.examples[i]).collect();
                pack(&chosen, self.run, self.pad_to_max)
            })
            .collect()
    }
}

/// Lays examples end to end, each cut to the run's longest length.
pub fn pack(examples: &[&Example], run: &RunConfig, pad_to_max: bool) -> MicroBatch {
    let (cap, mask_prompt) = (run.recipe.max_seq_length, run.recipe.mask_prompt);
    let mut batch = MicroBatch::default();
    for example in examples {
        let mut tokens: Vec<u32> = example.tokens.iter().copied().take(cap).collect();
        if pad_to_max {
            tokens = example.tokens.iter().copied().cycle().take(cap).collect();
        }
        let start = batch.tokens.len();
        let rows = tokens.len() - 1;
        let first_target = if mask_prompt && !pad_to_max { example.prompt.max(1) } else { 1 };
        batch.targets.extend((first_target..tokens.len()).map(|t| ((start + t - 1) as u32, tokens[t])));
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
