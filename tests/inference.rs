//! A text that is run piece by piece, with the keys and values of the earlier pieces kept, has the logits of the whole.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod common;

use std::path::Path;

use candle_core::{Device, Tensor};
use common::{FAMILIES, fixture};
use headroom::checkpoint::source::ModelSource;
use headroom::data::batches::MicroBatch;
use headroom::spec::run::RunConfig;
use headroom::trainer::candle::nn::adapter;
use headroom::trainer::candle::nn::decoder::Decoder;

/// Fixtures with other adapters.
const VARIANTS: [(&str, &str, &str); 3] = [
    ("llama_rslora", "llama", "use_rslora = true"),
    ("gemma3_dora", "gemma3", "use_dora = true"),
    ("phi3_dora_rslora", "phi3", "use_dora = true, use_rslora = true"),
];

/// Several times the windows of the fixtures, which are of 8 tokens.
const LENGTH: usize = 60;

/// A model of the fixtures with its adapter, and the size of its vocabulary.
fn decoder(name: &str) -> (Decoder, usize) {
    let plain = (name, name, "use_rslora = false");
    let (_, family, lora) = VARIANTS.into_iter().find(|(variant, ..)| *variant == name).unwrap_or(plain);
    let run = format!(
        "model = \"{family}\"\ndata = \"rows.jsonl\"\n[recipe]\nmax_seq_length = 64\neffective_batch_size = 1\nsteps = 1\n\
         lora = {{ rank = 4, alpha = 6, {lora} }}\n[execution]\nattention_chunk = 5\nmlp_chunk = 11\nweights = \"f32\""
    );
    let run = RunConfig::from_toml(&run, Path::new("run.toml")).unwrap();
    let source = ModelSource::Folder(fixture("reference").join(family));
    let spec = source.spec().unwrap();
    let mut decoder =
        Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, common::backend())).unwrap();
    adapter::load(&mut decoder, &run, &fixture("reference").join(name).join("adapter")).unwrap();
    (decoder, spec.vocab_size)
}

#[test]
fn pieces_have_the_logits_of_the_whole() {
    let alone = [1; LENGTH];
    let mut prompt_first = vec![1; 24];
    prompt_first[0] = LENGTH - 23;
    let pieces: [&[usize]; 5] = [&[LENGTH], &alone, &prompt_first, &[7, 1, 13, 1, 1, 31, 6], &[3, 57]];
    for name in FAMILIES.into_iter().chain(VARIANTS.into_iter().map(|(name, ..)| name)) {
        let (decoder, vocab) = decoder(name);
        let tokens: Vec<u32> = (0..LENGTH).map(|i| ((i * i * 7 + 3 * i + 1) % vocab) as u32).collect();
        let all: Vec<u32> = (0..LENGTH as u32).collect();
        let examples = std::iter::once(0..LENGTH).collect();
        let whole = MicroBatch { tokens: tokens.clone(), examples, targets: vec![] };
        let expected = decoder.logits(&whole, &all).unwrap();
        for sizes in pieces {
            let mut cache = decoder.cache();
            let of_piece = |size: &usize| {
                let start = cache.tokens();
                decoder.extend(&tokens[start..start + size], &all[..*size], &mut cache).unwrap()
            };
            let found = Tensor::cat(&sizes.iter().map(of_piece).collect::<Vec<_>>(), 0).unwrap();
            let worst = (&found - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert_eq!(found.dims(), [LENGTH, vocab]);
            assert!(worst < 1e-5, "{name} in pieces of {sizes:?}: logits differ by {worst}");
        }
    }
}

/// The cache makes room for 256 tokens at a time.
#[test]
fn a_cache_grows() {
    let source = ModelSource::Builtin;
    let spec = source.spec().unwrap();
    let run = "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 512";
    let run = RunConfig::from_toml(run, Path::new("run.toml")).unwrap();
    let decoder = Decoder::load(&source.weights().unwrap(), &spec, &run, (&Device::Cpu, common::backend())).unwrap();
    let tokens: Vec<u32> = (0..512).map(|i| (i * 37 + 5) % 1000).collect();
    let whole = MicroBatch { tokens: tokens.clone(), examples: std::iter::once(0..512).collect(), targets: vec![] };
    let expected = decoder.logits(&whole, &[511]).unwrap();
    let mut cache = decoder.cache();
    for piece in [&tokens[..250], &tokens[250..260], &tokens[260..511]] {
        decoder.extend(piece, &[0], &mut cache).unwrap();
    }
    let found = decoder.extend(&tokens[511..], &[0], &mut cache).unwrap();
    let worst = (&found - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(worst < 1e-4, "{worst}");
    assert_eq!(cache.tokens(), 512);
}
