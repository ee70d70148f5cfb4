//! How many parameters: each stored tensor counted by its shape, so the figures are exact.

use crate::error::Result;
use crate::spec::model::ModelSpec;
use crate::spec::model::tensors::Projection;
use crate::spec::run::{Lora, Weights};

/// Numbers of parameters of a model, by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// Parameters of the embedding, and of the learned positions where there are any.
    pub embedding: u64,
    /// Parameters of the output head; 0 where it is the embedding.
    pub head: u64,
    /// Parameters of the matrices of one block.
    pub block_matrices: u64,
    /// Parameters of the norms and biases of one block.
    pub block_vectors: u64,
    /// Parameters of the norm after the last block.
    pub final_norm: u64,
    /// Number of blocks.
    pub blocks: u64,
}

impl Parameters {
    /// Counts the parameters of a base model.
    pub(crate) fn of(spec: &ModelSpec) -> Self {
        let count = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        let mut p = Self {
            embedding: 0,
            head: 0,
            block_matrices: 0,
            block_vectors: 0,
            final_norm: 0,
            blocks: spec.num_hidden_layers as u64,
        };
        let table = (spec.vocab_size * spec.hidden_size) as u64;
        p.embedding = table;
        if matches!(spec.positions, crate::spec::model::Positions::Learned) {
            p.embedding += (spec.max_position_embeddings * spec.hidden_size) as u64;
        }
        p.head = if spec.tie_word_embeddings { 0 } else { table };
        for (_, shape) in spec.block_tensors() {
            let of = if shape.len() >= 2 { &mut p.block_matrices } else { &mut p.block_vectors };
            *of += count(&shape);
        }
        p.final_norm = spec.hidden_size as u64 * if spec.norm.layer_norm { 2 } else { 1 };
        p
    }

    /// Number of all parameters.
    pub(crate) fn total(&self) -> u64 {
        self.embedding + self.head + self.final_norm + self.blocks * (self.block_matrices + self.block_vectors)
    }

    /// Number of parameters in matrices, which are held in the run's weight format; norms and biases are held in f32.
    pub(crate) fn matrices(&self) -> u64 {
        self.embedding + self.head + self.blocks * self.block_matrices
    }
}

/// Bits that a parameter of a matrix takes on average, scales included.
pub(crate) fn bits(spec: &ModelSpec, weights: Weights) -> f64 {
    8.0 * spec.matrices_bytes(weights) as f64 / Parameters::of(spec).matrices() as f64
}

/// The projections of one block that carry an adapter, and the number of blocks that have them.
pub(crate) fn adapted(spec: &ModelSpec, lora: &Lora) -> Result<(Vec<Projection>, usize)> {
    let targets = spec.targets(&lora.target_modules)?;
    Ok((targets, spec.num_hidden_layers - lora.first_layer(spec.num_hidden_layers)))
}

/// Number of trainable parameters: `rank x (in + out)`, and with DoRA `out` more, for each adapted projection of each
/// adapted block.
pub(crate) fn trainable(spec: &ModelSpec, lora: &Lora) -> Result<u64> {
    let (targets, blocks) = adapted(spec, lora)?;
    Ok(blocks as u64 * targets.iter().map(|p| p.lora_params(lora)).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::spec::model::catalogue;

    #[test]
    fn every_model_of_the_catalogue_has_its_published_size() {
        for entry in catalogue::all() {
            let p = Parameters::of(&entry.spec);
            assert_eq!(p.total(), entry.parameters, "{}", entry.id);
            let stored: u64 = entry.spec.tensors().iter().map(|t| t.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(p.total(), stored, "{}", entry.id);
        }
    }

    #[test]
    fn adapters_have_the_size_that_peft_counts() {
        let text = include_str!("../../tests/fixtures/published_params.json");
        let published: Value = serde_json::from_str(text).unwrap();
        let mut checked = 0;
        for model in published["models"].as_array().unwrap() {
            let entry = catalogue::find(model["id"].as_str().unwrap()).unwrap();
            assert_eq!(Some(entry.parameters), model["exact"].as_u64());
            for case in model["lora"].as_array().into_iter().flatten() {
                let names = case["targets"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned());
                let rank = case["rank"].as_u64().unwrap() as usize;
                let lora = Lora { rank, target_modules: names.collect(), ..Lora::default() };
                let count = trainable(&entry.spec, &lora).unwrap();
                assert_eq!(Some(count), case["trainable"].as_u64(), "{} {case}", entry.id);
                assert_eq!(Some(count + entry.parameters), case["total"].as_u64(), "{} {case}", entry.id);
                checked += 1;
            }
        }
        assert!(checked > 10, "only {checked}");
    }

    #[test]
    fn known_adapters() {
        let gpt2 = &catalogue::find("openai-community/gpt2").unwrap().spec;
        let lora = Lora { target_modules: vec!["c_attn".into(), "c_proj".into()], ..Lora::default() };
        // PEFT's name matching puts c_proj on attention and MLP alike.
        assert_eq!(trainable(gpt2, &lora).unwrap(), 1_622_016);
        assert_eq!(trainable(gpt2, &lora).unwrap() + Parameters::of(gpt2).total(), 126_061_824);
        let qwen = &catalogue::find("Qwen2.5-1.5B-Instruct").unwrap().spec;
        let lora = |num_layers| Lora { rank: 32, num_layers, ..Lora::default() };
        assert_eq!(trainable(qwen, &lora(-1)).unwrap(), 36_929_536);
        assert_eq!(trainable(qwen, &lora(7)).unwrap(), 36_929_536 / 4);
    }
}
