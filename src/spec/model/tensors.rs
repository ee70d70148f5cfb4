//! The tensors of a checkpoint by Hugging Face's names, and the projections LoRA can sit on.
//!
//! One list serves the cost model (which counts it) and the trainer (which loads it).

use crate::error::{Error, Result};
use crate::spec::model::Weights;
use crate::spec::model::architecture::{ModelSpec, ModelType, Positions};
use crate::spec::model::storage::Format;
use crate::spec::run::recipe::{Lora, Optimizer};

/// Name and shape of a tensor stored in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the tensor in the checkpoint, as transformers writes it.
    pub name: String,
    /// Shape as the checkpoint stores it.
    pub shape: Vec<usize>,
}

/// What a projection does in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Role {
    Q,
    K,
    V,
    /// Queries, keys and values by one matrix.
    Qkv,
    O,
    Gate,
    Up,
    /// Gate and up by one matrix.
    GateUp,
    Down,
    /// The router, which picks the experts of each token.
    Router,
}

/// A linear layer of a block: `y = x W^T + b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// What the projection computes in its block.
    pub role: Role,
    /// Path inside the block, such as `self_attn.q_proj`.
    pub path: &'static str,
    /// Width of the input `x`.
    pub in_features: usize,
    /// Width of the output `y`.
    pub out_features: usize,
    /// Whether the projection has a bias.
    pub bias: bool,
    /// Number of copies in a block: one per expert, 1 outside of mixtures.
    pub copies: usize,
    /// Number of copies that each token goes through.
    pub active: usize,
}

impl Projection {
    /// Last part of the path, by which `target_modules` names the projection.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// Parameters of an adapter on it: A (rank x in), B (out x rank) and DoRA's magnitude (out), on each expert its own.
    pub(crate) fn lora_params(&self, lora: &Lora) -> u64 {
        let magnitude = if lora.use_dora { self.out_features } else { 0 };
        (self.copies * (lora.rank * (self.in_features + self.out_features) + magnitude)) as u64
    }

    /// Size of the optimizer state of an adapter on this projection, bytes.
    pub(crate) fn optimizer_bytes(&self, lora: &Lora, optimizer: Optimizer) -> u64 {
        let pair = optimizer.state_bytes(&[lora.rank, self.in_features])
            + optimizer.state_bytes(&[self.out_features, lora.rank]);
        let magnitude = if lora.use_dora { optimizer.state_bytes(&[self.out_features]) } else { 0 };
        self.copies as u64 * (pair + magnitude)
    }
}

/// Names of a block's norms; each is a `weight`, and a `bias` where the norm has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormNames {
    /// Norm before attention.
    pub input: &'static str,
    /// Norm after attention, inside the residual (Gemma).
    pub post_attention: Option<&'static str>,
    /// Norm before the MLP.
    pub pre_mlp: &'static str,
    /// Norm after the MLP, inside the residual (Gemma).
    pub post_mlp: Option<&'static str>,
}

impl ModelSpec {
    /// Path of block `i` in the checkpoint, such as `model.layers.0`.
    pub(crate) fn block_path(&self, i: usize) -> String {
        if self.model_type == ModelType::Gpt2 { format!("transformer.h.{i}") } else { format!("model.layers.{i}") }
    }

