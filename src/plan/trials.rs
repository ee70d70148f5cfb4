//! Which short runs teach most about a run that is planned.

use crate::spec::run::RunConfig;

/// Shortest rows that are tried; below, overheads are all there is.
const SHORTEST: usize = 32;

/// A few runs around `run`, cheapest first, and last its own micro-batch.
///
/// Time has a part for each FLOP, each byte and each launch, and memory one that is always there and one
/// for each token of a micro-batch. So the tokens of a micro-batch go up in a ladder from an eighth of the
/// row length, once by longer rows and once by more of them, and the rank changes on the way. Each
/// takes one micro-batch a step: accumulating more would only repeat it.
pub fn trials(run: &RunConfig) -> Vec<RunConfig> {
    let (length, batch) = (run.recipe.max_seq_length, run.execution.batch_size);
    let rank = run.recipe.lora.rank;
    let ladder = [
        (length / 8, 1, rank),
        (length / 8, 4, (rank / 2).max(1)),
        (length / 2, 1, rank * 2),
        (length / 2, batch.max(2), rank),
        (length, batch, rank),
    ];
    let mut trials: Vec<RunConfig> = Vec::new();
    for (length, batch, rank) in ladder {
        let mut trial = run.clone();
        trial.recipe.max_seq_length = length.max(SHORTEST.min(run.recipe.max_seq_length));
        (trial.execution.batch_size, trial.recipe.effective_batch_size) = (batch, batch);
        // The scale stays: a trial differs in what is measured, not in how it learns.
        trial.recipe.lora = run.recipe.lora.with_rank(rank);
        if !trials.contains(&trial) {
            trials.push(trial);
        }
    }
    // None is larger than the plan, and of equals the plan comes last.
    trials.sort_by_key(|t| t.recipe.max_seq_length * t.execution.batch_size);
    trials
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(length: usize, batch: usize) -> RunConfig {
        let text = format!(
            "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = {length}\neffective_batch_size = 32\n[execution]\nbatch_size = {batch}"
        );
        RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap()
    }

    #[test]
    fn trials_differ_in_length_batch_and_rank_and_end_at_the_plan() {
        for (length, batch) in [(2048, 1), (512, 8), (256, 2), (64, 32)] {
            let plan = run(length, batch);
            let trials = trials(&plan);
            assert!((3..=5).contains(&trials.len()), "{trials:?}");
            assert!(trials.iter().all(|t| t.check().is_ok() && t.accumulation() == 1));
            let own = |t: &&RunConfig| {
                t.recipe.max_seq_length == length
                    && t.execution.batch_size == batch
                    && t.recipe.lora == plan.recipe.lora
            };
            assert_eq!(trials.iter().filter(own).count(), 1);
            let tokens = |t: &RunConfig| t.recipe.max_seq_length * t.execution.batch_size;
            assert!(trials.windows(2).all(|w| tokens(&w[0]) <= tokens(&w[1])));
            assert!(tokens(&trials[0]) * 2 <= length * batch);
        }
        assert!(trials(&run(2, 1)).iter().all(|t| t.check().is_ok()));
    }
}
