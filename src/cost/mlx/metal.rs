//! Memory of mlx-lm's LoRA trainer on Metal (0.28.2 and later), as `mx.get_peak_memory` counts it.
//!
//! mlx-lm keeps the base and the activations in the model's format, adapters and Adam in f32, and the logits of a
//! whole micro-batch. MLX has no fused backward of attention, so one layer's scores are quadratic in the length.
//! The constants below were read off mlx-lm's graph and hold published peaks (Qwen3-8B-4bit at 1024 to 8192 tokens
//! with and without checkpointing, Qwen3-4B, Qwen3-1.7B and Llama-3.2-3B in bf16) to within about a tenth.

use super::ledger::{Item, MemoryLedger, Phase};
use super::params::{Parameters, adapted, bits, trainable};
use super::work::mlx_padded;
use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;

const F32: u64 = 4;

/// Bytes of one logit at the tallest moment of the loss: logits, their exponentials and their gradient.
const LOGIT: u64 = 10;

/// Copies of one layer's scores that exist together in backward.
const SCORES: u64 = 4;

/// All of it, when every row of the micro-batch has `tokens_per_row` tokens before padding.
pub fn ledger(spec: &ModelSpec, run: &RunConfig, tokens_per_row: usize) -> Result<MemoryLedger> {
    let length = mlx_padded(tokens_per_row, run.recipe.max_seq_length) as u64;
    let rows = run.execution.batch_size as u64 * length;
    let parameters = Parameters::of(spec);
    let adapters = trainable(spec, &run.recipe.lora)?;
    let kept = adapted(spec, &run.recipe.lora)?.1 as u64;
    let bytes = |numbers: u64, bits: f64| (numbers as f64 * bits / 8.0).round() as u64;
    let base = bits(spec, run.execution.weights);
    let stored = |numbers: u64| bytes(numbers, base);
    // Over a quantised base the activations are in 16 bits.
    let sized = |numbers: u64| bytes(numbers, base.max(16.0));

    let (h, heads) = (spec.hidden_size as u64, spec.attention.num_attention_heads as u64);
    let outputs: u64 = spec.projections().iter().map(|p| (p.active * p.out_features) as u64).sum();
    let gates = if spec.mlp.gated { 5 } else { 3 };
    // A token's row is copied for each of its experts, and what they make is put back in order and weighed
    // (`SwitchGLU`, `_gather_sort`): three rows an expert beside the MLP itself.
    let (experts, copied) =
        spec.experts.map_or((1, 0), |e| (e.num_experts_per_tok as u64, 3 * h * e.num_experts_per_tok as u64));
    // Of one layer and row: the MLP's gate, up, activation and product; each projection's output and its adapter's;
    // the inputs of the norms and of the projections.
    let layer = sized(rows * (gates * experts * spec.intermediate_size as u64 + copied + 2 * outputs + 4 * h));
    let input = sized(rows * h);
    let checkpointed = run.execution.grad_checkpoint;
    let saved = || match checkpointed {
        true => Item::new("block inputs", kept * input),
        false => Item::new("activations kept", kept * layer),
    };
    let logits = LOGIT * rows * spec.vocab_size as u64;
    let scores = sized(SCORES * run.execution.batch_size as u64 * heads * length * length);
    let sum = if run.accumulation() > 1 { F32 * adapters } else { 0 };
    Ok(MemoryLedger {
        resident: vec![
            Item::new(
                "base weights",
                stored(parameters.blocks * (parameters.block_matrices + parameters.block_vectors)),
            ),
            Item::new("embedding and head", stored(parameters.embedding + parameters.head + parameters.final_norm)),
            Item::new("adapters", F32 * adapters),
            Item::new("optimizer state", 2 * F32 * adapters),
            Item::new("gradient sum", sum),
        ],
        phases: vec![
            Phase::new("loss", vec![saved(), Item::new("logits", logits)]),
            Phase::new(
                "backward",
                vec![
                    saved(),
                    Item::new("one block again", if checkpointed { layer } else { 0 }),
                    Item::new("attention scores", scores),
                    Item::new("gradients", F32 * adapters),
                ],
            ),
            // A checkpoint copies the adapters while it is written.
            Phase::new("save", vec![Item::new("adapters, copied", F32 * adapters)]),
        ],
        largest_buffer: [
            Item::new("logits", F32 * rows * spec.vocab_size as u64),
            Item::new("attention scores", scores / SCORES),
            Item::new("embedding", stored(spec.vocab_size as u64 * h)),
        ]
        .into_iter()
        .max_by_key(|b| b.bytes)
        .unwrap_or_else(|| Item::new("none", 0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::catalogue;
    use crate::units::Bytes;

    /// Rows of the published runs that state everything (a MacBook Air M4 with 24 GB; mlx-lm 0.30; batch 4, rank 8,
    /// all linear layers; the longest examples of 227 tokens are padded to 257).
    #[test]
    fn published_peaks_are_met() {
        let cases = [
            ("Qwen3-4B-Instruct-2507", 36, false, 18.612), // FR203
            ("Qwen3-4B-Instruct-2507", 36, true, 10.427),  // FR205
            ("Qwen3-4B-Instruct-2507", 16, false, 13.295), // FR207
            ("Llama-3.2-3B-Instruct", 28, false, 15.176),  // FR209
            ("Qwen3-1.7B", 28, false, 10.382),             // FR212
        ];
        for (model, layers, checkpoint, peak_gb) in cases {
            let text = format!(
                "model = \"m\"\ndata = \"d\"\nengine = \"mlx-lm\"\n[recipe]\nmax_seq_length = 512\neffective_batch_size = 4\n[recipe.lora]\nrank = 8\nnum_layers = {layers}\n[execution]\nbatch_size = 4\ngrad_checkpoint = {checkpoint}"
            );
            let run = RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap();
            let peak = ledger(&catalogue::find(model).unwrap().spec, &run, 227).unwrap().peak();
            let ratio = peak.as_f64() / Bytes::from_decimal_gb(peak_gb).as_f64();
            assert!((0.88..1.12).contains(&ratio), "{model} {layers} {checkpoint}: {ratio:.3}");
        }
    }

    #[test]
    fn a_mixture_takes_the_weights_of_all_experts_and_the_activations_of_a_few() {
        let text = "model = \"m\"\ndata = \"d\"\nengine = \"mlx-lm\"\n[recipe]\nmax_seq_length = 512\n[recipe.lora]\nrank = 8\ntarget_modules = [\"q_proj\"]\n[execution]\nweights = \"q4_k\"";
        let run = RunConfig::from_toml(text, "run.toml".as_ref()).unwrap();
        let moe = ledger(&catalogue::find("Qwen3-30B-A3B").unwrap().spec, &run, 512).unwrap();
        // 30.5e9 parameters of 4.5 bits.
        assert!((moe.resident[0].bytes + moe.resident[1].bytes).decimal_gb() > 17.0);
        let again = |l: &MemoryLedger| {
            let backward = l.phases.iter().find(|p| p.name == "backward").unwrap();
            backward.items.iter().find(|i| i.name == "one block again").unwrap().bytes.0
        };
        // Eight experts of 768 and what is copied for them, beside an attention of 4,096 heads' width, all in 16 bits.
        let row = 5 * 8 * 768 + 3 * 8 * 2048 + 2 * (4096 + 2 * 512 + 2048 + 128 + 8 * (2 * 768 + 2048)) + 4 * 2048;
        assert_eq!(again(&moe), 2 * 512 * row);
    }

    #[test]
    fn scores_are_quadratic_and_decide_long_runs() {
        let text = "model = \"m\"\ndata = \"d\"\nengine = \"mlx-lm\"\n[recipe]\nmax_seq_length = 8192\n[recipe.lora]\nrank = 8";
        let run = RunConfig::from_toml(text, "run.toml".as_ref()).unwrap();
        let l = ledger(&catalogue::find("Qwen3-8B").unwrap().spec, &run, 8192).unwrap();
        assert_eq!(l.tallest().unwrap().name, "backward");
        // 21.31 GiB above the resident 4-bit model were measured (FR168), adapters and their states included.
        let above = l.peak().gib() - (l.resident[0].bytes + l.resident[1].bytes).gib();
        assert!((above / 21.31 - 1.0).abs() < 0.1, "{above}");
    }
}
