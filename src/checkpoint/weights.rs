//! The open files of a base model, whatever their kind, and its tensors by the names that transformers gives them.

use std::ops::Range;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::affine::Affine;
use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::safetensors::CheckpointFile;
use crate::checkpoint::stored::Stored;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::spec::model::storage::{AFFINE_BITS, AFFINE_GROUPS, Format, Other, Storage};
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::run::Weights;

/// The open files of a checkpoint. Tensors go by transformers' names, whatever the files call them.
pub struct BaseWeights {
    /// Path of the checkpoint, for messages.
    pub folder: PathBuf,
    /// Open files of the checkpoint.
    pub files: Files,
}

/// Open files of a checkpoint, by their kind.
pub enum Files {
    /// Safetensors files, each tensor in one of them.
    Safetensors(Vec<CheckpointFile>),
    /// A GGUF file with all tensors.
    Gguf(Box<GgufFile>),
    /// None: every tensor of this model is there, and has no numbers.
    Blank(Box<ModelSpec>),
}

/// Prefixes that other writers put before transformers' names, or leave out.
const PREFIXES: [(&str, &str); 6] = [
    ("transformer.", ""),
    ("transformer.", "model."),
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
    ("model.", "model.text_model."),
    ("lm_head.", "language_model.lm_head."),
];

/// Bytes of two tensors that are compared at a time.
const COMPARED: u64 = 8 << 20;

/// Files of one checkpoint in safetensors, and the name under which they keep a tensor.
struct Found<'a> {
    files: &'a [CheckpointFile],
    name: String,
}

