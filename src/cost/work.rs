//! The tokens an optimizer step works on, as each engine lays them out.

use std::borrow::Cow;

use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig, TokenLengths};

/// mlx-lm pads every batch to a multiple of this, plus one (`iterate_batches`, since March 2025).
const MLX_PADDING: usize = 32;

/// Longest list of examples that the mean is taken over; more are thinned evenly.
const SAMPLE: usize = 512;

/// Mean sizes of the micro-batches of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Work {
    /// Number of micro-batches of an optimizer step.
    pub micro_batches: f64,
    /// Tokens of the examples in a micro-batch, without padding.
    pub tokens: f64,
    /// Tokens of a micro-batch with padding: the rows of its matrices.
    pub rows: f64,
    /// Lengths of the rows that see each other, with how many of them a micro-batch has.
    pub sequences: Vec<(usize, f64)>,
}

/// Length of a row of `n` tokens as mlx-lm pads it.
pub(crate) fn mlx_padded(n: usize, cap: usize) -> usize {
    (1 + n.div_ceil(MLX_PADDING) * MLX_PADDING).min(cap)
}

/// Tilts that are looked through, each 8 % above the one before.
const TILTS: usize = 160;

/// Groups of like length that the lengths are thinned to; each counts as its longest.
const GROUPS: usize = 64;

/// Tokens that the heaviest of `micro_batches` stays under in a share `quantile` of all runs, when its examples are drawn at random, cut to the run's
/// length and laid end to end.
///
/// The memory of a run is decided by its unluckiest micro-batch. The tail of a sum of b lengths follows from their
/// cumulants K under a tilt t (Bahadur and Rao 1960): `P(S >= b K'(t)) = exp(b (K - t K')) / (t sqrt(2 pi b K''))`.
/// The t is sought at which that is the chance that one micro-batch of the run may have; the answer is never more than
/// the b longest together.
pub(crate) fn heaviest(lengths: &TokenLengths, run: &RunConfig, micro_batches: f64, quantile: f64) -> usize {
    let (cap, batch) = (run.recipe.max_seq_length, run.execution.batch_size);
    let lengths = &*rows(lengths, run);
    let sorted = lengths.sorted();
    let last = sorted.len() - 1;
    let longest: usize = (0..batch).map(|i| (sorted[last - i % sorted.len()] as usize).min(cap)).sum();
    let most = (sorted[last] as usize).min(cap) as f64;
    let size = sorted.len().div_ceil(GROUPS);
    let groups: Vec<(f64, f64)> = sorted
        .chunks(size)
        .map(|group| ((group[group.len() - 1] as usize).min(cap) as f64, group.len() as f64 / sorted.len() as f64))
        .collect();
    // All of them stay under it with probability `quantile`.
    let (b, chance) = (batch as f64, (-quantile.ln() / micro_batches.max(1.0)).ln());
    // Mean of the sum and the logarithm of its tail at the i-th tilt; the tail falls as the tilt grows.
    let at = |i: usize| {
        let t = 1e-2 * 1.08f64.powi(i as i32) / most;
        // About the longest, so that no exponential overflows.
        let moment = |k: i32| -> f64 { groups.iter().map(|(n, p)| p * n.powi(k) * (t * (n - most)).exp()).sum() };
        let (m0, m1, m2) = (moment(0), moment(1), moment(2));
        let (mean, variance) = (m1 / m0, m2 / m0 - (m1 / m0).powi(2));
        let cumulant = t * most + m0.ln();
        let spread = (t * (std::f64::consts::TAU * b * variance).sqrt()).max(1.0);
        (b * mean, b * (cumulant - t * mean) - spread.ln())
    };
    let (mut low, mut high) = (0, TILTS);
    while low < high {
        let middle = (low + high) / 2;
        if at(middle).1 <= chance { high = middle } else { low = middle + 1 }
    }
    if low == TILTS { longest } else { longest.min(at(low).0.ceil() as usize) }
}

