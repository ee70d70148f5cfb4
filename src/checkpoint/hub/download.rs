//! One file from the hub into the cache: gone on with where it was broken off, held to its hash, in its place at once.

use std::fs::{File as Disk, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::checkpoint::hub::cache::Place;
use crate::checkpoint::hub::client::{self, Client, FIRST_WAIT, Refusal, TRIES, is_part};
use crate::checkpoint::hub::listing::File;
use crate::checkpoint::hub::repo::Repo;
use crate::error::{Error, Result};
use crate::store;

/// Bytes read at a time.
const PIECE: usize = 1 << 18;

/// Time between two looks at whether the user wants an end.
const LOOK: Duration = Duration::from_millis(100);

/// What stopped a download: the hub, or something here.
pub(super) enum Stopped {
    Hub(Refusal),
    Here(Error),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Hub(refusal)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

/// What is done so far of a file, bytes; an error ends the download.
pub(super) type Tick<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// A revision that is being fetched.
pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client,
    pub(super) place: &'a Place,
    pub(super) repo: &'a Repo,
    pub(super) commit: &'a str,
}

impl Fetch<'_> {
    /// Whether a file is in the cache, whole.
    pub(super) fn has(&self, file: &File) -> bool {
        self.place.blob(&file.etag).metadata().is_ok_and(|m| m.len() == file.size)
    }

    /// Bytes of a file that are still to be fetched.
    pub(super) fn missing(&self, file: &File) -> u64 {
        let begun = incomplete(self.place, file).metadata().map_or(0, |m| m.len()).min(file.size);
        if self.has(file) { 0 } else { file.size - begun }
    }

    /// Brings a file into the cache and its link into the snapshot.
    pub(super) fn file(&self, file: &File, tick: Tick<'_>) -> Result<(), Stopped> {
        if !self.has(file) {
            let lock = self.place.lock(&file.etag);
            let _held = locked(&lock, tick)?;
            // Another process may have been faster.
            if !self.has(file) {
                self.transfer(file, tick)?;
            }
        }
        tick(file.size)?;
        Ok(self.place.link(self.commit, &file.path, &file.etag)?)
    }

    fn transfer(&self, file: &File, tick: Tick<'_>) -> Result<(), Stopped> {
        let path = incomplete(self.place, file);
        store::make_folder(path.parent().unwrap_or(&path))?;
        let write = |source| Error::Write { path: path.clone(), source };
        let mut disk = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(write)?;
        let mut begun = Begun::of(&mut disk, file).map_err(write)?;
        let from_before = begun.length > 0;
        self.fill(file, &mut disk, &mut begun, tick)?;
        if from_before && begun.hash() != file.etag {
            // What was there may be no beginning: other tools write the pieces of a file in any order.
            begun.restart(&mut disk, file).map_err(write)?;
            self.fill(file, &mut disk, &mut begun, tick)?;
        }
        disk.sync_all().map_err(write)?;
        if begun.hash() != file.etag {
            std::fs::remove_file(&path).map_err(write)?;
            let reason =
                format!("`{}` arrived with other bytes than the hub names by its hash, and was removed", file.path);
            return Err(Refusal::No(reason, Some("try again; if it stays so, tell the model's owner".into())).into());
        }
        let blob = self.place.blob(&file.etag);
        std::fs::rename(&path, &blob).map_err(|source| Error::Write { path: blob, source })?;
        Ok(())
    }

    /// Transfers what is missing of a file, in as many parts as it takes.
    fn fill(&self, file: &File, disk: &mut Disk, begun: &mut Begun, tick: Tick<'_>) -> Result<(), Stopped> {
        let (mut tries, mut wait) = (TRIES, FIRST_WAIT);
        let mut furthest = begun.length;
        while begun.length < file.size {
            let refusal = match self.part(file, disk, begun, tick) {
                Ok(()) => continue,
                Err(Stopped::Hub(refusal)) => refusal,
                Err(here) => return Err(here),
            };
            // To come again to where it was is no progress.
            if begun.length > furthest {
                (tries, wait, furthest) = (TRIES, FIRST_WAIT, begun.length);
            }
            let asked = match &refusal {
                Refusal::No(..) => return Err(refusal.into()),
                Refusal::Broken(_) => Duration::ZERO,
                Refusal::Wait(_, asked) => *asked,
            };
            tries -= 1;
            if tries == 0 {
                return Err(refusal.into());
            }
            paused(asked.max(wait), begun.length, tick)?;
            wait *= 2;
        }
        Ok(())
    }

    /// Goes on with a file as far as one answer reaches.
    fn part(&self, file: &File, disk: &mut Disk, begun: &mut Begun, tick: Tick<'_>) -> Result<(), Stopped> {
        let path = format!("/{}/resolve/{}/{}", self.repo.id, self.commit, encoded(&file.path));
        let answer = self.client.get(&path, begun.length)?;
        let here = |source| Error::Write { path: incomplete(self.place, file), source };
        if begun.length > 0 && !is_part(&answer, begun.length) {
            // The whole was sent, or the part that is here is no beginning of it.
            begun.restart(disk, file).map_err(here)?;
            if answer.status().as_u16() != 200 {
                return Err(Refusal::Broken("the hub does not resume where the transfer broke off".into()).into());
            }
        }
        let mut body = answer.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        let mut looked = Instant::now();
        loop {
            let read = match body.read(&mut piece) {
                Ok(0) if begun.length < file.size => {
                    let reason = format!("`{}` ended after {} of {} bytes", file.path, begun.length, file.size);
                    return Err(Refusal::Broken(reason).into());
                }
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) => return Err(Refusal::Broken(format!("the transfer of `{}` broke off: {e}", file.path)).into()),
            };
            if begun.length + read as u64 > file.size {
                begun.restart(disk, file).map_err(here)?;
                let reason = format!("`{}` has more bytes than the hub said", file.path);
                return Err(Refusal::No(reason, None).into());
            }
            disk.write_all(&piece[..read]).map_err(here)?;
            begun.take(&piece[..read]);
            if looked.elapsed() > LOOK || begun.length == file.size {
                looked = Instant::now();
                tick(begun.length)?;
            }
        }
    }
}

