//! Checkpoints: everything that a run needs to go on as if it had never stopped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::checkpoint::tensor_file;
use crate::error::{Error, Result};
use crate::spec::run::RunConfig;
use crate::store;
use crate::store::checksums::{self, Checked, SUMS};
use crate::trainer::candle::nn::decoder::Decoder;
use crate::trainer::candle::optim::Optimizer;
use crate::trainer::early_stopping::EarlyStopping;
use crate::trainer::inputs::Inputs;

/// Number of checkpoints kept; older ones are removed once a newer one is complete.
const KEEP: usize = 2;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";
/// Names of an adapter's tensors, in their order.
const PARTS: [&str; 3] = ["a", "b", "magnitude"];

/// Everything that a checkpoint holds beside tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Number of optimizer steps done.
    pub step: usize,
    /// State of early stopping, from the evaluations so far.
    pub early_stopping: EarlyStopping,
    /// Whether the evaluation after this step was interrupted and is still to be done.
    #[serde(default)]
    pub evaluation_due: bool,
    /// Configuration of the run, which must not change (but for the execution) when it is resumed.
    pub run: RunConfig,
    /// SHA-256 of the files of model, tokenizer and data, which must not change either.
    pub inputs: Inputs,
}

/// A checkpoint whose files are as they were written.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    /// Everything that the checkpoint holds beside tensors.
    pub state: State,
}

/// The newest checkpoint of a run folder that is whole, and what is wrong with those that are newer.
#[derive(Default)]
pub(crate) struct Found {
    /// Newest whole checkpoint; `None` where there is none.
    pub checkpoint: Option<Checkpoint>,
    /// For each damaged checkpoint, a sentence that names it and says what is wrong.
    pub damaged: Vec<String>,
    /// Folders of checkpoints that are damaged or unfinished, to be removed once there is a new one.
    pub stale: Vec<PathBuf>,
}

/// Writes a checkpoint after `state.step` steps. The checksums come last: a folder without them is no checkpoint.
/// `stale` ones and all but the newest are removed then.
pub fn save(out: &Path, decoder: &Decoder, optimizer: &Optimizer, state: &State, stale: &[PathBuf]) -> Result<PathBuf> {
    let folder = out.join("checkpoints").join(format!("step-{:06}", state.step));
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (i, (site, states)) in decoder.sites.iter().zip(&optimizer.states).enumerate() {
        let Some(adapter) = decoder.adapter(i) else { continue };
        for ((part, p), state) in PARTS.iter().zip(adapter.tensors()).zip(states) {
            let path = format!("{}.{part}", site.path);
            tensors.extend(state.tensors().into_iter().map(|(name, t)| (format!("{path}.{name}"), t.clone())));
            tensors.insert(path, p.clone());
        }
    }
    // A damaged one of the same step may stand there.
    remove(&folder)?;
    store::make_folder(&folder)?;
    tensor_file::save(&folder.join(TENSORS), &tensors)?;
    store::save_json(&folder.join(STATE), state)?;
    checksums::write(&folder, &[TENSORS, STATE])?;
    stale.iter().filter(|old| **old != folder).try_for_each(|old| remove(old))?;
    let mut complete = all(out)?;
    complete.retain(|(_, folder)| folder.join(SUMS).is_file());
    complete[..complete.len().saturating_sub(KEEP)].iter().try_for_each(|(_, old)| remove(old))?;
    Ok(folder)
}

/// Removes the files of a checkpoint, and its folder if nothing else is in it.
fn remove(folder: &Path) -> Result<()> {
    // The checksums first: a checkpoint that is half removed is none.
    store::remove_own(folder, &[SUMS, STATE, TENSORS])
}

/// Step and folder of everything that has a checkpoint's name, oldest first.
fn all(out: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut folders = store::folders_in(&out.join("checkpoints"))?;
    // What is removed one day must lie in the run's own folder.
    folders.retain(|folder| !folder.is_symlink());
    let step = |folder: &PathBuf| folder.file_name()?.to_str()?.strip_prefix("step-")?.parse::<usize>().ok();
    let mut found: Vec<_> = folders.into_iter().filter_map(|folder| Some((step(&folder)?, folder))).collect();
    found.sort();
    Ok(found)
}