/// Tokens of the rows that micro-batches are drawn from: the examples, or what they are packed into.
pub(crate) fn rows<'a>(lengths: &'a TokenLengths, run: &RunConfig) -> Cow<'a, TokenLengths> {
    if run.recipe.packing { Cow::Owned(lengths.packed(run.recipe.max_seq_length)) } else { Cow::Borrowed(lengths) }
}

/// Examples that mlx-lm ever sees, ascending: batches are cut from the list sorted by length, and the longest examples
/// that do not fill a last one are left out (`iterate_batches`).
fn mlx_kept(sorted: &[u32], batch: usize) -> &[u32] {
    let whole = sorted.len() / batch * batch;
    // With fewer examples than a batch mlx-lm refuses; what it would take is told all the same.
    if whole == 0 { sorted } else { &sorted[..whole] }
}

/// Tokens of the longest example that mlx-lm meets, in a share `quantile` of all runs: of all its batches where the run
/// is long enough to see each, else of as many as it has micro-batches, drawn at random.
pub(crate) fn mlx_longest(lengths: &TokenLengths, run: &RunConfig, micro_batches: f64, quantile: f64) -> usize {
    let (cap, batch) = (run.recipe.max_seq_length, run.execution.batch_size);
    let kept = mlx_kept(lengths.sorted(), batch);
    let groups = kept.len().div_ceil(batch);
    let met = if micro_batches >= groups as f64 {
        groups
    } else {
        // All of n draws lie under the j-th of G with a chance of (j / G)^n.
        ((groups as f64 * quantile.powf(1.0 / micro_batches.max(1.0))).ceil() as usize).clamp(1, groups)
    };
    kept.get((met * batch).min(kept.len()).saturating_sub(1)).map_or(0, |&n| n as usize).min(cap)
}

/// Tokens of a row of the validation batch that has the most of them, where there is one. Our own engine takes
/// examples as they come and lays them end to end, mlx-lm sorts and pads them as it does in training.
pub(crate) fn heaviest_validation(lengths: &TokenLengths, run: &RunConfig) -> Option<usize> {
    let (cap, batch) = (run.recipe.max_seq_length, run.execution.batch_size);
    let cut = |n: &u32| (*n as usize).min(cap);
    match run.engine {
        Engine::Candle => {
            let sums = lengths.validation().chunks(batch).map(|batch| batch.iter().map(cut).sum::<usize>());
            sums.max().map(|most| most.div_ceil(batch))
        }
        Engine::MlxLm => {
            let mut sorted = lengths.validation().to_vec();
            sorted.sort_unstable();
            mlx_kept(&sorted, batch).last().map(cut)
        }
    }
}

impl Work {
    /// Mean sizes for a run. Without `lengths` every example is taken to be as long as it may be.
    pub(crate) fn of(run: &RunConfig, lengths: Option<&TokenLengths>) -> Self {
        let (cap, batch) = (run.recipe.max_seq_length, run.execution.batch_size);
        let micro_batches = run.accumulation() as f64;
        let Some(lengths) = lengths.filter(|l| !l.is_empty()) else {
            let tokens = (batch * cap) as f64;
            return Self { micro_batches, tokens, rows: tokens, sequences: vec![(cap, batch as f64)] };
        };
        // With packing a row holds several examples, each of which sees itself.
        let examples = batch as f64 * lengths.len() as f64 / rows(lengths, run).len() as f64;
        let kept = match run.engine {
            Engine::Candle => lengths.sorted(),
            Engine::MlxLm => mlx_kept(lengths.sorted(), batch),
        };
        let seen: u64 = kept.iter().map(|&n| u64::from(n).min(cap as u64)).sum();
        let tokens = examples * seen as f64 / kept.len() as f64;
        let rows: Vec<usize> = match run.engine {
            // Examples lie end to end without padding.
            Engine::Candle => thinned(kept, 1).map(|n| n.min(cap)).collect(),
            // Batches are cut from the list sorted by length; each is as wide as its longest.
            Engine::MlxLm => thinned(kept, batch).map(|n| mlx_padded(n, cap)).collect(),
        };
        let weight = examples / rows.len() as f64;
        let total: f64 = rows.iter().map(|&n| n as f64 * weight).sum();
        Self { micro_batches, tokens, rows: total, sequences: rows.into_iter().map(|n| (n, weight)).collect() }
    }

