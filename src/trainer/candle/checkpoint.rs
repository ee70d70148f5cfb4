//! Checkpoints: everything that a run needs to go on as if it had never stopped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::adamw::{AdamW, Moments};
use super::linear::Adapter;
use super::model::Decoder;
use super::tensor_file;
use crate::error::{Error, Result};
use crate::spec::run::RunConfig;
use crate::store;

/// Checkpoints kept; older ones are removed once a newer one is complete.
const KEEP: usize = 2;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    /// What must not have changed for the rest of the run to be the same run.
    run: RunConfig,
}

fn folder_of(out: &Path, step: usize) -> PathBuf {
    out.join("checkpoints").join(format!("step-{step:06}"))
}

/// Writes a checkpoint after `optimizer.steps` steps. The state file comes last: a folder without one is no checkpoint.
pub fn save(out: &Path, decoder: &Decoder, optimizer: &AdamW, run: &RunConfig) -> Result<PathBuf> {
    let folder = folder_of(out, optimizer.steps);
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (i, (site, (ma, mb))) in decoder.sites.iter().zip(&optimizer.moments).enumerate() {
        let Some(Adapter { a, b }) = decoder.adapter(i) else { continue };
        let parts = [("a", a), ("b", b), ("a.m", &ma.m), ("a.v", &ma.v), ("b.m", &mb.m), ("b.v", &mb.v)];
        tensors.extend(parts.map(|(part, t)| (format!("{}.{part}", site.path), t.clone())));
    }
    store::make_folder(&folder)?;
    tensor_file::save(&folder.join(TENSORS), &tensors)?;
    store::save_json(&folder.join(STATE), &State { step: optimizer.steps, run: run.clone() })?;
    let complete = complete(out)?;
    for old in &complete[..complete.len().saturating_sub(KEEP)] {
        store::remove_folder(old)?;
    }
    Ok(folder)
}

/// Complete checkpoints of a run folder, oldest first.
fn complete(out: &Path) -> Result<Vec<PathBuf>> {
    let folder = out.join("checkpoints");
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let mut found = store::folders_in(&folder)?;
    found.retain(|f| f.join(STATE).is_file());
    found.sort();
    Ok(found)
}

/// Puts the newest checkpoint of `out` into `decoder` and `optimizer`; false if there is none.
pub fn restore(out: &Path, decoder: &mut Decoder, optimizer: &mut AdamW, run: &RunConfig) -> Result<bool> {
    let Some(folder) = complete(out)?.pop() else { return Ok(false) };
    let state: State = store::load_json(&folder.join(STATE))?;
    if state.run.recipe != run.recipe
        || state.run.seed != run.seed
        || state.run.model != run.model
        || state.run.data != run.data
    {
        let reason = "its model, data, seed or recipe differ from the run's; only the execution may change".into();
        return Err(Error::Mismatch { path: folder, reason });
    }
    let tensors = tensor_file::load(&folder.join(TENSORS))?;
    let get = |name: String| -> Result<Tensor> {
        let found = tensors
            .get(&name)
            .ok_or_else(|| Error::Weights { path: folder.clone(), reason: format!("`{name}` is missing") })?;
        Ok(found.to_device(decoder.device())?)
    };
    let mut adapters = Vec::new();
    let mut moments = Vec::new();
    for site in &decoder.sites {
        let part = |part: &str| get(format!("{}.{part}", site.path));
        adapters.push(Adapter { a: part("a")?, b: part("b")? });
        moments.push((Moments { m: part("a.m")?, v: part("a.v")? }, Moments { m: part("b.m")?, v: part("b.v")? }));
    }
    adapters.into_iter().enumerate().for_each(|(i, adapter)| decoder.set_adapter(i, adapter));
    optimizer.moments = moments;
    optimizer.steps = state.step;
    Ok(true)
}
