//! The base with an adapter worked in, a few rows at a time: `W + scale B A`.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::finite::all_finite_ggml;
use crate::checkpoint::stored::too_large;
use crate::checkpoint::weights::BaseWeights;
use crate::error::{Error, Result};
use crate::export::request::Subject;
use crate::spec::model::storage::Format;

/// Numbers of a piece: 8 MiB in f32, small beside any model and large beside what a read costs.
const PIECE: usize = 2 << 20;

/// Tensors of a model with its adapter merged into them.
pub(crate) struct Merged<'a> {
    /// Open files of the base model.
    pub base: BaseWeights,
    adapter: Option<&'a AdapterFile>,
    /// Whether the base stores its matrices `[in, out]` (GPT-2).
    conv1d: bool,
}

impl<'a> Merged<'a> {
    /// Opens the base's files and checks that its format can be merged into.
    pub(crate) fn open(subject: &'a Subject) -> Result<Self> {
        let base = subject.source.weights()?;
        if matches!(subject.spec.storage.format, Format::Gguf(_) | Format::Affine { .. })
            || base.safetensors().is_empty()
        {
            let reason = "the base is quantised, and merging into it is not supported: export the adapter alone, or merge it into \
                          the model that the base was quantised from";
            return Err(Error::Weights { path: base.folder, reason: reason.into() });
        }
        base.check(&subject.spec)?;
        Ok(Self { base, adapter: subject.adapter.as_ref(), conv1d: subject.spec.conv1d() })
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
        let base = self.base.rows(name, rows.clone())?;
        let pair = name.strip_suffix(".weight").and_then(|path| self.adapter?.adapter(path));
        let (Some(pair), Some(file)) = (pair, self.adapter) else { return Ok(base) };
        let update = if self.conv1d {
            pair.a.narrow(1, rows.start, rows.len())?.t()?.contiguous()?.matmul(&pair.b.t()?)?
        } else {
            pair.b.narrow(0, rows.start, rows.len())?.contiguous()?.matmul(&pair.a)?
        };
        Ok((base + (update * file.scale())?)?)
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
