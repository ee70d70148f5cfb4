//! What only a Mac can show: `cargo test --release --test metal -- --ignored --nocapture --test-threads 1`.

#![cfg(target_os = "macos")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod common;

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use headroom::checkpoint::source::ModelSource;
use headroom::cost::pool::replay;
use headroom::data::batches::Batches;
use headroom::data::example::Example;
use headroom::ops::Backend;
use headroom::ops::device::device;
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::decoder::Decoder;
use headroom::trainer::candle::optim::{self, Optimizer};
use headroom::trainer::candle::replay::{batch, record};

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

/// The GPU; these tests are for a machine that has one.
fn gpu() -> Device {
    let device = device();
    assert!(matches!(device, Device::Metal(_)), "there is no GPU that can be used");
    device
}

fn run(weights: &str, extra: &str) -> RunConfig {
    let text = format!(
        "model = \"m\"\ndata = \"d\"\n[recipe]\neffective_batch_size = 4\nmax_seq_length = 64\nshuffle = false\n{extra}\n[execution]\n\
         batch_size = 2\nweights = \"{weights}\"\nloss_chunk = 7\nattention_chunk = 5\nmlp_chunk = 11"
    );
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

/// Losses of some steps on a model of the fixtures.
fn losses(family: &str, run: &RunConfig, on: (&Device, Backend)) -> Vec<f64> {
    let source = ModelSource::Folder(common::fixture("reference").join(family));
    let spec = source.spec().unwrap();
    let mut decoder = Decoder::load(&source.weights().unwrap(), &spec, run, on).unwrap();
    for i in 0..decoder.sites.len() {
        let fresh = adapter::fresh(&decoder.sites[i], i, run.recipe.lora.rank, 3, on).unwrap();
        decoder.set_adapter(i, fresh).unwrap();
    }
    let (mut optimizer, mut buffers) =
        (Optimizer::new(&decoder, &run.recipe).unwrap(), decoder.buffers().unwrap());
    let row = |n: u32| Example { tokens: (0..n).map(|t| (t * t + 7 * n) % 90).collect(), prompt: 0 };
    let rows: Vec<Example> = [9, 31, 17, 44, 23].map(row).into();
    let mut batches = Batches::new(&rows, run, false);
    (0..5)
        .map(|step| {
            optim::clear(&decoder, &buffers.grads).unwrap();
            let micro_batches = batches.step(step);
            let scale = 1.0 / micro_batches.iter().map(|b| b.targets.len()).sum::<usize>() as f64;
            let mut loss = 0.0;
            for batch in &micro_batches {
                loss += scale * decoder.loss_and_grads(batch, scale, (0, step as u64), &mut buffers).unwrap();
            }
            let norm = optim::grad_norm(&decoder, &buffers.grads).unwrap();
            optimizer.step(&mut decoder, &buffers.grads, optim::clip(norm, 1.0), 1e-2).unwrap();
            loss
        })
        .collect()
}

#[test]
#[ignore = "needs a Mac"]
fn every_family_learns_what_it_learns_on_the_cpu() {
    let gpu = gpu();
    for family in common::FAMILIES {
        for (weights, extra) in [
            ("f32", ""),
            ("bf16", "lora = { rank = 4, dropout = 0.2 }"),
            ("int8", "optimizer = \"adafactor\""),
            ("q8_0", "optimizer = \"adamw_8bit\""),
            ("f16", "lora = { rank = 4, use_dora = true }"),
        ] {
            let run = run(weights, extra);
            let ours = losses(family, &run, (&gpu, Backend::of(&gpu)));
            let cpu = losses(family, &run, (&Device::Cpu, Backend::Fused));
            for (a, b) in ours.iter().zip(&cpu) {
                assert!(((a - b) / b).abs() < 1e-4, "{family} {weights} {extra}: {ours:?} and {cpu:?}");
            }
        }
    }
}

/// The peak that Metal tells of, sampled before each wait, against the replay; the time of a step beside.
#[test]
#[ignore = "needs a Mac"]
fn memory_is_what_the_replay_says() {
    let gpu = gpu();
    let source = ModelSource::find("builtin").unwrap();
    let spec = source.spec().unwrap();
    let mut run = run("bf16", "");
    run.recipe.max_seq_length = 512;
    (run.execution.loss_chunk, run.execution.attention_chunk, run.execution.mlp_chunk) = (128, 128, 256);
    let on = (&gpu, Backend::of(&gpu));
    let Device::Metal(metal) = &gpu else { unreachable!() };
    let before = metal.metal_device().current_allocated_size() as f64;
    let mut decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, on).unwrap();
    for i in 0..decoder.sites.len() {
        let fresh = adapter::fresh(&decoder.sites[i], i, run.recipe.lora.rank, 3, on).unwrap();
        decoder.set_adapter(i, fresh).unwrap();
    }
    let (mut optimizer, mut buffers) =
        (Optimizer::new(&decoder, &run.recipe).unwrap(), decoder.buffers().unwrap());
    let rows = [511, 511];
    let micro_batch = batch(&rows, 1022);
    for _ in 0..3 {
        let started = Instant::now();
        optim::clear(&decoder, &buffers.grads).unwrap();
        for _ in 0..2 {
            decoder.loss_and_grads(&micro_batch, 1e-3, (0, 0), &mut buffers).unwrap();
        }
        let norm = optim::grad_norm(&decoder, &buffers.grads).unwrap();
        optimizer.step(&mut decoder, &buffers.grads, optim::clip(norm, 1.0), 1e-3).unwrap();
        gpu.synchronize().unwrap();
        println!("a step takes {:?}", started.elapsed());
    }
    let seen = headroom::ops::metal::allocated_peak(&gpu).unwrap() as f64 - before;
    let replayed = replay(&record(&spec, &run, &micro_batch, None).unwrap().events).peak_bytes.as_f64();
    println!("Metal told of {seen:.0} bytes, the replay of {replayed:.0}");
    assert!((seen / replayed - 1.0).abs() < 0.1, "{seen} {replayed}");
}
