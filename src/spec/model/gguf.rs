//! What llama.cpp calls a model's parts in a GGUF file, and how it lays them out: one table, for reading and writing.
//!
//! The names are those of `gguf-py` (`MODEL_TENSOR`), the layouts those of `convert_hf_to_gguf.py`.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::spec::model::architecture::{ModelSpec, ModelType, Positions, Rope, RopeScaling, SUPPORTED};
use crate::spec::model::frequencies::inverse_frequencies;
use crate::spec::model::tensors::Role;

/// `general.architecture` of a family, which is also the prefix of its keys.
pub(crate) fn architecture(model_type: ModelType) -> &'static str {
    match model_type {
        // llama.cpp has one code for both.
        ModelType::Llama | ModelType::Mistral => "llama",
        ModelType::Qwen2 => "qwen2",
        ModelType::Qwen3 => "qwen3",
        ModelType::Starcoder2 => "starcoder2",
        ModelType::Gpt2 => "gpt2",
        ModelType::Gemma2 => "gemma2",
        ModelType::Gemma3 => "gemma3",
        ModelType::Phi3 => "phi3",
        ModelType::GptOss => "gpt-oss",
    }
}

/// The metadata and tensors of a GGUF file that tell its architecture.
pub(crate) struct Described<'a> {
    /// Metadata of the file by key, without the long arrays.
    pub metadata: &'a Map<String, Value>,
    /// Shape of a tensor by llama.cpp's name, rows first; `None` where the file lacks it.
    pub tensors: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    /// Divisors of the rope frequencies, from `rope_freqs.weight` (Llama 3).
    pub rope_freqs: Option<Vec<f64>>,
    /// Short and long rope factors, from `rope_factors_short.weight` and `rope_factors_long.weight` (Phi-3).
    pub rope_factors: Option<(Vec<f64>, Vec<f64>)>,
}

/// The architecture of a GGUF file, and the config.json that it was made from, as far as the file tells.
pub(crate) fn from_metadata(file: &Described<'_>) -> Result<(ModelSpec, Map<String, Value>)> {
    let missing = |key: &str| Error::invalid(key, "absent", "in the metadata of a GGUF file");
    let name = file.metadata.get("general.architecture").and_then(Value::as_str);
    let name = name.ok_or_else(|| missing("general.architecture"))?;
    let get = |key: &str| file.metadata.get(&format!("{name}.{key}")).cloned();
    let experts = get("expert_count").is_some_and(|n| n.as_u64() != Some(0));
    if experts || !KNOWN.contains(&name) {
        let reason = experts.then(|| "it is a mixture of experts".to_owned());
        return Err(Error::UnknownArchitecture { model_type: name.into(), reason, supported: SUPPORTED });
    }
    let number = |key: &str| get(key).and_then(|v| v.as_f64());
    let mut config = Map::new();
    // llama.cpp calls the text model of Gemma 3 what transformers calls the whole.
    config.insert("model_type".into(), json!(if name == "gemma3" { "gemma3_text" } else { name }));
    for (ours, theirs) in KEYS {
        if let Some(value) = get(theirs) {
            config.insert(ours.into(), value);
        }
    }
    let rows = (file.tensors)("token_embd.weight").and_then(|shape| shape.first().copied());
    config.insert("vocab_size".into(), json!(rows.ok_or_else(|| missing("token_embd.weight"))?));
    config.insert("tie_word_embeddings".into(), json!((file.tensors)("output.weight").is_none()));
    if name == "phi3" && number("attention.sliding_window") == Some(0.0) {
        // So llama.cpp tells the models without a window.
        config.remove("sliding_window");
    }
    match get("attention.sliding_window_pattern") {
        Some(Value::Array(layers)) => {
            let kind = |layer: &Value| if layer == &json!(true) { "sliding_attention" } else { "full_attention" };
            config.insert("layer_types".into(), layers.iter().map(kind).collect());
        }
        Some(every) => drop(config.insert("sliding_window_pattern".into(), every)),
        None => {}
    }
    let heads = number("attention.head_count").filter(|n| *n >= 1.0);
    let heads = heads.ok_or_else(|| missing("attention.head_count"))?;
    let width = number("embedding_length").ok_or_else(|| missing("embedding_length"))?;
    let head_dim = number("attention.key_length").unwrap_or(width / heads);
    config.insert("head_dim".into(), json!(head_dim as u64));
    if let Some(dims) = number("rope.dimension_count") {
        if !["phi3", "gpt2"].contains(&name) && dims != head_dim {
            let must = format!("{head_dim}: this family rotates whole heads");
            return Err(Error::invalid(format!("{name}.rope.dimension_count"), dims, must));
        }
        config.insert("partial_rotary_factor".into(), json!(dims / head_dim));
    }
    // llama.cpp tells Gemma's 27B from the others by their blocks, and has their scales in its code.
    let largest = matches!((name, number("block_count")), ("gemma2", Some(46.0)) | ("gemma3", Some(62.0)));
    config.insert("query_pre_attn_scalar".into(), json!(if largest { width / heads } else { head_dim }));
    config.extend(rope_scaling(file, name));
    let mut spec = ModelSpec::from_map(&config).map_err(|e| by_its_own_key(e, name))?;
    let has = |name: &str| (file.tensors)(name).is_some();
    spec.attention.qkv_bias = has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias");
    spec.attention.o_bias = has("blk.0.attn_output.bias");
    spec.mlp.bias = has("blk.0.ffn_up.bias");
    for (key, biased) in [("attention_bias", spec.attention.o_bias), ("mlp_bias", spec.mlp.bias)] {
        if biased {
            config.insert(key.into(), json!(true));
        }
    }
    // The converter adds Gemma's 1 to the norms, and turns GPT-2's matrices round.
    spec.norm.offset = 0.0;
    spec.storage.out_in = true;
    if let (Some(factors), Positions::Rope { global, .. }) = (&file.rope_freqs, &mut spec.positions) {
        let wrong = || Error::invalid("rope_freqs.weight", factors.len(), format!("{} numbers", global.dims / 2));
        (factors.len() == global.dims / 2).then_some(()).ok_or_else(wrong)?;
        let (scaling, table) = stretched(factors, global, spec.max_position_embeddings);
        global.scaling = Some(scaling);
        config.insert("rope_scaling".into(), table);
    }
    Ok((spec, config))
}