impl<'a> Found<'a> {
    fn get<T>(&self, suffix: &str, f: impl Fn(&'a CheckpointFile, &str) -> Option<T>) -> Option<T> {
        let name = self.name.strip_suffix("weight").filter(|_| suffix != "weight");
        let name = name.map_or_else(|| self.name.clone(), |path| format!("{path}{suffix}"));
        self.files.iter().find_map(|file| f(file, &name))
    }

    fn load(&self, suffix: &str, device: &Device) -> Result<Tensor, String> {
        self.get(suffix, |f, n| f.load(n, device)).unwrap_or_else(|| Err("tensor not found".into()))
    }

    /// Whether it holds the same bytes in the same format as another; of what MLX quantises, the codes tell.
    fn same(&self, other: &Self) -> Result<bool, String> {
        let place = |found: &Self| found.get("weight", |f, n| f.place(n).map(|place| (f, place)));
        let (Some((a, of_a)), Some((b, of_b))) = (place(self), place(other)) else { return Ok(false) };
        if (of_a.dtype, &of_a.shape) != (of_b.dtype, &of_b.shape) {
            return Ok(false);
        }
        let length = of_a.data_offsets.1 - of_a.data_offsets.0;
        for at in (0..length).step_by(COMPARED as usize) {
            let part = COMPARED.min(length - at);
            if a.bytes(of_a.data_offsets.0 + at, part)? != b.bytes(of_b.data_offsets.0 + at, part)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The format of a tensor that must have this shape.
    fn format(&self, shape: &[usize]) -> Result<Format, String> {
        let dtype = self.get("weight", |f, n| f.dtype(n));
        let stored = self.get("weight", |f, n| f.shape(n)).unwrap_or_default();
        if self.get("scales", |f, n| f.shape(n)).is_some() && dtype == Some(safetensors::Dtype::U32) {
            return self.affine(stored, shape);
        }
        let format = dtype.and_then(plain).ok_or_else(|| {
            let known = "f32, f16 and bf16 are supported, and u32 with `.scales` and `.biases` (MLX)";
            format!("is stored as {}; {known}", dtype.map_or("nothing".into(), |d| format!("{d:?}").to_lowercase()))
        })?;
        if stored == shape { Ok(format.into()) } else { Err(format!("is {stored:?}, but config.json says {shape:?}")) }
    }

    /// MLX's codes: their bits and groups follow from the shapes.
    fn affine(&self, words: &[usize], shape: &[usize]) -> Result<Format, String> {
        let part = |name: &str| {
            let dtype = self.get(name, |f, n| f.dtype(n)).and_then(plain);
            let shape = self.get(name, |f, n| f.shape(n));
            dtype.zip(shape).ok_or_else(|| format!("has no `.{name}` in f32, f16 or bf16"))
        };
        let ((scales, groups), biases) = (part("scales")?, part("biases")?);
        let (&[rows, columns], &[stored_rows, words], &[scale_rows, groups]) = (shape, words, groups) else {
            return Err(format!("is quantised, but config.json says {shape:?}"));
        };
        let (bits, group) = (32 * words / columns, columns / groups.max(1));
        let whole = bits * columns == 32 * words && group * groups == columns && [stored_rows, scale_rows] == [rows; 2];
        let known = AFFINE_BITS.contains(&bits) && AFFINE_GROUPS.contains(&group);
        if !whole || !known || biases != (scales, &[rows, groups]) {
            let (words, other) = ([stored_rows, words], [scale_rows, groups]);
            return Err(format!(
                "holds {words:?} words with {other:?} scales, which make no {shape:?} of 2, 3, 4, 6 or 8 bits in \
                 groups of 32, 64 or 128"
            ));
        }
        Ok(Format::Affine { bits: bits as u8, group: group as u8, scales })
    }

    /// Some rows in f32.
    fn rows(&self, shape: &[usize], rows: Range<usize>) -> Result<Tensor, String> {
        let part = |name: &str| {
            let part = self.get(name, |f, n| f.load_rows(n, rows.clone(), &Device::Cpu));
            part.unwrap_or_else(|| Err("tensor not found".into()))
        };
        let wide = match self.format(shape)? {
            Format::Affine { .. } => {
                let codes = self.get("weight", |f, n| f.load_words(n, rows.clone(), &Device::Cpu));
                let codes = codes.unwrap_or_else(|| Err("tensor not found".into()))?;
                let affine = Affine::new(codes, part("scales")?, part("biases")?, shape[1]);
                affine.and_then(|affine| affine.panel(Backend::Fused, 0, rows.len()))
            }
            _ => part("weight")?.to_dtype(DType::F32),
        };
        wide.map_err(|e| e.to_string())
    }

    fn matrix(&self, format: Format, columns: usize, device: &Device) -> Result<Stored, String> {
        if !matches!(format, Format::Affine { .. }) {
            return self.load("weight", device).map(Stored::Dense);
        }
        let all = |f: &CheckpointFile, n: &str| 0..f.shape(n).and_then(|s| s.first().copied()).unwrap_or(0);
        let codes = self.get("weight", |f, n| f.load_words(n, all(f, n), device));
        let codes = codes.unwrap_or_else(|| Err("tensor not found".into()))?;
        let (scales, biases) = (self.load("scales", device)?, self.load("biases", device)?);
        Affine::new(codes, scales, biases, columns).map(Stored::Affine).map_err(|e| e.to_string())
    }
}

fn plain(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

impl BaseWeights {
    /// A model of which only the sizes count.
    pub(crate) fn blank(spec: &ModelSpec) -> Self {
        Self { folder: PathBuf::new(), files: Files::Blank(Box::new(spec.clone())) }
    }

    /// Whether it is one of those.
    pub(crate) fn is_blank(&self) -> bool {
        matches!(self.files, Files::Blank(_))
    }

    pub(crate) fn wrong(&self, reason: String) -> Error {
        Error::Weights { path: self.folder.clone(), reason }
    }

    /// Where safetensors keep the tensor that transformers calls `name`.
    fn find(&self, name: &str) -> Option<Found<'_>> {
        let Files::Safetensors(files) = &self.files else { return None };
        let has = |n: &String| files.iter().any(|f| f.shape(n).is_some());
        let others =
            PREFIXES.iter().filter_map(|(ours, theirs)| name.strip_prefix(ours).map(|n| format!("{theirs}{n}")));
        let name = std::iter::once(name.to_owned()).chain(others).find(has)?;
        Some(Found { files, name })
    }

    /// The format of a tensor, whose shape is checked.
    pub(crate) fn format(&self, name: &str, shape: &[usize]) -> Result<Format, String> {
        let format = match &self.files {
            Files::Gguf(file) => file.format(name, shape),
            Files::Safetensors(_) => self.find(name).map(|found| found.format(shape)),
            Files::Blank(spec) => Some(Ok(spec.format(Weights::Stored, name, shape.last().copied().unwrap_or(1)))),
        };
        format.unwrap_or_else(|| Err("is missing".into())).map_err(|e| format!("`{name}` {e}"))
    }

    /// A vector in the format it is stored in; its name and shape are checked.
    pub(crate) fn vector(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        self.format(name, shape).map_err(|e| self.wrong(e))?;
        let tensor = match &self.files {
            Files::Gguf(file) => file.vector(name, device),
            Files::Safetensors(_) => self.find(name).map(|found| found.load("weight", device)),
            Files::Blank(_) => Some(Tensor::zeros(shape, DType::F32, device).map_err(|e| e.to_string())),
        };
        tensor.unwrap_or_else(|| Err("tensor not found".into())).map_err(|e| self.unreadable(name, e))
    }

    /// A matrix in the format it is stored in.
    pub(crate) fn matrix(&self, name: &str, shape: &[usize], format: Format, device: &Device) -> Result<Stored> {
        let matrix = match &self.files {
            Files::Gguf(file) => file.matrix(name, device),
            Files::Safetensors(_) => self.find(name).map(|found| found.matrix(format, shape[1], device)),
            Files::Blank(_) => Some(Stored::blank(format, (shape[0], shape[1])).map_err(|e| e.to_string())),
        };
        matrix.unwrap_or_else(|| Err("tensor not found".into())).map_err(|e| self.unreadable(name, e))
    }

    fn unreadable(&self, name: &str, reason: String) -> Error {
        self.wrong(format!("`{name}` cannot be read: {reason}"))
    }

    /// Open safetensors files; empty for a GGUF checkpoint.
    pub(crate) fn safetensors(&self) -> &[CheckpointFile] {
        match &self.files {
            Files::Safetensors(files) => files,
            Files::Gguf(_) | Files::Blank(_) => &[],
        }
    }

    /// The name under which safetensors keep the tensor that transformers calls `name`.
    pub(crate) fn stored_name(&self, name: &str) -> Option<String> {
        self.find(name).map(|found| found.name)
    }

    /// Some rows (first dimension) of a tensor of this shape that [`BaseWeights::check`] has seen, in f32.
    pub fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Tensor> {
        let tensor = match &self.files {
            Files::Gguf(file) => file.rows(name, rows),
            Files::Safetensors(_) => self.find(name).map(|found| found.rows(shape, rows)),
            Files::Blank(_) => None,
        };
        tensor.unwrap_or_else(|| Err("tensor not found".into())).map_err(|e| self.unreadable(name, e))
    }

    /// Checks that every tensor of the model is there in its right shape, and lists all that are not.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let wrong: Vec<String> =
            spec.tensors().into_iter().filter_map(|t| self.format(&t.name, &t.shape).err()).collect();
        match wrong.len() {
            0 if spec.tie_word_embeddings => self.check_tie(spec),
            0 => Ok(()),
            n => {
                let rest = if n > 5 { format!(" and {} more", n - 5) } else { String::new() };
                Err(self.wrong(format!("{}{rest}", wrong[..n.min(5)].join(", "))))
            }
        }
    }

    /// A tied head may be stored all the same, as long as it is the embedding. Where it is not, tools differ in which of
    /// the two they take: transformers 5 the head, older ones and mlx-lm the embedding.
    fn check_tie(&self, spec: &ModelSpec) -> Result<()> {
        let Some(head) = self.find("lm_head.weight") else { return Ok(()) };
        let Some(embedding) = self.find(spec.embedding_name()) else { return Ok(()) };
        match head.same(&embedding) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.wrong(
                "it has an `lm_head.weight` of its own, but `tie_word_embeddings` in its config.json is true, and tools \
                 differ in which of the two counts: set it to false, or take the tensor out"
                    .into(),
            )),
            Err(e) => Err(self.unreadable("lm_head.weight", e)),
        }
    }

    /// How the matrices of a quantised checkpoint are really held: config.json tells the rule, the files the exceptions.
    pub(crate) fn storage(&self, spec: &ModelSpec) -> Storage {
        let mut spec = spec.clone();
        // mlx-lm turns GPT-2's matrices round, and has everything of it under `model`.
        let projection = self.find("transformer.h.0.mlp.c_fc.weight");
        spec.storage.out_in |= projection.is_some_and(|found| found.name.starts_with("model."));
        let matrix = |name: String, shape: Vec<usize>| {
            let format = self.format(&name, &shape).ok()?;
            let &[rows, columns] = shape.as_slice() else { return None };
            Some(Other { name, shape: [rows, columns], format })
        };
        let matrices: Vec<Other> = spec.tensors().into_iter().filter_map(|t| matrix(t.name, t.shape)).collect();
        if matrices.iter().any(|m| matches!(m.format, Format::Affine { .. })) {
            return Storage::of(matrices, spec.storage.out_in);
        }
        // Plain numbers are held in the format that config.json names.
        Storage { out_in: spec.storage.out_in, ..Storage::uniform(spec.dtype.into()) }
    }
}
