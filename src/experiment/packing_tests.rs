//! What packing is predicted to do, against what the trainer does.

#[test]
fn packing_is_predicted_as_it_is_done() {
    use crate::cost::work::{Work, rows};
    use crate::data::batches::{self, Batches};
    use crate::data::example::Example;
    use crate::spec::run::{RunConfig, TokenLengths};
    let mut run = RunConfig::builtin();
    run.recipe.max_seq_length = 48;
    (run.recipe.packing, run.recipe.steps, run.recipe.epochs) = (true, None, Some(1.0));
    (run.recipe.effective_batch_size, run.execution.batch_size) = (2, 1);
    let lengths: Vec<u32> = (0..300u32).map(|i| 2 + (i * i) % 37 + 20 * u32::from(i % 9 == 0)).collect();
    let examples: Vec<Example> = lengths.iter().map(|n| Example { tokens: vec![1; *n as usize], prompt: 0 }).collect();
    let known = TokenLengths::new(lengths);
    let packed = batches::rows(&examples, &run);
    assert!(packed.len() < 250 && packed.len() == rows(&known, &run).len());
    let steps = run.steps(packed.len());
    let mut batches = Batches::new(&examples, &run, false);
    let whole: Vec<_> = (0..packed.len() / 2).flat_map(|step| batches.step(step)).collect();
    let tokens: usize = whole.iter().map(|b| b.tokens.len() + b.examples.len()).sum();
    let work = Work::of(&run, Some(&known));
    let predicted = work.tokens * work.micro_batches * steps as f64;
    // The last step of an odd number of rows begins the next epoch.
    assert!((predicted / tokens as f64 - 1.0).abs() < 0.02, "{predicted} {tokens}");
}
