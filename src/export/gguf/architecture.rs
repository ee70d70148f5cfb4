//! What llama.cpp must know of an architecture, and what it cannot be told.

use crate::export::gguf::file::{Metadata, Value};
use crate::spec::model::gguf::architecture;
use crate::spec::model::{Activation, ModelSpec, ModelType, Positions, Rope, RopeScaling};

/// The metadata of the architecture, and notes on where llama.cpp will compute something else; or why it cannot
/// compute this model at all.
pub(crate) fn describe(spec: &ModelSpec) -> Result<(Metadata, Vec<String>), String> {
    refuse(spec)?;
    let (a, arch) = (&spec.attention, architecture(spec.model_type));
    let mut out: Metadata = vec![("general.architecture".into(), arch.into())];
    let mut put = |key: &str, value: Value| out.push((format!("{arch}.{key}"), value));
    put("block_count", spec.num_hidden_layers.into());
    put("context_length", spec.max_position_embeddings.into());
    put("embedding_length", spec.hidden_size.into());
    put("feed_forward_length", spec.intermediate_size.into());
    put("vocab_size", spec.vocab_size.into());
    put("attention.head_count", a.num_attention_heads.into());
    put("attention.head_count_kv", a.num_key_value_heads.into());
    put("attention.key_length", a.head_dim.into());
    put("attention.value_length", a.head_dim.into());
    let eps = if spec.norm.layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    put(eps, spec.norm.eps.into());
    if let Some(cap) = a.softcap {
        put("attn_logit_softcapping", cap.into());
    }
    if let Some(cap) = spec.final_logit_softcapping {
        put("final_logit_softcapping", cap.into());
    }
    let mut notes = windows(spec, &mut put);
    if let Positions::Rope { global, local } = &spec.positions {
        rope(spec, global, &mut put);
        notes.extend(betas(global));
        if let Some(local) = local {
            put("rope.freq_base_swa", local.theta.into());
        }
    }
    Ok((out, notes))
}

/// Refuses models that differ from llama.cpp's in ways that no metadata can express.
fn refuse(spec: &ModelSpec) -> Result<(), String> {
    use ModelType::*;
    let (a, family) = (&spec.attention, spec.model_type);
    let gelu = matches!(family, Starcoder2 | Gpt2 | Gemma2 | Gemma3);
    let expected = if gelu { Activation::GeluTanh } else { Activation::Silu };
    let arch = architecture(family);
    if spec.mlp.activation != expected {
        return Err(format!("llama.cpp computes {arch} with {expected:?}, this model has {:?}", spec.mlp.activation));
    }
    // Gemma 27B is the one whose scores llama.cpp scales by the width of a head's share of the hidden state.
    let large = matches!((family, spec.num_hidden_layers), (Gemma2, 46) | (Gemma3, 62));
    let width = if large { spec.hidden_size / a.num_attention_heads } else { a.head_dim };
    let scale = (width as f64).powf(-0.5);
    if (a.scale - scale).abs() > 1e-6 * scale {
        return Err(format!("llama.cpp scales {arch}'s scores by {scale:.6}, this model by {:.6}", a.scale));
    }
    let must_be_biased = matches!(family, Starcoder2 | Gpt2);
    let may_be_biased = must_be_biased || matches!(family, Llama);
    let biases = [("output projection", a.o_bias), ("MLP", spec.mlp.bias)];
    for (what, biased) in
        biases.into_iter().chain(matches!(family, Qwen3 | Gemma2 | Gemma3).then_some(("queries", a.qkv_bias)))
    {
        if (biased && !may_be_biased) || (!biased && must_be_biased) {
            let has = if biased { "has one" } else { "has none" };
            return Err(format!("llama.cpp's {arch} differs in the bias of its {what}; this model {has}"));
        }
    }
    if family == Gemma2 && (a.softcap.is_none() || spec.final_logit_softcapping.is_none()) {
        return Err("llama.cpp's gemma2 always caps its scores and logits, this model does not".into());
    }
    if matches!(family, Gemma2 | Gemma3) && !spec.tie_word_embeddings {
        return Err(format!("llama.cpp's {arch} takes the embedding as its head, this model has one of its own"));
    }
    let Positions::Rope { global, local } = &spec.positions else { return Ok(()) };
    if local.as_ref().is_some_and(|l| l.scaling.is_some()) {
        return Err("its rope is stretched in the layers with a window, which llama.cpp cannot be told".into());
    }
    match &global.scaling {
        Some(RopeScaling::Llama3 { .. }) if arch != "llama" => {
            Err(format!("llama.cpp knows rope scaling `llama3` for llama alone, not for {arch}"))
        }
        Some(scaling @ RopeScaling::LongRope { .. })
            if arch != "phi3" && !(arch == "llama" && plain_divisors(scaling)) =>
        {
            Err(format!("rope scaling `longrope` is written for phi3 alone, not for {arch}"))
        }
        Some(RopeScaling::Yarn { truncate: false, .. }) => {
            Err("its yarn does not round its corrections (`truncate` is false), llama.cpp's does".into())
        }
        _ => Ok(()),
    }
}