/// Looks for the newest checkpoint that is as it was written.
///
/// # Errors
/// Where there are checkpoints, and all of them are damaged.
pub(crate) fn newest(out: &Path) -> Result<Found> {
    let mut found = Found::default();
    for (step, folder) in all(out)?.into_iter().rev() {
        match open(&folder, step) {
            Ok(Some(state)) => {
                found.checkpoint = Some(Checkpoint { folder, state });
                return Ok(found);
            }
            Ok(None) => found.stale.push(folder),
            Err(reason) => {
                found.damaged.push(format!("`{}`: {reason}", folder.display()));
                found.stale.push(folder);
            }
        }
    }
    if found.damaged.is_empty() {
        return Ok(found);
    }
    Err(Error::Damaged {
        path: out.join("checkpoints"),
        reason: format!("none of its checkpoints can be resumed: {}", found.damaged.join("; ")),
        remedy: "start again in another folder with `--out`".into(),
    })
}

/// Reads the state of a checkpoint, if it is whole; `None` for one that was never finished.
fn open(folder: &Path, step: usize) -> std::result::Result<Option<State>, String> {
    match checksums::check(folder, &[TENSORS, STATE]) {
        Checked::Whole => {}
        Checked::Unknown => {
            let state = store::load_json::<serde_json::Value>(&folder.join(STATE));
            return match state.is_ok_and(|state| state.get("inputs").is_none()) {
                true => Err("it was written without checksums by an earlier version".into()),
                // Killed while it was written: its checksums would have come last.
                false => Ok(None),
            };
        }
        Checked::Damaged(reason) => return Err(reason),
    }
    let state: State = store::load_json(&folder.join(STATE)).map_err(|e| e.to_string())?;
    if state.step == step { Ok(Some(state)) } else { Err(format!("it is of step {}", state.step)) }
}

impl Checkpoint {
    /// Path of the checkpoint's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts the checkpoint's tensors and step into `decoder` and `optimizer`.
    pub(crate) fn restore(&self, decoder: &mut Decoder, optimizer: &mut Optimizer, run: &RunConfig) -> Result<()> {
        let then = &self.state.run;
        if then.recipe != run.recipe || then.seed != run.seed || then.model != run.model || then.data != run.data {
            let reason = "its model, data, seed or recipe differ from the run's; only the execution may change".into();
            return Err(Error::Mismatch { path: self.folder.clone(), reason });
        }
        let tensors = tensor_file::load(&self.folder.join(TENSORS))?;
        let get = |name: &str, like: &Tensor| -> Result<Tensor> {
            let found = tensors
                .get(name)
                .ok_or_else(|| Error::Weights { path: self.folder.clone(), reason: format!("`{name}` is missing") })?;
            if found.dims() != like.dims() || found.dtype() != like.dtype() {
                let reason = format!("`{name}` is {:?}, and the run's is {:?}", found.dims(), like.dims());
                return Err(Error::Mismatch { path: self.folder.clone(), reason });
            }
            Ok(found.to_device(like.device())?)
        };
        // All of it is looked up before anything is changed.
        let mut found = Vec::new();
        for (i, (site, states)) in decoder.sites.iter().zip(&optimizer.states).enumerate() {
            let Some(adapter) = decoder.adapter(i) else { continue };
            for ((part, p), state) in PARTS.iter().zip(adapter.tensors()).zip(states) {
                let path = format!("{}.{part}", site.path);
                for (name, t) in state.tensors() {
                    found.push((t.clone(), get(&format!("{path}.{name}"), t)?));
                }
                found.push((p.clone(), get(&path, p)?));
            }
        }
        for (place, value) in found {
            place.slice_set(&value, 0, 0)?;
        }
        (0..decoder.sites.len()).try_for_each(|site| decoder.adapter_changed(site))?;
        optimizer.steps = self.state.step;
        Ok(())
    }
}
