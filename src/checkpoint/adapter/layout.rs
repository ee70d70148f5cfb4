//! How an adapter lies in its folder: PEFT's layout and mlx-lm's.

use std::collections::BTreeSet;

use candle_core::Tensor;

use crate::error::Result;

/// Layout of an adapter folder: file names, tensor names and orientation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Layout that PEFT reads and writes.
    Peft,
    /// Layout that mlx-lm reads and writes.
    MlxLm,
}

impl Layout {
    /// Name of the file of weights in this layout.
    pub fn weights_file(self) -> &'static str {
        match self {
            Self::Peft => "adapter_model.safetensors",
            Self::MlxLm => "adapters.safetensors",
        }
    }

    /// What comes before a layer's path in the names of its tensors, and what after it, in the order of
    /// [`Adapter::tensors`].
    pub(super) fn affixes(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Peft => ("base_model.model.", &[".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"]),
            Self::MlxLm => ("", &[".lora_a", ".lora_b"]),
        }
    }

    /// Names of A and B, and of DoRA's magnitude where the layout has one, for the linear layer at `path`.
    pub(crate) fn names(self, path: &str) -> Vec<String> {
        let path = match self {
            Self::Peft => path.to_owned(),
            Self::MlxLm => path.replacen("transformer.", "model.", 1),
        };
        let (before, after) = self.affixes();
        after.iter().map(|after| format!("{before}{path}{after}")).collect()
    }

    /// The path of a linear layer where the text model is part of a vision-language model, as transformers 5 and mlx-lm wrap
    /// it.
    pub(super) fn wrapped(self, path: &str) -> String {
        match self {
            Self::Peft => path.replacen("model.", "model.language_model.", 1),
            Self::MlxLm => format!("language_model.{path}"),
        }
    }

    /// Shapes of A and B in the file, and of the magnitude.
    pub(crate) fn shapes(self, rank: usize, [in_features, out_features]: [usize; 2]) -> [Vec<usize>; 3] {
        match self {
            Self::Peft => [vec![rank, in_features], vec![out_features, rank], vec![out_features]],
            Self::MlxLm => [vec![in_features, rank], vec![rank, out_features], vec![out_features]],
        }
    }

    /// The layer that a tensor belongs to, and which part of an adapter it is.
    pub(super) fn part(self, name: &str) -> Option<(String, usize)> {
        let (before, after) = self.affixes();
        let name = name.strip_prefix(before)?;
        let (path, part) = after.iter().enumerate().find_map(|(i, after)| Some((name.strip_suffix(after)?, i)))?;
        // A text model inside a multimodal one, as transformers 5 and mlx-lm wrap it.
        let path = path.replacen("language_model.model.", "model.", 1).replacen("model.language_model.", "model.", 1);
        Some((path.strip_prefix("model.h.").map(|rest| format!("transformer.h.{rest}")).unwrap_or(path), part))
    }

    /// Turns a tensor from the file's orientation to PEFT's or back: it is the same turn both ways.
    pub(super) fn turned(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Peft => tensor.clone(),
            Self::MlxLm if tensor.rank() == 2 => tensor.t()?.contiguous()?,
            Self::MlxLm => tensor.clone(),
        })
    }
}

/// The last parts of the paths, as PEFT's users write them; the whole paths where one last part means two layers
/// (GPT-2's `attn.c_proj` and `mlp.c_proj`) and only one of them is adapted.
pub(super) fn short_names(modules: &BTreeSet<String>) -> Vec<String> {
    let twins = ["attn.c_proj", "mlp.c_proj"];
    let one_twin = twins.iter().filter(|t| modules.contains(**t)).count() == 1;
    let short = |path: &String| match path.rsplit('.').next() {
        Some(last) if !(one_twin && last == "c_proj") => last.to_owned(),
        _ => path.clone(),
    };
    modules.iter().map(short).collect::<BTreeSet<_>>().into_iter().collect()
}