/// The scaling that makes these divisors of the frequencies, and its table in config.json: Llama 3's, which is published
/// with two factors, or else a table of them.
fn stretched(factors: &[f64], rope: &Rope, length: usize) -> (RopeScaling, Value) {
    let (plain, _) = inverse_frequencies(&Rope { scaling: None, ..rope.clone() }, length);
    for factor in [8.0, 32.0] {
        let llama3 = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let (made, _) = inverse_frequencies(&Rope { scaling: Some(llama3.clone()), ..rope.clone() }, length);
        let same = |((plain, made), factor): ((&f64, &f64), &f64)| (plain / made / factor - 1.0).abs() < 1e-5;
        if plain.iter().zip(&made).zip(factors).all(same) {
            let table = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192});
            return (llama3, table);
        }
    }
    let table = json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
        "original_max_position_embeddings": length});
    let scaling = RopeScaling::LongRope {
        short_factor: factors.to_vec(),
        long_factor: factors.to_vec(),
        attention_factor: 1.0,
        original_max_position_embeddings: length,
    };
    (scaling, table)
}

/// An error about a key of config.json, about the key of the metadata that it came from.
fn by_its_own_key(error: Error, name: &str) -> Error {
    let Error::Invalid { field, got, must } = error else { return error };
    let key = field.trim_end_matches("` in `config.json");
    let field = match KEYS.iter().find(|(ours, _)| *ours == key) {
        Some((_, theirs)) => format!("{name}.{theirs}"),
        None => key.to_owned(),
    };
    Error::Invalid { field, got, must }
}

/// Values of `general.architecture` that are supported.
const KNOWN: [&str; 8] = ["llama", "qwen2", "qwen3", "starcoder2", "gpt2", "gemma2", "gemma3", "phi3"];

