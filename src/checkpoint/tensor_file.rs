//! Small safetensors files of our own: adapters and checkpoints.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::store;

/// Writes the tensors, whole or not at all.
pub fn save(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    // Sorted, so that the same tensors give the same bytes.
    let mut sorted: Vec<(&String, Tensor)> =
        tensors.iter().map(|(n, t)| Ok((n, t.to_device(&Device::Cpu)?.contiguous()?))).collect::<Result<_>>()?;
    sorted.sort_by_key(|(n, _)| n.as_str());
    let bytes = safetensors::serialize(sorted, None)
        .map_err(|e| Error::Serialise { what: "tensors", reason: e.to_string() })?;
    store::write(path, &bytes)
}

/// Reads all tensors of a file into CPU memory.
pub(crate) fn load(path: &Path) -> Result<HashMap<String, Tensor>> {
    if !path.is_file() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::Read { path: path.into(), source });
    }
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::Weights { path: path.into(), reason: e.to_string() })
}