    /// Number of examples of a micro-batch.
    pub(crate) fn examples(&self) -> f64 {
        self.sequences.iter().map(|(_, count)| count).sum()
    }

    /// Query-key pairs of a micro-batch in a layer that sees `window` keys, when queries are worked on `chunk` at a
    /// time and a chunk meets every key that any of its queries can see.
    pub(crate) fn pairs(&self, window: Option<usize>, chunk: usize) -> f64 {
        let of = |n: usize| {
            let (n, c) = (n as f64, chunk.min(n) as f64);
            let w = window.map_or(n, |w| (w as f64).min(n));
            // The first w queries see a triangle, the others a band.
            w * (w + c) / 2.0 + (n - w) * (w + c)
        };
        self.sequences.iter().map(|&(n, count)| count * of(n)).sum()
    }

    /// Pairs over all layers, and over the layers from `first` on.
    pub(crate) fn pairs_by_layer(&self, spec: &ModelSpec, chunk: usize, first: usize) -> (f64, f64) {
        let windows = &spec.attention.windows;
        let mut known: Vec<(Option<usize>, f64)> = Vec::new();
        let mut of = |window| match known.iter().find(|(w, _)| *w == window) {
            Some((_, pairs)) => *pairs,
            None => {
                let pairs = self.pairs(window, chunk);
                known.push((window, pairs));
                pairs
            }
        };
        let each: Vec<f64> = (0..spec.num_hidden_layers).map(|i| of(windows.get(i).copied().flatten())).collect();
        (each.iter().sum(), each[first.min(each.len())..].iter().sum())
    }

    /// Sum of squared lengths: the query-key pairs of an engine that does not use causality.
    pub(crate) fn squares(&self) -> f64 {
        self.sequences.iter().map(|&(n, count)| count * (n * n) as f64).sum()
    }
}