    /// Name of the token embedding's tensor in the checkpoint.
    pub(crate) fn embedding_name(&self) -> &'static str {
        if self.model_type == ModelType::Gpt2 { "transformer.wte.weight" } else { "model.embed_tokens.weight" }
    }

    /// Name of the tensor that makes logits: the head's, or the embedding's where they are tied.
    pub(crate) fn head_name(&self) -> &'static str {
        if self.tie_word_embeddings { self.embedding_name() } else { "lm_head.weight" }
    }

    /// Name of the last norm, without `.weight`.
    pub(crate) fn final_norm_name(&self) -> &'static str {
        if self.model_type == ModelType::Gpt2 { "transformer.ln_f" } else { "model.norm" }
    }

    /// Names of the norms of a block.
    pub(crate) fn norm_names(&self) -> NormNames {
        match self.model_type {
            ModelType::Gpt2 => NormNames { input: "ln_1", post_attention: None, pre_mlp: "ln_2", post_mlp: None },
            _ if self.post_norms => NormNames {
                input: "input_layernorm",
                post_attention: Some("post_attention_layernorm"),
                pre_mlp: "pre_feedforward_layernorm",
                post_mlp: Some("post_feedforward_layernorm"),
            },
            _ => NormNames {
                input: "input_layernorm",
                post_attention: None,
                pre_mlp: "post_attention_layernorm",
                post_mlp: None,
            },
        }
    }

    /// Whether weights are stored `[in, out]` (GPT-2's Conv1D) instead of `[out, in]`.
    pub(crate) fn conv1d(&self) -> bool {
        self.model_type == ModelType::Gpt2 && !self.storage.out_in
    }

    /// The linear layers of a block, in the order they run.
    pub fn projections(&self) -> Vec<Projection> {
        let (h, f, q, kv) = (self.hidden_size, self.intermediate_size, self.q_size(), self.kv_size());
        let (a, m) = (&self.attention, &self.mlp);
        let make = |role, path, in_features, out_features, bias| Projection {
            role,
            path,
            in_features,
            out_features,
            bias,
            copies: 1,
            active: 1,
        };
        let gpt2 = self.model_type == ModelType::Gpt2;
        let mut list = Vec::with_capacity(7);
        if a.fused_qkv {
            list.push(make(
                Role::Qkv,
                if gpt2 { "attn.c_attn" } else { "self_attn.qkv_proj" },
                h,
                q + 2 * kv,
                a.qkv_bias,
            ));
        } else {
            list.push(make(Role::Q, "self_attn.q_proj", h, q, a.qkv_bias));
            list.push(make(Role::K, "self_attn.k_proj", h, kv, a.qkv_bias));
            list.push(make(Role::V, "self_attn.v_proj", h, kv, a.qkv_bias));
        }
        list.push(make(Role::O, if gpt2 { "attn.c_proj" } else { "self_attn.o_proj" }, q, h, a.o_bias));
        if let Some(experts) = self.experts {
            list.push(make(Role::Router, "mlp.gate", h, experts.num_experts, experts.gpt_oss));
            for (role, path, wide, narrow) in [
                (Role::Gate, "mlp.experts.gate_proj", h, f),
                (Role::Up, "mlp.experts.up_proj", h, f),
                (Role::Down, "mlp.experts.down_proj", f, h),
            ] {
                let one = make(role, path, wide, narrow, experts.gpt_oss);
                list.push(Projection { copies: experts.num_experts, active: experts.num_experts_per_tok, ..one });
            }
        } else if m.gated && m.fused {
            list.push(make(Role::GateUp, "mlp.gate_up_proj", h, 2 * f, m.bias));
            list.push(make(Role::Down, "mlp.down_proj", f, h, m.bias));
        } else if m.gated {
            list.push(make(Role::Gate, "mlp.gate_proj", h, f, m.bias));
            list.push(make(Role::Up, "mlp.up_proj", h, f, m.bias));
            list.push(make(Role::Down, "mlp.down_proj", f, h, m.bias));
        } else {
            list.push(make(Role::Up, "mlp.c_fc", h, f, m.bias));
            list.push(make(Role::Down, "mlp.c_proj", f, h, m.bias));
        }
        list
    }

    /// The projections that `target_modules` names, in running order; every name must hit something.
    pub(crate) fn targets(&self, target_modules: &[String]) -> Result<Vec<Projection>> {
        let all = self.projections();
        if target_modules.iter().any(|t| t == "all-linear") {
            return Ok(all);
        }
        let hit = |p: &Projection, t: &str| p.name() == t || p.path == t;
        if let Some(lost) = target_modules.iter().find(|t| !all.iter().any(|p| hit(p, t))) {
            let names: Vec<&str> = all.iter().map(Projection::name).collect();
            return Err(Error::invalid(
                "target_modules",
                format!("`{lost}`"),
                format!("\"all-linear\" or some of {}", names.join(", ")),
            ));
        }
        Ok(all.into_iter().filter(|p| target_modules.iter().any(|t| hit(p, t))).collect())
    }

    /// Every stored tensor, each once (a tied head is the embedding).
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = Vec::new();
        let mut push = |name: String, shape: Vec<usize>| list.push(TensorSpec { name, shape });
        push(self.embedding_name().into(), vec![self.vocab_size, self.hidden_size]);
        if self.model_type == ModelType::Gpt2 {
            push("transformer.wpe.weight".into(), vec![self.max_position_embeddings, self.hidden_size]);
        }
        for i in 0..self.num_hidden_layers {
            for (name, shape) in self.block_tensors() {
                push(format!("{}.{name}", self.block_path(i)), shape);
            }
        }
        for (suffix, shape) in self.norm_tensors(self.hidden_size) {
            push(format!("{}.{suffix}", self.final_norm_name()), shape);
        }
        if !self.tie_word_embeddings {
            push("lm_head.weight".into(), vec![self.vocab_size, self.hidden_size]);
        }
        list
    }

    /// The tensors of one block, by their path in it.
    pub(crate) fn block_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        let names = self.norm_names();
        for norm in [Some(names.input), names.post_attention, Some(names.pre_mlp), names.post_mlp].into_iter().flatten()
        {
            list.extend(self.norm_tensors(self.hidden_size).map(|(s, shape)| (format!("{norm}.{s}"), shape)));
        }
        if self.attention.qk_norm {
            list.push(("self_attn.q_norm.weight".into(), vec![self.attention.head_dim]));
            list.push(("self_attn.k_norm.weight".into(), vec![self.attention.head_dim]));
        }
        if self.experts.is_some_and(|e| e.gpt_oss) {
            list.push(("self_attn.sinks".into(), vec![self.attention.num_attention_heads]));
        }
        for p in self.projections() {
            // Experts lie on top of each other.
            if p.copies > 1 {
                list.push((format!("{}.weight", p.path), vec![p.copies, p.out_features, p.in_features]));
                if p.bias {
                    list.push((format!("{}.bias", p.path), vec![p.copies, p.out_features]));
                }
                continue;
            }
            let shape =
                if self.conv1d() { vec![p.in_features, p.out_features] } else { vec![p.out_features, p.in_features] };
            list.push((format!("{}.weight", p.path), shape));
            if p.bias {
                list.push((format!("{}.bias", p.path), vec![p.out_features]));
            }
        }
        list
    }

    fn norm_tensors(&self, width: usize) -> impl Iterator<Item = (&'static str, Vec<usize>)> + use<> {
        let bias = self.norm.layer_norm.then(|| ("bias", vec![width]));
        std::iter::once(("weight", vec![width])).chain(bias)
    }
}