/// Sliding windows: Gemma's are llama.cpp's too; elsewhere it attends to everything, which differs only beyond them.
fn windows(spec: &ModelSpec, put: &mut dyn FnMut(&str, Value)) -> Vec<String> {
    let windows = &spec.attention.windows;
    let window = windows.iter().flatten().next();
    let alternating = match spec.model_type {
        ModelType::Gemma2 => 2,
        ModelType::Gemma3 => 6,
        family => {
            if family == ModelType::Phi3 {
                // llama.cpp tells Phi-4 by a window of 0.
                put("attention.sliding_window", window.copied().unwrap_or(0).into());
            }
            let note = |w: &usize| {
                format!(
                    "llama.cpp gives {} no sliding window: beyond {w} tokens it attends to more than the model does",
                    architecture(family)
                )
            };
            return window.filter(|w| **w < spec.max_position_embeddings).map(note).into_iter().collect();
        }
    };
    put("attention.sliding_window", window.copied().unwrap_or(0).into());
    let usual = |i: usize| !(i + 1).is_multiple_of(alternating);
    if (0..windows.len()).any(|i| windows[i].is_some() != usual(i)) {
        put("attention.sliding_window_pattern", Value::Bools(windows.iter().map(Option::is_some).collect()));
    }
    vec![]
}

fn rope(spec: &ModelSpec, rope: &Rope, put: &mut dyn FnMut(&str, Value)) {
    put("rope.dimension_count", rope.dims.into());
    put("rope.freq_base", rope.theta.into());
    let original = |put: &mut dyn FnMut(&str, Value), n: usize| put("rope.scaling.original_context_length", n.into());
    match &rope.scaling {
        None | Some(RopeScaling::Llama3 { .. }) => {
            if spec.model_type == ModelType::Phi3 {
                original(put, spec.max_position_embeddings);
            }
        }
        Some(RopeScaling::Linear { factor }) => {
            put("rope.scaling.type", "linear".into());
            put("rope.scaling.factor", (*factor).into());
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_max_position_embeddings,
            ..
        }) => {
            put("rope.scaling.type", "yarn".into());
            put("rope.scaling.factor", (*factor).into());
            original(put, *original_max_position_embeddings);
            put("rope.scaling.yarn_beta_fast", (*beta_fast).into());
            put("rope.scaling.yarn_beta_slow", (*beta_slow).into());
            // It multiplies by the usual factor itself.
            let usual = if *factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
            if (attention_factor / usual - 1.0).abs() > 1e-6 {
                put("rope.scaling.attn_factor", (attention_factor / usual).into());
            }
        }
        Some(scaling) if spec.model_type != ModelType::Phi3 && plain_divisors(scaling) => {}
        Some(RopeScaling::LongRope { attention_factor, original_max_position_embeddings, .. }) => {
            original(put, *original_max_position_embeddings);
            put("rope.scaling.attn_factor", (*attention_factor).into());
        }
    }
}

/// Whether a scaling is one divisor for each frequency at every length, as another GGUF file has them.
fn plain_divisors(scaling: &RopeScaling) -> bool {
    matches!(scaling, RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. }
        if short_factor == long_factor && *attention_factor == 1.0)
}

/// llama.cpp reads yarn's betas for two other families alone, and computes these with 32 and 1 whatever the file says.
fn betas(rope: &Rope) -> Option<String> {
    let Some(RopeScaling::Yarn { beta_fast, beta_slow, .. }) = rope.scaling else { return None };
    let note = format!(
        "llama.cpp wants this model's yarn on its command line: --yarn-beta-fast {beta_fast} --yarn-beta-slow {beta_slow}"
    );
    (beta_fast != 32.0 || beta_slow != 1.0).then_some(note)
}

/// Rope frequencies that llama.cpp reads as tensors: each frequency is divided by its number.
pub(crate) fn rope_factors(spec: &ModelSpec) -> Vec<(&'static str, Vec<f32>)> {
    let Positions::Rope { global, .. } = &spec.positions else { return vec![] };
    let narrow = |factors: &[f64]| factors.iter().map(|f| *f as f32).collect();
    match &global.scaling {
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            let original = *original_max_position_embeddings as f64;
            let factors = (0..global.dims / 2).map(|i| {
                let wavelength = std::f64::consts::TAU * global.theta.powf(2.0 * i as f64 / global.dims as f64);
                if wavelength < original / high_freq_factor {
                    1.0
                } else if wavelength > original / low_freq_factor {
                    *factor
                } else {
                    let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            });
            vec![("rope_freqs.weight", narrow(&factors.collect::<Vec<_>>()))]
        }
        Some(scaling @ RopeScaling::LongRope { short_factor, .. })
            if spec.model_type != ModelType::Phi3 && plain_divisors(scaling) =>
        {
            vec![("rope_freqs.weight", narrow(short_factor))]
        }
        Some(RopeScaling::LongRope { short_factor, long_factor, .. }) => {
            vec![("rope_factors_long.weight", narrow(long_factor)), ("rope_factors_short.weight", narrow(short_factor))]
        }
        _ => vec![],
    }
}
