//! What several tests know of the fixtures.

#![allow(dead_code, clippy::unwrap_used)] // none of them needs all of it

mod host;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use headroom::ops::Backend;
use headroom::ops::metal::{HostKernels, Queue, SOURCE};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The models that `tests/fixtures/reference/make.py` made.
pub const FAMILIES: [&str; 14] = [
    "llama",
    "llama3_rope",
    "llama_linear_rope",
    "llama_yarn",
    "llama_biased",
    "mistral",
    "qwen2",
    "qwen2_untied",
    "qwen3",
    "starcoder2",
    "gpt2",
    "gemma2",
    "gemma3",
    "phi3",
];

/// What computes: the fused kernels; in `tests/composed.rs` candle's operations alone; in `tests/kernels.rs` the Metal back
/// end, whose kernels are compiled as C++.
pub fn backend() -> Backend {
    match env!("CARGO_CRATE_NAME") {
        "composed" => Backend::Composed,
        "kernels" => metal(),
        _ => Backend::Fused,
    }
}

/// The Metal back end on the CPU; with `HEADROOM_KERNELS=gpu` a Mac's GPU is held to it, launch by launch.
pub fn metal() -> Backend {
    // SAFETY: the kernels are compiled from that source.
    let kernels = unsafe { HostKernels::new(host::host(SOURCE)) };
    let both = std::env::var_os("HEADROOM_KERNELS").is_some_and(|on| on == "gpu");
    Backend::Metal(Queue::Host(if both { kernels.beside_gpu() } else { kernels }))
}

/// A file or folder of the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Numbers with this mean and standard deviation, the same for the same name and shape.
pub fn drawn(name: &str, shape: &[usize], mean: f32, sd: f32) -> Tensor {
    // FNV-1a: tensors of other names are others.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let reach = 3f32.sqrt() * sd;
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| mean + rng.random_range(-reach..=reach)).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// The header and the rows of a CSV file.
pub fn read_csv(path: &Path) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let columns = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let rows = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
    (columns, rows)
}

/// Writes a CSV file.
pub fn write_csv(path: &Path, columns: &[String], rows: &[Vec<String>]) {
    let mut writer = csv::Writer::from_path(path).unwrap();
    writer.write_record(columns).unwrap();
    rows.iter().for_each(|row| writer.write_record(row).unwrap());
    writer.flush().unwrap();
}
