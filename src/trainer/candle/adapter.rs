//! Adapters: how they start, and PEFT's files (`adapter_config.json`, `adapter_model.safetensors`).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::linear::Adapter;
use super::model::{Decoder, Site};
use super::tensor_file;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;
use crate::store;

/// Weights of a PEFT adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Its description.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The keys of `adapter_config.json` that PEFT and mlx-lm need, and that we read.
#[derive(Debug, Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    task_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: serde_json::Value,
    #[serde(default)]
    layers_to_transform: Option<Vec<usize>>,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
}

/// A fresh pair, as PEFT starts it: A uniform within 1 / sqrt(in) (Kaiming with a = sqrt(5)), B zero.
pub fn fresh(site: &Site, index: usize, rank: usize, seed: u64, device: &Device) -> Result<Adapter> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index as u64);
    let bound = (1.0 / site.in_features as f64).sqrt() as f32;
    let a: Vec<f32> = (0..rank * site.in_features).map(|_| rng.random_range(-bound..bound)).collect();
    Ok(Adapter {
        a: Tensor::from_vec(a, (rank, site.in_features), device)?,
        b: Tensor::zeros((site.out_features, rank), DType::F32, device)?,
        // DoRA's starts at the norms, which the projection knows.
        magnitude: None,
    })
}

/// Names of an adapter's tensors, in the order of [`Adapter::tensors`].
fn names(site: &Site) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
        .map(|part| format!("base_model.model.{}.{part}", site.path))
}

/// Writes the adapters of `decoder` into `folder`, in PEFT's layout.
pub fn save(decoder: &Decoder, spec: &ModelSpec, run: &RunConfig, folder: &Path) -> Result<()> {
    let lora = &run.recipe.lora;
    let targets: Vec<&str> = spec.targets(&lora.target_modules)?.iter().map(|p| p.name()).collect();
    let first = lora.first_layer(spec.num_hidden_layers);
    let config = PeftConfig {
        peft_type: "LORA".into(),
        task_type: Some("CAUSAL_LM".into()),
        base_model_name_or_path: Some(run.model.clone()),
        r: lora.rank,
        lora_alpha: lora.alpha,
        lora_dropout: lora.dropout,
        target_modules: targets.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect(),
        layers_to_transform: (first > 0).then(|| (first..spec.num_hidden_layers).collect()),
        fan_in_fan_out: spec.conv1d(),
        bias: Some("none".into()),
        inference_mode: true,
        use_dora: lora.use_dora,
        use_rslora: lora.use_rslora,
    };
    let mut tensors = HashMap::new();
    for (i, site) in decoder.sites.iter().enumerate() {
        if let Some(adapter) = decoder.adapter(i) {
            for (name, tensor) in names(site).into_iter().zip(adapter.tensors()) {
                tensors.insert(name, tensor.to_device(&Device::Cpu)?);
            }
        }
    }
    tensor_file::save(&folder.join(WEIGHTS_FILE), &tensors)?;
    store::save_json(&folder.join(CONFIG_FILE), &config)
}

/// Loads a PEFT adapter onto `decoder`; every difference from the run is listed.
pub fn load(decoder: &mut Decoder, run: &RunConfig, folder: &Path) -> Result<()> {
    let config: PeftConfig = store::load_json(&folder.join(CONFIG_FILE))?;
    let tensors = tensor_file::load(&folder.join(WEIGHTS_FILE))?;
    let wrong = mismatches(&config, &tensors, &decoder.sites, run);
    if !wrong.is_empty() {
        return Err(Error::Mismatch { path: folder.into(), reason: wrong.join("; ") });
    }
    for i in 0..decoder.sites.len() {
        let [a, b, magnitude] = names(&decoder.sites[i]);
        let get = |name: &str| tensors[name].to_dtype(DType::F32)?.to_device(decoder.device());
        let magnitude = run.recipe.lora.use_dora.then(|| get(&magnitude)).transpose()?;
        let adapter = Adapter { a: get(&a)?, b: get(&b)?, magnitude };
        decoder.set_adapter(i, adapter)?;
    }
    Ok(())
}

fn mismatches(config: &PeftConfig, tensors: &HashMap<String, Tensor>, sites: &[Site], run: &RunConfig) -> Vec<String> {
    let lora = &run.recipe.lora;
    let mut wrong = Vec::new();
    if config.r != lora.rank {
        wrong.push(format!("its rank is {}, the run's is {}", config.r, lora.rank));
    }
    if config.lora_alpha != lora.alpha {
        wrong.push(format!("its alpha is {}, the run's is {}", config.lora_alpha, lora.alpha));
    }
    for (key, its, ours) in
        [("use_dora", config.use_dora, lora.use_dora), ("use_rslora", config.use_rslora, lora.use_rslora)]
    {
        if its != ours {
            wrong.push(format!("its {key} is {its}, the run's is {ours}"));
        }
    }
    let mut expected = std::collections::HashSet::new();
    for site in sites {
        let [a, b, magnitude] = names(site);
        let mut wanted = vec![(a, vec![config.r, site.in_features]), (b, vec![site.out_features, config.r])];
        if config.use_dora {
            wanted.push((magnitude, vec![site.out_features]));
        }
        for (name, shape) in wanted {
            match tensors.get(&name) {
                None => wrong.push(format!("`{name}` is missing")),
                Some(t) if t.dims() != shape => {
                    wrong.push(format!("`{name}` is {:?}, the model wants {shape:?}", t.dims()))
                }
                Some(_) => {}
            }
            expected.insert(name);
        }
    }
    let mut extra: Vec<_> = tensors.keys().filter(|n| !expected.contains(*n)).collect();
    extra.sort();
    wrong.extend(extra.iter().map(|n| format!("`{n}` has no place in this run")));
    wrong
}

/// Rank and alpha of a PEFT adapter and the projections it names, so that `generate` needs no run file.
pub fn describe(folder: &Path) -> Result<crate::spec::run::Lora> {
    let config: PeftConfig = store::load_json(&folder.join(CONFIG_FILE))?;
    let target_modules = match &config.target_modules {
        serde_json::Value::Array(list) => list.iter().filter_map(|v| v.as_str().map(Into::into)).collect(),
        serde_json::Value::String(one) => vec![one.clone()],
        _ => vec![],
    };
    let first = config.layers_to_transform.as_ref().and_then(|l| l.first().map(|first| (l.len(), *first)));
    Ok(crate::spec::run::Lora {
        rank: config.r,
        alpha: config.lora_alpha,
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        dropout: 0.0,
        target_modules,
        num_layers: first.map_or(-1, |(n, _)| n as i64),
        init_adapter: None,
    })
}
