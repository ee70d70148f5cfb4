//! A run's adapters: how they start, and how they come from files and go to them.

use std::path::Path;

use candle_core::Device;
use rand::{Rng, SeedableRng};

use crate::checkpoint;
use crate::checkpoint::adapter::{About, Adapter, AdapterFile, Layout};
use crate::checkpoint::source::public_name;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Lora, RunConfig};
use crate::store::checksums;
use crate::trainer::candle::nn::decoder::{Decoder, Site, sites};

/// A fresh pair, as PEFT starts it: A uniform within 1 / sqrt(in) (Kaiming with a = sqrt(5)), B zero.
pub fn fresh(
    site: &Site,
    index: usize,
    rank: usize,
    seed: u64,
    (device, backend): (&Device, Backend),
) -> Result<Adapter> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index as u64);
    let bound = (1.0 / site.in_features as f64).sqrt() as f32;
    let a: Vec<f32> = (0..rank * site.in_features).map(|_| rng.random_range(-bound..bound)).collect();
    Ok(Adapter {
        a: backend.upload(a, (rank, site.in_features), device)?,
        b: backend.lasting_zeros((site.out_features, rank), device)?,
        // DoRA's starts at the norms, which the projection knows.
        magnitude: None,
    })
}

/// A pair of the right size, whose numbers nobody asks for.
pub(crate) fn blank(site: &Site, rank: usize, (device, backend): (&Device, Backend)) -> Result<Adapter> {
    Ok(Adapter {
        a: backend.lasting_zeros((rank, site.in_features), device)?,
        b: backend.lasting_zeros((site.out_features, rank), device)?,
        magnitude: None,
    })
}

/// Writes the adapters of `decoder` into `folder`, in PEFT's layout.
pub fn save(decoder: &Decoder, spec: &ModelSpec, run: &RunConfig, folder: &Path) -> Result<()> {
    let lora = &run.recipe.lora;
    let about = About {
        rank: lora.rank,
        alpha: lora.alpha,
        use_rslora: lora.use_rslora,
        use_dora: lora.use_dora,
        dropout: lora.dropout,
        base: Some(public_name(&run.model)),
    };
    let on_cpu = |adapter: &Adapter| adapter.map(|t| t.to_device(&Device::Cpu));
    let adapted = decoder.sites.iter().enumerate().filter_map(|(i, site)| Some((site, decoder.adapter(i)?)));
    let adapters = adapted.map(|(site, adapter)| Ok((site.path.clone(), on_cpu(adapter)?))).collect::<Result<_>>()?;
    checkpoint::adapter::write(folder, Layout::Peft, &about, &adapters, spec)?;
    checksums::write(folder, &[Layout::Peft.weights_file(), checkpoint::adapter::CONFIG_FILE])
}

/// Reads an adapter of either layout, whichever blocks and projections it is for, and holds it to the model.
pub(crate) fn read_for(spec: &ModelSpec, folder: &Path) -> Result<AdapterFile> {
    let file = AdapterFile::read(folder)?;
    let lora = Lora { num_layers: -1, target_modules: vec!["all-linear".into()], ..file.lora() };
    let all = sites(spec, &lora)?;
    let meant = all.iter().filter(|s| file.paths().any(|p| p == s.path));
    let wrong = file.mismatches(&lora, meant.map(|s| (s.path.as_str(), [s.in_features, s.out_features])));
    if wrong.is_empty() {
        return Ok(file);
    }
    Err(Error::Mismatch { path: folder.into(), reason: listed(&wrong) })
}

/// Loads an adapter of either layout onto `decoder`; every difference from the run is listed.
pub fn load(decoder: &mut Decoder, run: &RunConfig, folder: &Path) -> Result<()> {
    let file = AdapterFile::read(folder)?;
    let sites = decoder.sites.iter().map(|s| (s.path.as_str(), [s.in_features, s.out_features]));
    let wrong = file.mismatches(&run.recipe.lora, sites);
    if !wrong.is_empty() {
        return Err(Error::Mismatch { path: folder.into(), reason: listed(&wrong) });
    }
    for i in 0..decoder.sites.len() {
        if let Some(adapter) = file.adapter(&decoder.sites[i].path) {
            let adapter = adapter.map(|t| t.to_device(decoder.device()))?;
            decoder.set_adapter(i, adapter)?;
        }
    }
    Ok(())
}

/// Loads an adapter to be trained on: one whose layers differ is made even for computing, and would learn otherwise.
pub(crate) fn start_from(decoder: &mut Decoder, run: &RunConfig, folder: &Path) -> Result<()> {
    if AdapterFile::read(folder)?.evened {
        let reason = "its layers differ in rank or alpha (`rank_pattern`, `alpha_pattern`): it can be exported and tried, \
                      but not be trained on";
        return Err(Error::Mismatch { path: folder.into(), reason: reason.into() });
    }
    load(decoder, run, folder)
}

/// Differences as one clause each; a file of another shape differs in every tensor, of which a few say it all.
fn listed(wrong: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = wrong[..wrong.len().min(SHOWN)].join("; ");
    if wrong.len() > SHOWN {
        text += &format!("; and {} more", wrong.len() - SHOWN);
    }
    text
}
