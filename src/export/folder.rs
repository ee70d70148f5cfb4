//! A model of any base as a new folder of plain numbers: dequantised, with the adapter worked in, in the names, shapes and
//! shards that transformers writes.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::export::companions::companions;
use crate::export::merged::{Merged, pieces};
use crate::export::place::Place;
use crate::export::request::{Progress, Subject};
use crate::spec::model::tensors::TensorSpec;
use crate::spec::model::{Dtype, ModelSpec};
use crate::store;
use crate::store::stream::{Staged, Streamed};

/// Largest shard, bytes: transformers' own.
const SHARD: u64 = 5_000_000_000;

/// Writes the model with its matrices in `dtype`.
pub(crate) fn write(subject: &Subject, dtype: Dtype, place: &Place, progress: Progress<'_>) -> Result<Vec<String>> {
    let (config, target) = described(subject, dtype)?;
    let merged = Merged::open(subject)?;
    let shards = shards(target.tensors(), dtype);
    let total: u64 = shards.iter().flatten().map(|t| bytes(t, dtype)).sum();
    let staged = place.stage()?;
    let mut done = 0;
    let mut index = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = shard_name(i, shards.len());
        index.extend(shard.iter().map(|t| (t.name.clone(), name.clone())));
        let mut out = Streamed::create(&staged.folder().join(&name))?;
        out.write(&header(shard, dtype)?)?;
        for tensor in shard {
            let from = Source { merged: &merged, has: &subject.spec, wants: &target };
            from.write(tensor, dtype, &mut out, &mut |part| progress(done + part, total))?;
            done += bytes(tensor, dtype);
            progress(done, total)?;
        }
        out.finish()?;
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": index});
        store::save_json(&staged.folder().join("model.safetensors.index.json"), &index)?;
    }
    store::save_json(&staged.folder().join("config.json"), &config)?;
    let notes = beside(subject, &staged)?;
    place.finish(staged)?;
    Ok(notes)
}

/// Tokenizer, templates and licence; what cannot be had is said.
fn beside(subject: &Subject, staged: &Staged) -> Result<Vec<String>> {
    match companions(&subject.source) {
        Ok(companions) => {
            for companion in companions.iter().filter(|c| !c.describes_weights()) {
                companion.write(staged.folder())?;
            }
            Ok(vec![])
        }
        Err(Error::Tokenizer { reason, .. }) => Ok(vec![format!("it has no tokenizer: {reason}")]),
        Err(other) => Err(other),
    }
}

/// The config.json of the export, and the architecture that it describes; refused where it would be another than the base's.
fn described(subject: &Subject, dtype: Dtype) -> Result<(Map<String, Value>, ModelSpec)> {
    let wrong =
        |reason: &str| Error::NoSuchExport { model: subject.name.clone(), format: "fused", reason: reason.into() };
    if subject.spec.part_of.is_some() {
        return Err(wrong("it is a quantised vision-language model, of which only the text part could be written"));
    }
    let mut config: Map<String, Value> = match subject.source.gguf_without("config.json")? {
        Some(file) => file.config,
        None => match serde_json::from_str(&subject.source.config()?) {
            Ok(Value::Object(config)) => config,
            _ => return Err(wrong("its config.json is not a table")),
        },
    };
    let quantised = ["quantization", "quantization_config", "dtype", "torch_dtype"];
    quantised.iter().for_each(|key| drop(config.remove(*key)));
    config.insert("torch_dtype".into(), json!(name(dtype)));
    let target = ModelSpec::from_map(&config)?;
    // What differs is how the base is held, which is what the export changes.
    let mut same = target.clone();
    (same.norm.offset, same.dtype, same.storage) =
        (subject.spec.norm.offset, subject.spec.dtype, subject.spec.storage.clone());
    same.part_of.clone_from(&subject.spec.part_of);
    match same == subject.spec {
        true => Ok((config, target)),
        false => Err(wrong("its files do not tell all that its config.json would: put that beside the file")),
    }
}

/// The tensors in shards of at most [`SHARD`] bytes.
fn shards(tensors: Vec<TensorSpec>, dtype: Dtype) -> Vec<Vec<TensorSpec>> {
    let mut shards: Vec<Vec<TensorSpec>> = vec![vec![]];
    let mut filled = 0;
    for tensor in tensors {
        let size = bytes(&tensor, dtype);
        if filled > 0 && filled + size > SHARD {
            shards.push(vec![]);
            filled = 0;
        }
        filled += size;
        shards.last_mut().expect("there is always one").push(tensor);
    }
    shards
}

fn shard_name(i: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".into(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    }
}

fn bytes(tensor: &TensorSpec, dtype: Dtype) -> u64 {
    tensor.shape.iter().product::<usize>() as u64 * dtype.bytes()
}

/// The header of a file of safetensors: its length, and the place of each tensor.
fn header(tensors: &[TensorSpec], dtype: Dtype) -> Result<Vec<u8>> {
    let mut at = 0;
    let mut table = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    for tensor in tensors {
        let end = at + bytes(tensor, dtype);
        let kind = match dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        };
        table.insert(tensor.name.clone(), json!({"dtype": kind, "shape": tensor.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(table).to_string();
    // Numbers begin at a multiple of eight bytes.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    Ok([&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat())
}

fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

fn ggml(dtype: Dtype) -> GgmlDType {
    match dtype {
        Dtype::F32 => GgmlDType::F32,
        Dtype::F16 => GgmlDType::F16,
        Dtype::Bf16 => GgmlDType::BF16,
    }
}

/// The numbers of the base as the export wants them.
struct Source<'a> {
    merged: &'a Merged<'a>,
    has: &'a ModelSpec,
    wants: &'a ModelSpec,
}

impl Source<'_> {
    fn write(
        &self,
        tensor: &TensorSpec,
        dtype: Dtype,
        out: &mut Streamed,
        tick: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let (rows, width) = (tensor.shape[0], tensor.shape[1..].iter().product());
        let name = &tensor.name;
        // GPT-2's matrices lie the other way round in MLX's files and in GGUF: no part of one can be had alone.
        if self.has.conv1d() != self.wants.conv1d() && tensor.shape.len() == 2 && name.contains(".h.") {
            let turned = self.merged.rows(name, 0..width)?.t()?.contiguous()?;
            return out.write(&self.merged.encode(name, &turned, ggml(dtype))?);
        }
        let mut done = 0;
        for range in pieces(rows, width, 1) {
            let numbers = self.normed(name, self.merged.rows(name, range)?)?;
            let bytes = self.merged.encode(name, &numbers, ggml(dtype))?;
            out.write(&bytes)?;
            done += bytes.len() as u64;
            tick(done)?;
        }
        Ok(())
    }

    /// Gemma's norms are stored less one, and in GGUF they are not.
    fn normed(&self, name: &str, numbers: Tensor) -> Result<Tensor> {
        let more = self.has.norm.offset - self.wants.norm.offset;
        Ok(if more != 0.0 && name.ends_with("norm.weight") { (numbers + more)? } else { numbers })
    }
}
