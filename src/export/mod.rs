//! Models and adapters in the forms that other tools read: PEFT's and mlx-lm's adapter folders, fused safetensors, GGUF.
//!
//! Everything is written in pieces of a few megabytes, so a model larger than memory can be exported, and takes its
//! place only once it is whole.

mod adapters;
mod fused;
mod gguf;
mod merged;
mod place;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::run::Weights;
use crate::spec::run::exchange::Format;
use crate::trainer::candle::nn::adapter;
use crate::units::Bytes;

/// What is to be written.
#[derive(Clone, Debug)]
pub struct Request {
    /// The base: a folder, a hub id or the one that ships inside.
    pub model: String,
    /// Folder of an adapter, in either layout.
    pub adapter: Option<PathBuf>,
    /// The form.
    pub format: Format,
    /// Number format of a GGUF's matrices; as the base is stored, where absent.
    pub weights: Option<Weights>,
    /// The folder or file to write.
    pub out: PathBuf,
    /// Replace what is there.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The form.
    pub format: Format,
    /// Where.
    pub out: PathBuf,
    /// Its size.
    pub bytes: Bytes,
    /// The base.
    pub model: String,
    /// The adapter.
    pub adapter: Option<PathBuf>,
    /// In what the reader differs from the model, and when.
    pub notes: Vec<String>,
}

/// Told how many bytes of how many are done; an error ends the export.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// A base whose files are open, and what is put on it.
struct Subject {
    name: String,
    source: ModelSource,
    spec: ModelSpec,
    adapter: Option<AdapterFile>,
}

impl Subject {
    fn open(request: &Request) -> Result<Self> {
        let source = ModelSource::find(&request.model)?;
        let spec = source.spec()?;
        spec.trained_here()?;
        let adapter = request.adapter.as_deref().map(|folder| adapter::read_for(&spec, folder)).transpose()?;
        Ok(Self { name: request.model.clone(), source, spec, adapter })
    }

    /// DoRA is more than a product of two matrices added to a third, which is all that the other forms know.
    fn check(&self, format: Format) -> Result<()> {
        match self.adapter.as_ref().filter(|file| file.about.use_dora) {
            Some(_) if format != Format::Peft => {
                Err(Error::invalid("--format", format.name(), "peft for a DoRA adapter"))
            }
            _ => Ok(()),
        }
    }

    fn adapter(&self, format: Format) -> Result<&AdapterFile> {
        self.adapter.as_ref().ok_or_else(|| {
            Error::invalid("--format", format.name(), "gguf where no run and no adapter is given".to_owned())
        })
    }
}

/// Writes it.
pub fn export(request: &Request, progress: Progress<'_>) -> Result<Exported> {
    if request.weights.is_some() && request.format != Format::Gguf {
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
        Format::Peft | Format::MlxLm => adapters::write(&subject, request.format, &place)?,
        Format::Fused => fused::write(&subject, &place, progress)?,
        Format::Gguf => gguf::write_model(&subject, request.weights, &request.out, progress)?,
        Format::GgufAdapter => gguf::write_adapter(&subject, &request.out)?,
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

/// The last part of a path or hub id.
fn short_name(model: &str) -> String {
    Path::new(model).file_name().map_or_else(|| model.to_owned(), |n| n.to_string_lossy().into_owned())
}
