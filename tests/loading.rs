//! Loading never holds a second copy of the base, whatever it is read from and held in: only what one matrix needs on
//! its way. One test alone in its process: the allocator counts everything that the process does.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod folders;

use std::path::Path;

use candle_core::Device;
use headroom::checkpoint::source::ModelSource;
use headroom::memory;
use headroom::ops::Backend;
use headroom::spec::model::ModelSpec;
use headroom::spec::run::{RunConfig, Weights};
use headroom::trainer::candle::nn::decoder::Decoder;

/// Bytes of the f32 panel that a frozen weight is converted by.
const PANEL_BYTES: usize = 32 << 20;

#[global_allocator]
static ALLOCATOR: headroom::memory::Counting = headroom::memory::Counting;

const CONFIG: &str = r#"{"model_type":"llama","hidden_size":512,"intermediate_size":1536,"num_hidden_layers":12,"num_attention_heads":8,"num_key_value_heads":4,"vocab_size":6000,"max_position_embeddings":64}"#;

/// Megabytes: (base as predicted, alive after loading, highest while loading, allowed on top of what is alive).
fn load(model: &Path, weights: Weights, read: u64) -> [f64; 4] {
    let text = format!(
        "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 8\n[execution]\nweights = \"{}\"",
        weights.name()
    );
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let source = ModelSource::find(model.to_str().unwrap()).unwrap();
    let spec = source.spec().unwrap();
    let before = memory::live();
    memory::reset_peak();
    let decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, Backend::Fused)).unwrap();
    let (alive, peak) = (memory::live().saturating_sub(before), memory::peak().saturating_sub(before));
    drop(decoder);
    let largest = spec.vocab_size * spec.hidden_size;
    // The bytes of the file and the tensor made of them; where the format changes, its rows in f32.
    let panel = if weights == Weights::Stored { 0 } else { PANEL_BYTES.min(4 * largest) as u64 };
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let margin = 2 * read * largest as u64 / 8 + panel;
    [spec.matrices_bytes(weights), alive.0, peak.0, margin].map(megabytes)
}

#[test]
fn one_matrix_at_a_time() {
    let spec = ModelSpec::from_config(CONFIG).unwrap();
    let folder = || tempfile::tempdir().unwrap();
    let (dense, mlx4, mlx8, gguf) = (folder(), folder(), folder(), folder());
    folders::dense(&spec, CONFIG, dense.path());
    folders::mlx(&spec, CONFIG, (4, 64), mlx4.path());
    folders::mlx(&spec, CONFIG, (8, 32), mlx8.path());
    folders::gguf(&spec, gguf.path());
    use Weights::*;
    let formats = [Stored, F32, F16, Bf16, Int8, Q8_0, Q6K, Q4K, Q4_0];
    let cases = formats.map(|w| ("safetensors", &dense, w, 32)).into_iter().chain([
        ("MLX, 4 bits", &mlx4, Stored, 5),
        ("MLX, 8 bits", &mlx8, Stored, 9),
        ("MLX, 4 bits", &mlx4, Int8, 5),
        ("GGUF", &gguf, Stored, 7),
        ("GGUF", &gguf, Q8_0, 7),
    ]);
    for (name, folder, weights, bits) in cases {
        let [base, alive, peak, margin] = load(folder.path(), weights, bits);
        println!("{name} as {weights:?}: base {base:.1} MB, alive {alive:.1}, peak {peak:.1}, margin {margin:.1}");
        assert!((alive - base).abs() < 0.02 * base + 0.5, "{name} as {weights:?}: {alive} MB for {base}");
        assert!(peak < alive + margin + 0.5, "{name} as {weights:?}: peak {peak} MB, alive {alive}, margin {margin}");
    }
}
