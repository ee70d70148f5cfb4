//! What is exported, to where, and what came of it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::spec::model::storage::Format;
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::run::Weights;
use crate::spec::run::export_format::ExportFormat;
use crate::trainer::candle::nn::adapter;
use crate::units::Bytes;

/// What to export, in which format, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// Base model: a folder, a GGUF file, a hub id or `builtin`.
    pub model: String,
    /// Folder of an adapter, in PEFT's or mlx-lm's layout.
    pub adapter: Option<PathBuf>,
    /// Format to write.
    pub format: ExportFormat,
    /// Number format of a GGUF's matrices; that of the stored base where absent.
    pub weights: Option<Weights>,
    /// Path of the folder or file to write.
    pub out: PathBuf,
    /// Whether to replace an earlier export there.
    pub force: bool,
}

/// Result of an export.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// Format that was written.
    pub format: ExportFormat,
    /// Path of the folder or file that was written.
    pub out: PathBuf,
    /// Size of the export, bytes.
    pub bytes: Bytes,
    /// Base model that was exported or merged into.
    pub model: String,
    /// Folder of the adapter, where there was one.
    pub adapter: Option<PathBuf>,
    /// Differences between what the reader computes and the model, and when they matter.
    pub notes: Vec<String>,
}

/// Callback that takes the bytes done and the bytes in all; an error ends the export.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// An open base model and the adapter on it.
pub(crate) struct Subject {
    pub(super) name: String,
    pub(super) source: ModelSource,
    pub(super) spec: ModelSpec,
    pub(super) adapter: Option<AdapterFile>,
}

impl Subject {
    pub(super) fn open(request: &Request) -> Result<Self> {
        let source = ModelSource::find(&request.model)?;
        let spec = source.spec()?;
        spec.trained_here()?;
        let adapter = request.adapter.as_deref().map(|folder| adapter::read_for(&spec, folder)).transpose()?;
        Ok(Self { name: request.model.clone(), source, spec, adapter })
    }

    /// DoRA is more than a product of two matrices added to a third, which is all that other adapters know.
    pub(super) fn check(&self, format: ExportFormat) -> Result<()> {
        match self.adapter.as_ref().filter(|file| file.about.use_dora) {
            Some(_) if matches!(format, ExportFormat::MlxLm | ExportFormat::GgufAdapter) => {
                Err(Error::invalid("--format", format.name(), "peft, fused or gguf for a DoRA adapter"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn adapter(&self, format: ExportFormat) -> Result<&AdapterFile> {
        self.adapter.as_ref().ok_or_else(|| {
            Error::invalid("--format", format.name(), "fused or gguf where no run and no adapter is given".to_owned())
        })
    }
}

/// The plain numbers that an export of a base is made of where nothing else is asked for.
pub(super) enum Plain {
    /// The base's own.
    As(Dtype),
    /// The base is quantised, in this format: these instead, which hold its values best.
    Instead(String, Dtype),
}

impl Plain {
    pub(super) fn of(spec: &ModelSpec) -> Self {
        match spec.storage.format {
            Format::F32 => Self::As(Dtype::F32),
            Format::F16 => Self::As(Dtype::F16),
            Format::Bf16 => Self::As(Dtype::Bf16),
            Format::Affine { bits, group, scales } => {
                Self::Instead(format!("MLX's {bits} bits, groups of {group}"), scales)
            }
            // GGUF's own scales are in f16.
            Format::Gguf(block) => Self::Instead(format!("GGUF's {}", format!("{block:?}").to_uppercase()), Dtype::F16),
            Format::Int8 => Self::Instead("int8".into(), Dtype::F16),
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self {
            Self::As(dtype) | Self::Instead(_, dtype) => *dtype,
        }
    }
}

/// The last part of a path or hub id.
pub(super) fn short_name(model: &str) -> String {
    Path::new(model).file_name().map_or_else(|| model.to_owned(), |n| n.to_string_lossy().into_owned())
}
