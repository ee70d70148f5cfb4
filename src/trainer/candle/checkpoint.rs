//! Checkpoints: everything that a run needs to go on as if it had never stopped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::model::Decoder;
use super::optimizer::Optimizer;
use super::tensor_file;
use crate::error::{Error, Result};
use crate::spec::run::RunConfig;
use crate::store;
use crate::trainer::early_stopping::EarlyStopping;

/// Checkpoints kept; older ones are removed once a newer one is complete.
const KEEP: usize = 2;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";
/// Names of an adapter's tensors, in their order.
const PARTS: [&str; 3] = ["a", "b", "magnitude"];

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    #[serde(default)]
    early_stopping: EarlyStopping,
    /// What must not have changed for the rest of the run to be the same run.
    run: RunConfig,
}

fn folder_of(out: &Path, step: usize) -> PathBuf {
    out.join("checkpoints").join(format!("step-{step:06}"))
}

/// Writes a checkpoint after `optimizer.steps` steps. The state file comes last: a folder without one is no checkpoint.
pub fn save(
    out: &Path,
    decoder: &Decoder,
    optimizer: &Optimizer,
    early_stopping: &EarlyStopping,
    run: &RunConfig,
) -> Result<PathBuf> {
    let folder = folder_of(out, optimizer.steps);
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (i, (site, states)) in decoder.sites.iter().zip(&optimizer.states).enumerate() {
        let Some(adapter) = decoder.adapter(i) else { continue };
        for ((part, p), state) in PARTS.iter().zip(adapter.tensors()).zip(states) {
            let path = format!("{}.{part}", site.path);
            tensors.extend(state.tensors().into_iter().map(|(name, t)| (format!("{path}.{name}"), t.clone())));
            tensors.insert(path, p.clone());
        }
    }
    store::make_folder(&folder)?;
    tensor_file::save(&folder.join(TENSORS), &tensors)?;
    let state = State { step: optimizer.steps, early_stopping: *early_stopping, run: run.clone() };
    store::save_json(&folder.join(STATE), &state)?;
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

/// Puts the newest checkpoint of `out` into `decoder` and `optimizer`, where there is one, and returns what validation
/// had found.
pub fn restore(out: &Path, decoder: &mut Decoder, optimizer: &mut Optimizer, run: &RunConfig) -> Result<EarlyStopping> {
    let Some(folder) = complete(out)?.pop() else { return Ok(EarlyStopping::default()) };
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
    let get = |name: &str, like: &Tensor| -> Result<Tensor> {
        let found = tensors
            .get(name)
            .ok_or_else(|| Error::Weights { path: folder.clone(), reason: format!("`{name}` is missing") })?;
        Ok(found.to_device(like.device())?)
    };
    let (mut adapters, mut restored) = (Vec::new(), Vec::new());
    for (i, (site, states)) in decoder.sites.iter().zip(&optimizer.states).enumerate() {
        let Some(old) = decoder.adapter(i) else { continue };
        let (mut parts, mut own) = (PARTS.iter().zip(states), Vec::new());
        adapters.push(old.map(|p| {
            let (part, state) = parts.next().ok_or_else(|| Error::Mismatch {
                path: folder.clone(),
                reason: "its adapters have other parts".into(),
            })?;
            let path = format!("{}.{part}", site.path);
            own.push(state.restored(|name, like| get(&format!("{path}.{name}"), like))?);
            get(&path, p)
        })?);
        restored.push(own);
    }
    adapters.into_iter().enumerate().try_for_each(|(i, adapter)| decoder.set_adapter(i, adapter))?;
    optimizer.states = restored;
    optimizer.steps = state.step;
    Ok(state.early_stopping)
}
