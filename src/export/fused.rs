//! The base with the adapter worked in, as a folder of safetensors: the same shards, names and number formats as the
//! base, so the header of every shard stays as it is and only the bytes of adapted matrices change.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

use crate::checkpoint::finite::{NOT_FINITE, all_finite};
use crate::checkpoint::safetensors::{CheckpointFile, Info};
use crate::error::{Error, Result};
use crate::export::companions::companions;
use crate::export::merged::{Merged, pieces};
use crate::export::place::Place;
use crate::export::request::{Progress, Subject};
use crate::store::stream::Streamed;

/// Number of bytes copied at a time.
const COPY: u64 = 8 << 20;

/// Writes the merged model as a folder of safetensors.
pub(crate) fn write(subject: &Subject, place: &Place, progress: Progress<'_>) -> Result<Vec<String>> {
    let merged = Merged::open(subject)?;
    if let Some(file) = merged.base.safetensors().iter().find(|file| Path::new(&file.name).components().count() > 1) {
        let reason = format!("`{}` is in a subfolder; an export has no subfolders", file.name);
        return Err(Error::Weights { path: merged.base.folder, reason });
    }
    let companions = companions(&subject.source)?;
    let used: HashSet<String> =
        subject.spec.tensors().iter().filter_map(|tensor| merged.base.stored_name(&tensor.name)).collect();
    // By the name in the file, which may have another prefix than transformers'.
    let changed: HashMap<String, String> =
        merged.changed().filter_map(|name| Some((merged.base.stored_name(&name)?, name))).collect();
    let staged = place.stage()?;
    let total: u64 = merged.base.safetensors().iter().flat_map(|f| f.in_order()).map(|(_, info)| size(info)).sum();
    let mut done = 0;
    for file in merged.base.safetensors() {
        let wrong = |reason: String| Error::Weights { path: merged.base.folder.join(&file.name), reason };
        let mut out = Streamed::create(&staged.folder().join(&file.name))?;
        out.write(&file.head().map_err(wrong)?)?;
        let mut at = 0;
        for (stored, info) in file.in_order() {
            let (start, end) = info.data_offsets;
            raw(file, at..start, None, &mut out, &mut |_| Ok(())).map_err(|e| e.or(wrong))?;
            let before = done;
            let mut tick = |bytes: u64| progress(before + bytes, total);
            match changed.get(stored) {
                Some(name) => fused(&merged, name, info, &mut out, &mut tick)?,
                None => {
                    // What the model does not use may be anything.
                    let dtype = DType::try_from(info.dtype).ok().filter(|_| used.contains(stored));
                    let wrong = |reason: String| wrong(format!("`{stored}` cannot be copied: {reason}"));
                    raw(file, start..end, dtype, &mut out, &mut tick).map_err(|e| e.or(wrong))?;
                }
            }
            (at, done) = (end, done + size(info));
        }
        out.finish()?;
    }
    for companion in companions {
        companion.write(staged.folder())?;
    }
    place.finish(staged)?;
    Ok(vec![])
}

fn size(info: &Info) -> u64 {
    info.data_offsets.1 - info.data_offsets.0
}

/// A reading that failed says only why; a writing that failed says all.
enum Failed {
    Reading(String),
    Other(Error),
}

impl Failed {
    fn or(self, reading: impl FnOnce(String) -> Error) -> Error {
        match self {
            Self::Reading(reason) => reading(reason),
            Self::Other(error) => error,
        }
    }
}

/// Bytes as they are; numbers of `dtype`, where it is given, are all finite.
fn raw(
    file: &CheckpointFile,
    bytes: std::ops::Range<u64>,
    dtype: Option<DType>,
    out: &mut Streamed,
    tick: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(), Failed> {
    let mut at = bytes.start;
    while at < bytes.end {
        let length = COPY.min(bytes.end - at);
        let part = file.bytes(at, length).map_err(Failed::Reading)?;
        if dtype.is_some_and(|dtype| !all_finite(&part, dtype)) {
            return Err(Failed::Reading(NOT_FINITE.into()));
        }
        out.write(&part).map_err(Failed::Other)?;
        at += length;
        tick(at - bytes.start).map_err(Failed::Other)?;
    }
    Ok(())
}

/// The rows of an adapted matrix, in the base's own number format.
fn fused(
    merged: &Merged<'_>,
    name: &str,
    info: &Info,
    out: &mut Streamed,
    tick: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let format = match info.dtype {
        Dtype::F32 => GgmlDType::F32,
        Dtype::F16 => GgmlDType::F16,
        Dtype::BF16 => GgmlDType::BF16,
        other => {
            let reason = format!("`{name}` is stored as {other:?}; f32, f16 and bf16 can be merged");
            return Err(Error::Weights { path: merged.base.folder.clone(), reason });
        }
    };
    let (rows, width) = (info.shape[0], info.shape[1..].iter().product());
    let mut done = 0;
    for range in pieces(rows, width, 1) {
        let bytes = merged.encode(name, &merged.rows(name, range)?, format)?;
        out.write(&bytes)?;
        done += bytes.len() as u64;
        tick(done)?;
    }
    Ok(())
}