/// Keys of config.json and llama.cpp's for the same, without the architecture before them.
const KEYS: [(&str, &str); 13] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("norm_epsilon", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("sliding_window", "attention.sliding_window"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// The `rope_scaling` table of config.json that the metadata describe, or an empty table.
fn rope_scaling(file: &Described<'_>, name: &str) -> Map<String, Value> {
    let get = |key: &str| file.metadata.get(&format!("{name}.rope.scaling.{key}")).cloned();
    let mut scaling = Map::new();
    let keys = [
        ("rope_type", "type"),
        ("factor", "factor"),
        ("original_max_position_embeddings", "original_context_length"),
        ("beta_fast", "yarn_beta_fast"),
        ("beta_slow", "yarn_beta_slow"),
        ("attention_factor", "attn_factor"),
    ];
    for (ours, theirs) in keys {
        if let Some(value) = get(theirs) {
            scaling.insert(ours.into(), value);
        }
    }
    if let Some((short, long)) = &file.rope_factors {
        let own = [("rope_type", json!("longrope")), ("short_factor", json!(short)), ("long_factor", json!(long))];
        scaling.extend(own.map(|(key, value)| (key.to_owned(), value)));
    }
    match scaling.get("rope_type").and_then(Value::as_str) {
        None | Some("none") => Map::new(),
        Some(_) => Map::from_iter([("rope_scaling".to_owned(), Value::Object(scaling))]),
    }
}

impl ModelSpec {
    /// Name in a GGUF file of the tensor that transformers calls `name` (as [`ModelSpec::tensors`] does).
    pub fn gguf_name(&self, name: &str) -> Option<String> {
        let (path, suffix) = name.rsplit_once('.')?;
        let of = |part: &str| Some(format!("{part}.{suffix}"));
        if name == self.embedding_name() {
            return of("token_embd");
        }
        if path == self.final_norm_name() {
            return of("output_norm");
        }
        match path {
            "transformer.wpe" => return of("position_embd"),
            "lm_head" => return of("output"),
            _ => {}
        }
        let blocks = self.block_path(0);
        let (index, inside) = path.strip_prefix(blocks.strip_suffix('0')?)?.split_once('.')?;
        of(&format!("blk.{index}.{}", self.gguf_part(inside)?))
    }

    /// A block's part by its path in the block.
    fn gguf_part(&self, path: &str) -> Option<&'static str> {
        let norms = self.norm_names();
        Some(match path {
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            _ if path == norms.input => "attn_norm",
            _ if Some(path) == norms.post_attention => "post_attention_norm",
            _ if path == norms.pre_mlp => "ffn_norm",
            _ if Some(path) == norms.post_mlp => "post_ffw_norm",
            _ => match self.projections().into_iter().find(|p| p.path == path)?.role {
                Role::Q => "attn_q",
                Role::K => "attn_k",
                Role::V => "attn_v",
                Role::Qkv => "attn_qkv",
                Role::O => "attn_output",
                Role::Gate => "ffn_gate",
                Role::Up | Role::GateUp => "ffn_up",
                Role::Down => "ffn_down",
                Role::Router => "ffn_gate_inp",
            },
        })
    }

    /// The heads of a tensor whose rows llama.cpp stores in another order: it rotates neighbouring rows of a head
    /// where transformers rotates row `j` with row `j + head_dim / 2`. So in the file row `2 j + p` of a head is
    /// transformers' row `p * head_dim / 2 + j`. `None` for all others, and for every family but Llama's.
    pub(crate) fn gguf_interleaved_heads(&self, name: &str) -> Option<usize> {
        // Mistral is a llama to llama.cpp.
        let llama = matches!(self.model_type, ModelType::Llama | ModelType::Mistral);
        match name.rsplit('.').nth(1) {
            Some("q_proj") if llama => Some(self.attention.num_attention_heads),
            Some("k_proj") if llama => Some(self.attention.num_key_value_heads),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::catalogue;

    #[test]
    fn every_tensor_of_every_family_has_a_name_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for entry in catalogue::all().iter().filter(|e| e.spec.experts.is_none()) {
            let spec = &entry.spec;
            let name = |n: &str| spec.gguf_name(n).unwrap_or_else(|| panic!("{}: {n}", entry.id));
            let names: std::collections::HashSet<String> = spec.tensors().iter().map(|t| name(&t.name)).collect();
            assert_eq!(names.len(), spec.tensors().len(), "{}", entry.id);
            seen.insert(architecture(spec.model_type));
        }
        assert!(seen.len() == KNOWN.len() && KNOWN.iter().all(|name| seen.contains(name)));
    }

    #[test]
    fn names_are_those_of_llama_cpp() {
        let spec = |id: &str| &catalogue::find(id).unwrap().spec;
        let llama = spec("Llama-3.2-1B-Instruct");
        assert_eq!(llama.gguf_name("model.embed_tokens.weight").unwrap(), "token_embd.weight");
        assert_eq!(llama.gguf_name("model.layers.12.self_attn.k_proj.weight").unwrap(), "blk.12.attn_k.weight");
        assert_eq!(llama.gguf_name("model.layers.1.post_attention_layernorm.weight").unwrap(), "blk.1.ffn_norm.weight");
        assert_eq!(llama.gguf_interleaved_heads("model.layers.0.self_attn.q_proj.weight"), Some(32));
        assert_eq!(llama.gguf_interleaved_heads("model.layers.0.self_attn.k_proj.weight"), Some(8));
        assert_eq!(llama.gguf_interleaved_heads("model.layers.0.self_attn.v_proj.weight"), None);
        let gemma = spec("google/gemma-2-2b-it");
        let post = "model.layers.1.post_attention_layernorm.weight";
        assert_eq!(gemma.gguf_name(post).unwrap(), "blk.1.post_attention_norm.weight");
        assert_eq!(gemma.gguf_interleaved_heads("model.layers.0.self_attn.q_proj.weight"), None);
        let gpt2 = spec("openai-community/gpt2");
        assert_eq!(gpt2.gguf_name("transformer.wpe.weight").unwrap(), "position_embd.weight");
        assert_eq!(gpt2.gguf_name("transformer.h.3.attn.c_attn.bias").unwrap(), "blk.3.attn_qkv.bias");
        assert_eq!(gpt2.gguf_name("transformer.h.3.mlp.c_proj.weight").unwrap(), "blk.3.ffn_down.weight");
        assert_eq!(gpt2.gguf_name("something.else"), None);
    }
}
