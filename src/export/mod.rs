//! Models and adapters in the forms that other tools read: PEFT's and mlx-lm's adapter folders, fused safetensors, GGUF.
//!
//! Everything is written in pieces of a few megabytes, so a model larger than memory can be exported, and takes its
//! place only once it is whole.

mod adapters;
mod fused;
mod gguf;
mod merged;
mod place;
mod request;

pub use self::request::*;
use crate::error::{Error, Result};
use crate::spec::run::export_format::ExportFormat;

/// Writes a model or an adapter in the format that is asked for.
pub fn export(request: &Request, progress: Progress<'_>) -> Result<Exported> {
    if request.weights.is_some() && request.format != ExportFormat::Gguf {
        return Err(Error::invalid(
            "--weights",
            "given",
            format!("left out with `--format {}`", request.format.name()),
        ));
    }
    let subject = Subject::open(request)?;
    subject.check(request.format)?;
    let place = place::Place::check(request, &subject.source)?;
    let notes = match request.format {
        ExportFormat::Peft | ExportFormat::MlxLm => adapters::write(&subject, request.format, &place)?,
        ExportFormat::Fused => fused::write(&subject, &place, progress)?,
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
