//! Models and adapters in the forms that other tools read: PEFT's and mlx-lm's adapter folders, fused safetensors, GGUF.
//!
//! Everything is written in pieces of a few megabytes, so a model larger than memory can be exported, and takes its
//! place only once it is whole.

mod adapters;
mod companions;
mod folder;
mod fused;
mod gguf;
mod merged;
mod place;
mod request;

pub use self::request::*;
use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::spec::model::Dtype;
use crate::spec::run::Weights;
use crate::spec::run::export_format::ExportFormat;

/// Writes a model or an adapter in the format that is asked for.
pub fn export(request: &Request, progress: Progress<'_>) -> Result<Exported> {
    let adapter_alone = !matches!(request.format, ExportFormat::Fused | ExportFormat::Gguf);
    if request.weights.is_some() && adapter_alone {
        let must = format!("left out with `--format {}`", request.format.name());
        return Err(Error::invalid("--weights", "given", must));
    }
    let subject = Subject::open(request)?;
    subject.check(request.format)?;
    let place = place::Place::check(request, &subject.source)?;
    let notes = match request.format {
        ExportFormat::Peft | ExportFormat::MlxLm => adapters::write(&subject, request.format, &place)?,
        ExportFormat::Fused => fused(&subject, request.weights, &place, progress)?,
        ExportFormat::Gguf => gguf::write_model(&subject, request.weights, &request.out, progress)?,
        ExportFormat::GgufAdapter => gguf::write_adapter(&subject, &request.out)?,
    };
    Ok(Exported {
        format: request.format,
        out: request.out.clone(),
        bytes: place::size(&request.out)?,
        model: request.model.clone(),
        adapter: request.adapter.clone(),
        notes,
    })
}

/// The model as a folder of safetensors: as the base lies where that can be kept, else dequantised.
fn fused(
    subject: &Subject,
    weights: Option<Weights>,
    place: &place::Place,
    progress: Progress<'_>,
) -> Result<Vec<String>> {
    let base = Plain::of(&subject.spec);
    let asked = match weights.filter(|w| *w != Weights::Stored) {
        None => None,
        Some(Weights::F32) => Some(Dtype::F32),
        Some(Weights::F16) => Some(Dtype::F16),
        Some(Weights::Bf16) => Some(Dtype::Bf16),
        Some(other) => return Err(Error::invalid("--weights", other.name(), "f32, f16 or bf16 with `--format fused`")),
    };
    match (base, asked) {
        (Plain::As(dtype), None) if matches!(subject.source, ModelSource::Gguf(_)) => {
            folder::write(subject, dtype, place, progress)
        }
        (Plain::As(_), None) => fused::write(subject, place, progress),
        (Plain::As(_), Some(dtype)) => folder::write(subject, dtype, place, progress),
        (Plain::Instead(of, dtype), asked) => {
            let dtype = asked.unwrap_or(dtype);
            let note = format!("the base is in {of}; its matrices are written in {}", Weights::of(dtype.into()).name());
            let notes = folder::write(subject, dtype, place, progress)?;
            Ok(std::iter::once(note).chain(notes).collect())
        }
    }
}
