//! The base with an adapter worked in, a few rows at a time: `W + scale B A`, and with DoRA the length of each output.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::finite::all_finite_ggml;
use crate::checkpoint::stored::too_large;
use crate::checkpoint::weights::BaseWeights;
use crate::error::{Error, Result};
use crate::export::request::Subject;

/// Numbers of a piece: 8 MiB in f32, small beside any model and large beside what a read costs.
const PIECE: usize = 2 << 20;

/// Tensors of a model with its adapter merged into them, dequantised where the base is quantised.
pub(crate) struct Merged<'a> {
    /// Open files of the base model.
    pub base: BaseWeights,
    adapter: Option<&'a AdapterFile>,
    /// Whether the base stores its matrices `[in, out]` (GPT-2).
    conv1d: bool,
    /// Shape of each tensor, as stored.
    shapes: HashMap<String, Vec<usize>>,
    /// For each output of a layer with DoRA, its magnitude over the length of its merged weights.
    lengths: RefCell<HashMap<String, Tensor>>,
}

impl<'a> Merged<'a> {
    /// Opens the base's files and checks that they are the model's.
    pub(crate) fn open(subject: &'a Subject) -> Result<Self> {
        let base = subject.source.weights()?;
        base.check(&subject.spec)?;
        let shapes = subject.spec.tensors().into_iter().map(|t| (t.name, t.shape)).collect();
        let conv1d = subject.spec.conv1d();
        Ok(Self { base, adapter: subject.adapter.as_ref(), conv1d, shapes, lengths: RefCell::default() })
    }

    /// Names of the tensors that the adapter changes, as transformers calls them.
    pub(crate) fn changed(&self) -> impl Iterator<Item = String> {
        self.adapter.into_iter().flat_map(|file| file.paths().map(|path| format!("{path}.weight")))
    }

    /// The bytes in a format of f32 numbers of the tensor `name`, all of which the format can hold.
    pub(crate) fn encode(&self, name: &str, tensor: &Tensor, format: GgmlDType) -> Result<Vec<u8>> {
        let bytes = encode(tensor, format)?;
        match all_finite_ggml(&bytes, format) {
            true => Ok(bytes),
            false => {
                let reason = format!("`{name}` cannot be written: {}", too_large(format));
                Err(Error::Weights { path: self.base.folder.clone(), reason })
            }
        }
    }

    /// Some rows (first dimension, as stored) of a tensor, in f32.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let sum = self.sum(name, rows.clone())?;
        let magnitude = name.strip_suffix(".weight").and_then(|path| self.adapter?.adapter(path)?.magnitude);
        let Some(magnitude) = magnitude else { return Ok(sum) };
        // DoRA: each output's weights have the length that its magnitude says.
        let lengths = self.lengths(name, &magnitude)?;
        Ok(match self.conv1d {
            true => sum.broadcast_mul(&lengths)?,
            false => sum.broadcast_mul(&lengths.narrow(0, rows.start, rows.len())?.unsqueeze(1)?)?,
        })
    }

    /// `W + scale B A` of some rows.
    fn sum(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let shape = self.shapes.get(name).map_or(&[][..], Vec::as_slice);
        let base = self.base.rows(name, shape, rows.clone())?;
        let pair = name.strip_suffix(".weight").and_then(|path| self.adapter?.adapter(path));
        let (Some(pair), Some(file)) = (pair, self.adapter) else { return Ok(base) };
        let update = if self.conv1d {
            pair.a.narrow(1, rows.start, rows.len())?.t()?.contiguous()?.matmul(&pair.b.t()?)?
        } else {
            pair.b.narrow(0, rows.start, rows.len())?.contiguous()?.matmul(&pair.a)?
        };
        Ok((base + (update * file.scale())?)?)
    }

    /// What each output of a layer is multiplied by: `magnitude / |W + scale B A|`, `[out]`.
    fn lengths(&self, name: &str, magnitude: &Tensor) -> Result<Tensor> {
        if let Some(known) = self.lengths.borrow().get(name) {
            return Ok(known.clone());
        }
        let &[all, width] = self.shapes[name].as_slice() else { return Ok(magnitude.clone()) };
        let along = if self.conv1d { 0 } else { 1 };
        let mut parts = Vec::new();
        for range in pieces(all, width, 1) {
            parts.push(self.sum(name, range)?.sqr()?.sum(along)?);
        }
        let squares = match self.conv1d {
            true => parts.into_iter().try_fold(magnitude.zeros_like()?, |all, part| all + part)?,
            false => Tensor::cat(&parts, 0)?,
        };
        let lengths = (magnitude / squares.sqrt()?)?;
        self.lengths.borrow_mut().insert(name.into(), lengths.clone());
        Ok(lengths)
    }
}

/// Ranges that cover `rows` rows of `width` numbers, each a whole number of `unit` rows.
pub(crate) fn pieces(rows: usize, width: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE / width.max(1)).max(1).next_multiple_of(unit);
    (0..rows).step_by(step).map(move |from| from..(from + step).min(rows))
}

/// The bytes of f32 numbers in a format: GGUF's dense formats are the plain ones, least significant byte first.
pub(crate) fn encode(tensor: &Tensor, format: GgmlDType) -> Result<Vec<u8>> {
    Ok(QTensor::quantize(&tensor.contiguous()?, format)?.data().map(Cow::into_owned)?)
}