impl ModelSpec {
    /// What a run that asks for `weights` holds a matrix in: `name` as transformers writes it, rows of `columns`.
    pub fn format(&self, weights: Weights, name: &str, columns: usize) -> Format {
        let other = || self.storage.others.iter().find(|o| o.name == name).map(|o| o.format);
        match weights.format(self.dtype) {
            Some(format) => format.for_columns(columns),
            None => other().unwrap_or_else(|| self.storage.format.for_columns(columns)),
        }
    }

    /// The format in which a run that asks for `weights` holds most matrices.
    pub(crate) fn usual_format(&self, weights: Weights) -> Format {
        weights.format(self.dtype).unwrap_or(self.storage.format)
    }

    /// Size of all matrices of the model in the formats that `weights` gives them, bytes.
    pub fn matrices_bytes(&self, weights: Weights) -> u64 {
        let format = self.usual_format(weights);
        let of = |shape: &[usize]| match shape {
            // The experts of a mixture lie on top of each other.
            [rows @ .., columns] if !rows.is_empty() => format.matrix_bytes(rows.iter().product(), *columns),
            _ => 0,
        };
        // Block by block and not by the list of all tensors, whose names a search would make thousands of times.
        let blocks = self.num_hidden_layers as u64 * self.block_tensors().iter().map(|(_, s)| of(s)).sum::<u64>();
        let table = of(&[self.vocab_size, self.hidden_size]);
        let head = if self.tie_word_embeddings { 0 } else { table };
        let positions = match self.positions {
            Positions::Learned => of(&[self.max_position_embeddings, self.hidden_size]),
            Positions::Rope { .. } => 0,
        };
        let usual = blocks + table + head + positions;
        let others = if weights == Weights::Stored { self.storage.others.as_slice() } else { &[] };
        others.iter().fold(usual, |sum, o| sum + o.format.matrix_bytes(o.shape[0], o.shape[1]) - of(&o.shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::catalogue;
    use crate::spec::model::storage::{Dtype, Other, Storage};

    #[test]
    fn the_matrices_of_a_model_are_counted_each_in_its_own_format() {
        for entry in catalogue::all() {
            let spec = &entry.spec;
            let each = |weights: Weights| {
                let matrices = spec.tensors().into_iter().filter(|t| t.shape.len() >= 2);
                let bytes = |t: TensorSpec| {
                    let columns = t.shape[t.shape.len() - 1];
                    let rows = t.shape.iter().product::<usize>() / columns;
                    spec.format(weights, &t.name, columns).matrix_bytes(rows, columns)
                };
                matrices.map(bytes).sum::<u64>()
            };
            for weights in [Weights::Stored, Weights::Int8, Weights::Q4K, Weights::FourBit] {
                assert_eq!(spec.matrices_bytes(weights), each(weights), "{} {weights:?}", entry.id);
            }
        }
    }

    #[test]
    fn a_matrix_may_have_a_format_of_its_own() {
        let affine = |bits| Format::Affine { bits, group: 64, scales: Dtype::F16 };
        let (four, eight) = (affine(4), affine(8));
        let mut spec = catalogue::find("Llama-3.2-1B-Instruct").unwrap().spec.clone();
        let name = "model.layers.0.mlp.up_proj.weight";
        spec.storage = Storage {
            others: vec![Other { name: name.into(), shape: [8192, 2048], format: eight }],
            ..Storage::uniform(four)
        };
        assert_eq!(spec.format(Weights::Stored, name, 2048), eight);
        assert_eq!(spec.format(Weights::F32, name, 2048), Format::F32);
        let mut plain = spec.clone();
        plain.storage = Storage::uniform(four);
        let more = spec.matrices_bytes(Weights::Stored) - plain.matrices_bytes(Weights::Stored);
        assert_eq!(more, 8192 * 2048 / 2);
    }
}
