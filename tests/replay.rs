//! What Metal would make of a step, from a recording of it.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

use std::path::Path;
use headroom::cost::pool::replay;
use headroom::spec::model::catalogue;
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::replay::{batch, record};

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

#[test]
fn qwen() {
    let spec = &catalogue::find("Qwen2.5-1.5B-Instruct").unwrap().spec;
    for extra in ["", "mlp_chunk=2048", "loss_chunk=441\nmlp_chunk=936", "attention_chunk=512\nloss_chunk=441\nmlp_chunk=936", "attention_chunk=512\nloss_chunk=441\nmlp_chunk=2048"] {
    let text = format!("model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length=2048\neffective_batch_size=1\n[recipe.lora]\nrank=32\ntarget_modules=\"all-linear\"\n[execution]\nweights=\"int8\"\n{extra}");
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let start = std::time::Instant::now();
    let r = record(spec, &run, &batch(&[2047], 2047), None).unwrap();
    let all = replay(&r.events);
    let micro = replay(&r.events[r.micro_batch.clone()]);
    println!("{extra:?}: {:?} events {} in {:?}", all, r.events.len(), start.elapsed());
    println!("   micro-batch launches {} moved {} GB; step waits {}", micro.launches, micro.moved_bytes.0 as f64 / 1e9, replay(&r.events[r.step.clone()]).waits);
    let mut count = std::collections::BTreeMap::new();
    for e in &r.events[r.micro_batch] { if let headroom::memory::trace::Event::Launch{kernel, moved, ..} = e { let c: &mut (u64,f64) = count.entry(*kernel).or_default(); c.0+=1; c.1 += *moved as f64/1e9; } }
    println!("   {count:?}");
    }
}
