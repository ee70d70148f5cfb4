//! Every tensor of a model under llama.cpp's name, and how its rows are turned.

use candle_core::Tensor;
use candle_core::quantized::GgmlDType;

use crate::error::Result;
use crate::export::gguf::architecture::rope_factors;
use crate::export::gguf::file::Entry;
use crate::spec::model::ModelSpec;

/// Rearrangement that makes the file's rows of the checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The rows stay as they are.
    None,
    /// The matrix `[in, out]` becomes `[out, in]`.
    Transpose,
    /// Inside each head of this width, rope's two halves become neighbouring pairs.
    Pairs(usize),
    /// One is added: Gemma's norms are stored less one.
    AddOne,
}

impl Turn {
    /// Rearranges a whole number of heads, or a whole matrix.
    pub(crate) fn apply(self, rows: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::None => rows.clone(),
            Self::Transpose => rows.t()?.contiguous()?,
            Self::AddOne => (rows + 1.0)?,
            Self::Pairs(head) => {
                let (count, width) = (rows.dims()[0], rows.elem_count() / rows.dims()[0]);
                let halves = rows.reshape((count / head, 2, head / 2, width))?;
                halves.transpose(1, 2)?.contiguous()?.reshape(rows.shape())?
            }
        })
    }
}

/// A tensor to be written: its entry, its source and its rearrangement.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// Entry in the file's table of tensors.
    pub entry: Entry,
    /// Name of the tensor in the checkpoint, as transformers writes it; empty where no checkpoint has it.
    pub source: String,
    /// Rearrangement of its rows.
    pub turn: Turn,
    /// Numbers of a tensor that no checkpoint has.
    pub values: Option<Vec<f32>>,
}

impl Planned {
    /// Path of the linear layer whose weight the tensor is.
    pub(crate) fn path(&self) -> Option<&str> {
        self.source.strip_suffix(".weight")
    }
}

/// Every tensor of the model, with matrices in `format`.
pub(crate) fn plan(spec: &ModelSpec, format: GgmlDType) -> Vec<Planned> {
    let mut list: Vec<Planned> = rope_factors(spec)
        .into_iter()
        .map(|(name, values)| Planned {
            entry: Entry { name: name.into(), shape: vec![values.len()], format: GgmlDType::F32 },
            source: String::new(),
            turn: Turn::None,
            values: Some(values),
        })
        .collect();
    for tensor in spec.tensors() {
        let Some(name) = spec.gguf_name(&tensor.name) else { continue };
        let turn = turn(spec, &tensor.name, tensor.shape.len());
        let mut shape = tensor.shape;
        if turn == Turn::Transpose {
            shape.reverse();
        }
        let format = format_of(format, &name, &shape);
        list.push(Planned { entry: Entry { name, shape, format }, source: tensor.name, turn, values: None });
    }
    list
}

/// llama.cpp keeps vectors and positions in f32, and takes f16 where a row is no whole number of blocks.
fn format_of(format: GgmlDType, name: &str, shape: &[usize]) -> GgmlDType {
    match shape.last() {
        Some(width) if shape.len() > 1 && name != "position_embd.weight" => {
            if width.is_multiple_of(format.block_size()) { format } else { GgmlDType::F16 }
        }
        _ => GgmlDType::F32,
    }
}

fn turn(spec: &ModelSpec, name: &str, dimensions: usize) -> Turn {
    match dimensions {
        _ if spec.gguf_interleaved_heads(name).is_some() => Turn::Pairs(spec.attention.head_dim),
        _ if spec.conv1d() && dimensions == 2 && name.contains(".h.") => Turn::Transpose,
        _ if spec.norm.offset == 1.0 && name.ends_with("norm.weight") => Turn::AddOne,
        _ => Turn::None,
    }
}