/// The longest of each group of `group` lengths, thinned to [`SAMPLE`] groups.
fn thinned(sorted: &[u32], group: usize) -> impl Iterator<Item = usize> + '_ {
    let groups = sorted.len().div_ceil(group);
    let step = groups.div_ceil(SAMPLE);
    // The middle of each stride, so that thinning does not favour the short or the long.
    (0..groups).skip(step / 2).step_by(step).map(move |i| sorted[((i + 1) * group).min(sorted.len()) - 1] as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(engine: &str, batch: usize) -> RunConfig {
        let text = format!(
            "model = \"m\"\ndata = \"d\"\nengine = \"{engine}\"\n[recipe]\nmax_seq_length = 100\n[execution]\nbatch_size = {batch}"
        );
        RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap()
    }

    #[test]
    fn few_runs_have_a_micro_batch_heavier_than_the_heaviest() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        // Skewed, as real data: most rows short, a few near the cut.
        let lengths: Vec<u32> = (0..500).map(|_| (10.0 - 18.0 * rng.random::<f64>().ln()) as u32).collect();
        let known = TokenLengths::new(lengths.clone());
        for batch in [1, 4, 16] {
            let run = run("candle", batch);
            let predicted = heaviest(&known, &run, 300.0, 0.99);
            let typical = heaviest(&known, &run, 300.0, 0.5) as f64;
            let heaviest_of_a_run = |rng: &mut rand_chacha::ChaCha8Rng| -> usize {
                let mut draw = || lengths[rng.random_range(0..lengths.len())].min(100) as usize;
                (0..300).map(|_| (0..batch).map(|_| draw()).sum()).max().unwrap()
            };
            let mut seen: Vec<usize> = (0..400).map(|_| heaviest_of_a_run(&mut rng)).collect();
            seen.sort_unstable();
            let (median, p97, p99) = (seen[200], seen[388], seen[396]);
            assert!((typical / median as f64 - 1.0).abs() < 0.12, "batch {batch}: {typical}, seen {median}");
            assert!(p97 <= predicted, "batch {batch}: {predicted}, seen {p97}");
            assert!(predicted as f64 <= 1.1 * p99 as f64, "batch {batch}: {predicted}, seen {median} to {p99}");
        }
        // Never more than the longest together, and exactly that where all are equal.
        assert_eq!(heaviest(&TokenLengths::new(vec![u32::MAX; 3]), &run("candle", 4), 300.0, 0.99), 400);
        assert_eq!(heaviest(&TokenLengths::new(vec![7]), &run("candle", 2), 1.0, 0.5), 14);
    }

    #[test]
    fn each_engine_meets_the_worst_batch_of_its_own_rule() {
        // mlx-lm, batches of two: {10, 20} and {40, 70}; the longest example fills no batch and is never seen.
        let lengths = TokenLengths::new(vec![40, 90, 10, 70, 20]);
        let mlx = run("mlx-lm", 2);
        assert_eq!(mlx_longest(&lengths, &mlx, 2.0, 0.5), 70);
        let work = Work::of(&mlx, Some(&lengths));
        assert_eq!((work.tokens, work.rows), (2.0 * 35.0, (2.0 * 33.0 + 2.0 * 97.0) / 2.0));
        // Ours draws at random and lays examples end to end: the two longest may meet.
        assert_eq!(heaviest(&lengths, &run("candle", 2), 1e6, 0.99), 160);
        assert_eq!(Work::of(&run("candle", 2), Some(&lengths)).tokens, 2.0 * 46.0);
        // One iteration over a hundred batches of one meets the longest but seldom.
        let many = TokenLengths::new((1..=100).collect());
        let one = run("mlx-lm", 1);
        assert_eq!([0.05, 0.5, 0.95].map(|q| mlx_longest(&many, &one, 1.0, q)), [5, 50, 95]);
        assert_eq!([0.5, 0.95].map(|q| mlx_longest(&many, &one, 10.0, q)), [94, 100]);
        assert_eq!(mlx_longest(&many, &one, 100.0, 0.01), 100);
        assert_eq!(mlx_longest(&TokenLengths::new(vec![7]), &mlx, 3.0, 0.5), 7);
    }

    #[test]
    fn only_mlx_pads() {
        let lengths = TokenLengths::new(vec![10, 20, 40, 300]);
        let ours = Work::of(&run("candle", 2), Some(&lengths));
        assert_eq!((ours.tokens, ours.rows, ours.micro_batches), (85.0, 85.0, 8.0));
        let theirs = Work::of(&run("mlx-lm", 2), Some(&lengths));
        // Batches {10, 20} and {40, 300}: two rows of 33 and two of 100, each half of the time.
        assert_eq!((theirs.tokens, theirs.rows), (85.0, 133.0));
        assert_eq!(Work::of(&run("candle", 4), None).squares(), 4.0 * 1e4);
    }

    #[test]
    fn packed_rows_hold_several_examples() {
        let lengths = TokenLengths::new(vec![10, 20, 40, 300, 60, 70]);
        let mut run = run("candle", 2);
        run.recipe.packing = true;
        // Rows of 100 tokens: {300, cut}, {70, 20, 10}, {60, 40}: two of three, on average, with two examples each.
        assert_eq!(rows(&lengths, &run).sorted(), [100, 100, 100]);
        let work = Work::of(&run, Some(&lengths));
        assert!((work.tokens - 200.0).abs() < 1e-9 && (work.rows - 200.0).abs() < 1e-9);
        assert!((work.sequences.iter().map(|s| s.1).sum::<f64>() - 4.0).abs() < 1e-9);
        assert_eq!(heaviest(&lengths, &run, 100.0, 0.5), 200);
    }

    #[test]
    fn pairs_are_a_triangle_and_a_band() {
        let work = Work::of(&run("candle", 1), None);
        assert_eq!(work.pairs(None, 1), 100.0 * 101.0 / 2.0);
        assert_eq!(work.pairs(None, 100), 100.0 * 100.0);
        assert_eq!(work.pairs(Some(10), 1), 10.0 * 11.0 / 2.0 + 90.0 * 11.0);
        assert_eq!(work.pairs(Some(1000), 1), work.pairs(None, 1));
    }
}
