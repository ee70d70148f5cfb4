//! Models on Hugging Face's hub, or a mirror of it: found in the cache that every tool shares, fetched into it when asked.
//!
//! The hf-hub crate is not used: version 0.5 checks no hash and explains no refusal, version 1 resumes nothing and is some
//! 280 crates. The few requests that are needed are sent here, by ureq.

mod cache;
mod client;
mod download;
mod listing;
mod repo;
mod settings;

use std::path::{Path, PathBuf};

use self::cache::Place;
use self::client::{Client, Refusal, TRIES};
use self::download::{Fetch, Stopped, patient};
use self::listing::{File, INDEX, Listing, TOKENIZERS};
pub(crate) use self::repo::Repo;
pub(crate) use self::settings::Settings;
use crate::checkpoint::shards::safetensors_files;
use crate::error::{Error, Result};
use crate::store;
use crate::units::Bytes;

/// Room that is left on the disk beside what is fetched.
const MARGIN: u64 = 512 << 20;

/// What of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// config.json: enough to plan.
    Config,
    /// Tokenizer and templates too: enough to read rows.
    Texts,
    /// All that is needed to train.
    Weights,
}

/// How far a download is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress<'a> {
    /// Name of the file.
    pub(crate) file: &'a str,
    /// Bytes of all files that are here, and of all there are.
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// What was fetched.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    /// Commit that the revision stood for.
    pub(crate) commit: String,
    /// Bytes that were transferred.
    pub(crate) bytes: Bytes,
}

/// A callback that is told of progress; an error of it ends the download.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(Progress<'_>) -> Result<()>;

/// The folder of a model in the cache, where there is one.
pub(crate) fn cached(name: &str) -> Option<PathBuf> {
    let repo = Repo::parse(name)?;
    Place::of(&Settings::from_env().cache?, &repo).found()
}

/// Commit of the folder that a model has in the cache.
pub(crate) fn commit(name: &str) -> Option<String> {
    Some(cached(name)?.file_name()?.to_string_lossy().into_owned())
}

/// Fetches what is missing of a model's part; `None` where nothing is.
pub(crate) fn fetch(name: &str, part: Part, watch: Watch<'_>) -> Result<Option<Fetched>> {
    fetch_by(&Settings::from_env(), name, part, watch)
}

fn fetch_by(settings: &Settings, name: &str, part: Part, watch: Watch<'_>) -> Result<Option<Fetched>> {
    let (Some(repo), Some(cache)) = (Repo::parse(name), settings.cache.as_ref()) else { return Ok(None) };
    let place = Place::of(cache, &repo);
    let lacking = match place.found() {
        Some(folder) => lacking(&folder, part),
        None => Some("nothing of it is there".into()),
    };
    let Some(lacking) = lacking else { return Ok(None) };
    if settings.offline {
        let reason = format!("HF_HUB_OFFLINE forbids to ask the network, and the cache does not have it: {lacking}");
        let remedy = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or give a folder with `--model DIR`";
        return Err(refused(name, Refusal::No(reason, Some(remedy.into()))));
    }
    let client = Client::new(settings, &repo);
    // Who plans can do without, and does not wait for long.
    let tries = if part == Part::Config { 1 } else { TRIES };
    let wanted = Wanted { client: &client, place: &place, repo: &repo, part, tries };
    wanted.fetch(watch).map(Some).map_err(|stopped| match stopped {
        Stopped::Hub(refusal) => refused(name, refusal),
        Stopped::Here(error) => error,
    })
}

/// What a folder of the cache lacks of a part of a model, in words; its config.json is there.
fn lacking(folder: &Path, part: Part) -> Option<String> {
    let text = TOKENIZERS.iter().chain(&["vocab.json"]).any(|name| folder.join(name).is_file());
    match part {
        Part::Config => None,
        Part::Texts | Part::Weights if !text => Some("there is no tokenizer.json".into()),
        Part::Texts => None,
        Part::Weights => safetensors_files(folder).err().map(|error| match error {
            Error::Weights { reason, .. } => reason,
            other => other.to_string(),
        }),
    }
}

fn refused(name: &str, refusal: Refusal) -> Error {
    let (reason, remedy) = match refusal {
        Refusal::No(reason, remedy) => (reason, remedy),
        Refusal::Broken(reason) | Refusal::Wait(reason, _) => {
            (reason, Some("check the network and try again: what has arrived is kept".into()))
        }
    };
    Error::Hub { name: name.into(), reason, remedy }
}

struct Wanted<'a> {
    client: &'a Client,
    place: &'a Place,
    repo: &'a Repo,
    part: Part,
    tries: u32,
}

impl Wanted<'_> {
    fn fetch(&self, watch: Watch<'_>) -> Result<Fetched, Stopped> {
        let mut look = |_| watch(Progress { file: "", done: 0, total: 0 });
        let listing = patient(self.tries, || Listing::of(self.client, self.repo), &mut look)?;
        let fetch = Fetch { client: self.client, place: self.place, repo: self.repo, commit: &listing.commit };
        let mut files = match self.part {
            Part::Config => vec![listing.config()?],
            Part::Texts | Part::Weights => listing.texts()?,
        };
        if self.part == Part::Weights {
            let index = listing.index()?.map(|index| self.index(&fetch, index)).transpose()?;
            let weights = listing.weights(index.as_deref())?;
            // The tokenizer stays the last of the texts: weights before it, and what is missing shows.
            files.splice(0..0, weights);
        }
        let missing: u64 = files.iter().map(|file| fetch.missing(file)).sum();
        self.check_room(missing)?;
        let total: u64 = files.iter().map(|file| file.size).sum();
        let mut before = 0;
        for file in files {
            let mut tick = |done: u64| watch(Progress { file: &file.path, done: before + done, total });
            fetch.file(file, &mut tick)?;
            before += file.size;
        }
        self.place.name(&listing.commit)?;
        Ok(Fetched { commit: listing.commit, bytes: Bytes(missing) })
    }

    /// The text of the index of shards.
    fn index(&self, fetch: &Fetch<'_>, index: &File) -> Result<String, Stopped> {
        fetch.file(index, &mut |_| Ok(()))?;
        Ok(store::read_text(&self.place.snapshot(fetch.commit).join(INDEX))?)
    }

    /// Refuses what would fill the disk.
    fn check_room(&self, missing: u64) -> Result<()> {
        let folder = self.place.disk();
        match store::free_on_disk(&folder) {
            Some(free) if missing > 0 && free < missing + MARGIN => Err(Error::Hub {
                name: self.repo.id.clone(),
                reason: format!(
                    "{} are to be fetched, and {} are free on the disk of `{}`",
                    Bytes(missing),
                    Bytes(free),
                    folder.display()
                ),
                remedy: Some("make room, or move the cache to another disk with HF_HOME".into()),
            }),
            _ => Ok(()),
        }
    }
}