/// The file that a blob is collected in, as huggingface_hub names it.
fn incomplete(place: &Place, file: &File) -> std::path::PathBuf {
    let blob = place.blob(&file.etag);
    blob.with_file_name(format!("{}.incomplete", file.etag))
}

/// Waits, as long as the user has not asked for an end.
fn paused(wait: Duration, done: u64, tick: Tick<'_>) -> Result<()> {
    let until = Instant::now() + wait;
    while Instant::now() < until {
        tick(done)?;
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// Takes a lock that another process may have for the time of its download.
fn locked(path: &Path, tick: Tick<'_>) -> Result<Disk> {
    store::make_folder(path.parent().unwrap_or(path))?;
    let write = |source| Error::Write { path: path.into(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(write)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => paused(LOOK, 0, tick)?,
            // Some file systems have no locks.
            Err(std::fs::TryLockError::Error(_)) => return Ok(file),
        }
    }
}

/// The beginning of a file that is here, and the hash of it.
struct Begun {
    length: u64,
    sha: Hash,
}

enum Hash {
    Sha256(Sha256),
    /// Git's: of a small file.
    Git(Sha1),
}

impl Begun {
    fn empty(file: &File) -> Self {
        let sha = if file.etag.len() == 64 {
            Hash::Sha256(Sha256::new())
        } else {
            let mut sha = Sha1::new();
            sha.update(format!("blob {}\0", file.size));
            Hash::Git(sha)
        };
        Self { length: 0, sha }
    }

    /// Reads what is there.
    fn of(disk: &mut Disk, file: &File) -> std::io::Result<Self> {
        let mut begun = Self::empty(file);
        if disk.metadata()?.len() > file.size {
            disk.set_len(0)?;
        }
        disk.rewind()?;
        let mut piece = vec![0; PIECE];
        loop {
            match disk.read(&mut piece)? {
                0 => return Ok(begun),
                n => begun.take(&piece[..n]),
            }
        }
    }

    fn restart(&mut self, disk: &mut Disk, file: &File) -> std::io::Result<()> {
        *self = Self::empty(file);
        disk.set_len(0)
    }

    fn take(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        match &mut self.sha {
            Hash::Sha256(sha) => sha.update(bytes),
            Hash::Git(sha) => sha.update(bytes),
        }
    }

    fn hash(&self) -> String {
        match &self.sha {
            Hash::Sha256(sha) => hex(&sha.clone().finalize()),
            Hash::Git(sha) => hex(&sha.clone().finalize()),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A path of a file in an address.
fn encoded(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Asks again while that may help, and stops where the user wants it.
pub(super) fn patient<T>(most: u32, work: impl FnMut() -> Result<T, Refusal>, tick: Tick<'_>) -> Result<T, Stopped> {
    let mut ended = None;
    let done = client::tried(most, work, |wait| match paused(wait, 0, tick) {
        Ok(()) => true,
        Err(error) => {
            ended = Some(error);
            false
        }
    });
    match (done, ended) {
        (_, Some(error)) => Err(error.into()),
        (done, None) => Ok(done?),
    }
}
