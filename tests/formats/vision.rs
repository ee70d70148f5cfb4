//! The text parts of vision-language models, as transformers saved and computed them (`tests/fixtures/vision/make.py`).

use super::*;
use headroom::checkpoint::adapter::AdapterFile;
use headroom::export::{Request, export};
use headroom::spec::run::export_format::ExportFormat;

const MODELS: [&str; 4] = ["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl"];

/// The largest difference between the logits of a model's text part and transformers', and the largest of those.
fn difference(name: &str, adapter: Option<&Path>) -> (f64, f64) {
    let folder = fixture("vision").join(name);
    let answer: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("logits.json")).unwrap()).unwrap();
    let tokens: Vec<u32> = answer["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
    let mut run = RunConfig::from_toml(
        "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 64\neffective_batch_size = 1\n[execution]\nbatch_size = 1",
        Path::new("run.toml"),
    )
    .unwrap();
    run.recipe.lora = AdapterFile::read(&folder.join("adapter")).unwrap().lora();
    let source = ModelSource::find(folder.to_str().unwrap()).unwrap();
    let spec = source.spec().unwrap();
    assert_eq!(spec.part_of.as_deref(), Some(name));
    let weights = source.weights().unwrap();
    weights.check(&spec).unwrap();
    let mut decoder = Decoder::load(&weights, &spec, &run, (&Device::Cpu, common::backend())).unwrap();
    if let Some(adapter) = adapter {
        adapter::load(&mut decoder, &run, adapter).unwrap();
    }
    let all: Vec<u32> = (0..tokens.len() as u32).collect();
    let batch = MicroBatch { examples: std::iter::once(0..tokens.len()).collect(), tokens, targets: vec![] };
    let logits = decoder.logits(&batch, &all).unwrap().to_vec2::<f32>().unwrap();
    let expected = answer[if adapter.is_some() { "adapted" } else { "plain" }].as_array().unwrap();
    let (mut worst, mut largest) = (0f64, 0f64);
    for (row, expected) in logits.iter().zip(expected) {
        for (ours, theirs) in row.iter().zip(expected.as_array().unwrap()) {
            let theirs = theirs.as_f64().unwrap();
            worst = worst.max((f64::from(*ours) - theirs).abs());
            largest = largest.max(theirs.abs());
        }
    }
    (worst, largest)
}

#[test]
fn the_text_part_of_a_vision_language_model_is_computed_as_transformers_does() {
    for name in MODELS {
        let adapter = fixture("vision").join(name).join("adapter");
        for adapter in [None, Some(adapter.as_path())] {
            let (worst, largest) = difference(name, adapter);
            assert!(worst < 1e-5 * largest, "{name}, adapter {}: {worst} of {largest}", adapter.is_some());
        }
    }
}

#[test]
fn an_adapter_of_a_text_part_lies_where_peft_looks_for_it() {
    for name in MODELS {
        let folder = fixture("vision").join(name);
        let out = tempfile::tempdir().unwrap();
        let at = out.path().join("adapter");
        let peft = folder.join("adapter");
        let request = Request {
            model: folder.to_str().unwrap().into(),
            adapter: Some(peft.clone()),
            format: ExportFormat::Peft,
            weights: None,
            out: at.clone(),
            force: false,
        };
        export(&request, &mut |_, _| Ok(())).unwrap();
        let file = "adapter_model.safetensors";
        let tensors = |folder: &Path| candle_core::safetensors::load(folder.join(file), &Device::Cpu).unwrap();
        let (ours, theirs) = (tensors(&at), tensors(&peft));
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (key, tensor) in &theirs {
            assert_eq!(flat(&ours[key]), flat(tensor), "{name}: {key}");
        }
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(at.join("adapter_config.json")).unwrap()).unwrap();
        let targets = config["target_modules"].as_str().unwrap();
        assert!(targets.starts_with(r".*language_model.*\.(down_proj|"), "{targets}");
    }
}
