//! GGUF, the file of llama.cpp and Ollama: a whole model, or an adapter beside one.
//!
//! Names, keys and turned rows are those of llama.cpp's own converters (`convert_hf_to_gguf.py`,
//! `convert_lora_to_gguf.py`); what its graphs cannot compute is refused or said.

mod architecture;
mod file;
mod tensors;
mod tokenizer;

use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::GgmlDType;

use self::file::{Entry, Metadata, Value};
use self::tensors::{Planned, Turn};
use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::export::merged::{Merged, encode, pieces};
use crate::export::request::{Plain, Progress, Subject, short_name};
use crate::spec::run::Weights;
use crate::spec::run::export_format::ExportFormat;
use crate::store::stream::{self, Streamed};

/// Writes the base, with the adapter worked in where there is one.
pub(crate) fn write_model(
    subject: &Subject,
    weights: Option<Weights>,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Vec<String>> {
    let spec = &subject.spec;
    let asked = weights.filter(|w| *w != Weights::Stored);
    if let (ModelSource::Gguf(base), None, None) = (&subject.source, asked, &subject.adapter) {
        // It is one already.
        stream::copied(base, out, progress)?;
        return Ok(vec!["the base is a GGUF file, and was copied as it is".into()]);
    }
    let merged = Merged::open(subject)?;
    let base = Plain::of(spec);
    let weights = asked.unwrap_or(Weights::of(base.dtype().into()));
    let format = ggml(weights)?;
    let refused = |reason| Error::NoSuchExport { model: subject.name.clone(), format: "GGUF", reason };
    let (mut metadata, mut notes) = architecture::describe(spec).map_err(refused)?;
    general(&mut metadata, subject, "model");
    metadata.push(("general.file_type".into(), Value::U32(file_type(weights))));
    metadata.push(("general.quantization_version".into(), Value::U32(2)));
    let (words, note) = tokenizer::describe(&subject.source, spec).map_err(refused)?;
    metadata.extend(words);
    notes.extend(note);
    if let Plain::Instead(of, _) = &base {
        let again = if format.block_size() > 1 { ", which rounds once more" } else { "" };
        notes.push(format!("the base is in {of}; its matrices are written in {}{again}", weights.name()));
    }
    let planned = tensors::plan(spec, format);
    let table: Vec<Entry> = planned.iter().map(|p| p.entry.clone()).collect();
    let total = table.iter().map(Entry::padded).sum();
    let mut out = Streamed::create(out)?;
    out.write(&file::head(&metadata, &table))?;
    let mut done = 0;
    for tensor in &planned {
        let before = done;
        write_tensor(tensor, &merged, &mut out, &mut |bytes| progress(before + bytes, total))?;
        done += tensor.entry.padded();
        progress(done, total)?;
    }
    out.finish()?;
    Ok(notes)
}

/// Writes the adapter alone: A and B of each layer under the name of the tensor they are for.
pub(crate) fn write_adapter(subject: &Subject, out: &Path) -> Result<Vec<String>> {
    let (file, spec) = (subject.adapter(ExportFormat::GgufAdapter)?, &subject.spec);
    let refused = |reason| Error::NoSuchExport { model: subject.name.clone(), format: "GGUF", reason };
    let (_, notes) = architecture::describe(spec).map_err(refused)?;
    let mut metadata = vec![
        ("general.architecture".into(), crate::spec::model::gguf::architecture(spec.model_type).into()),
        ("adapter.type".into(), "lora".into()),
        // llama.cpp multiplies by alpha / rank.
        ("adapter.lora.alpha".into(), (file.scale() * file.about.rank as f64).into()),
        ("general.file_type".into(), Value::U32(file_type(Weights::F32))),
    ];
    general(&mut metadata, subject, "adapter");
    let (mut table, mut data) = (Vec::new(), Vec::new());
    for planned in tensors::plan(spec, GgmlDType::F32) {
        let Some(pair) = planned.path().and_then(|path| file.adapter(path)) else { continue };
        // Turned rows of the base turn the rows of B; a transposed base is the same product.
        let b = match planned.turn {
            Turn::Pairs(_) => planned.turn.apply(&pair.b)?,
            _ => pair.b,
        };
        for (part, tensor) in [("lora_a", pair.a), ("lora_b", b)] {
            let name = format!("{}.{part}", planned.entry.name);
            table.push(Entry { name, shape: tensor.dims().to_vec(), format: GgmlDType::F32 });
            data.push(tensor);
        }
    }
    let mut out = Streamed::create(out)?;
    out.write(&file::head(&metadata, &table))?;
    for (entry, tensor) in table.iter().zip(&data) {
        out.write(&encode(tensor, GgmlDType::F32)?)?;
        fill(entry, &mut out)?;
    }
    out.finish()?;
    Ok(notes)
}

fn general(metadata: &mut Metadata, subject: &Subject, kind: &str) {
    metadata.insert(1, ("general.type".into(), kind.into()));
    metadata.insert(2, ("general.name".into(), short_name(&subject.name).as_str().into()));
}

/// One tensor, turned as llama.cpp wants it.
fn write_tensor(
    planned: &Planned,
    merged: &Merged<'_>,
    out: &mut Streamed,
    tick: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let entry = &planned.entry;
    if let Some(values) = &planned.values {
        out.write(&encode(&Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu)?, entry.format)?)?;
        return fill(entry, out);
    }
    let (rows, width) = (entry.shape[0], entry.shape[1..].iter().product());
    let mut done = 0;
    let mut write = |tensor: Tensor| {
        let bytes = merged.encode(&planned.source, &planned.turn.apply(&tensor)?, entry.format)?;
        out.write(&bytes)?;
        done += bytes.len() as u64;
        tick(done)
    };
    match planned.turn {
        // Its rows are the columns of what is stored, so there is no part of it to be had alone.
        Turn::Transpose => write(merged.rows(&planned.source, 0..width)?)?,
        Turn::None | Turn::AddOne => {
            pieces(rows, width, 1).try_for_each(|range| write(merged.rows(&planned.source, range)?))?;
        }
        Turn::Pairs(head) => {
            pieces(rows, width, head).try_for_each(|range| write(merged.rows(&planned.source, range)?))?;
        }
    }
    fill(entry, out)
}

/// Zeros up to the next tensor's place.
fn fill(entry: &Entry, out: &mut Streamed) -> Result<()> {
    out.write(&vec![0; (entry.padded() - entry.bytes()) as usize])
}

fn ggml(weights: Weights) -> Result<GgmlDType> {
    Ok(match weights {
        Weights::F32 => GgmlDType::F32,
        Weights::F16 => GgmlDType::F16,
        Weights::Bf16 => GgmlDType::BF16,
        Weights::Q8_0 => GgmlDType::Q8_0,
        Weights::Q6K => GgmlDType::Q6K,
        Weights::Q4K => GgmlDType::Q4K,
        Weights::Q4_0 => GgmlDType::Q4_0,
        other => {
            return Err(Error::invalid(
                "--weights",
                other.name(),
                "f32, f16, bf16, q8_0, q6_k, q4_k or q4_0 in a GGUF",
            ));
        }
    })
}

/// Value of `general.file_type`: llama.cpp's `LLAMA_FTYPE` of most matrices.
fn file_type(weights: Weights) -> u32 {
    match weights {
        Weights::F16 => 1,
        Weights::Q4_0 => 2,
        Weights::Q8_0 => 7,
        Weights::Q4K => 14,
        Weights::Q6K => 18,
        Weights::Bf16 => 32,
        _ => 0,
    }
}
