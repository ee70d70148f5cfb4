//! The folder of one run: what it was, what was predicted, what happened and what came out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::files::make_folders;
use crate::store::paths::{reading, writing};
use crate::store::{files, paths, temporary};

const LOCK: &str = "run.lock";
/// Number of tries to take the lock.
const TRIES: usize = 5;
/// Names of everything that a run writes into its folder.
const OWN: [&str; 8] =
    ["run.toml", "prediction.json", "metrics.jsonl", "outcome.json", "SHA256SUMS", LOCK, "checkpoints", "adapter"];
/// Largest size of a lock file, bytes; one of Headroom's is smaller.
const LONGEST: u64 = 4096;
/// What a run writes before its first step, and so what is removed when it never takes one.
const FIRST_FILES: [&str; 3] = ["run.toml", "prediction.json", LOCK];

/// A run folder: `run.toml`, `prediction.json`, `metrics.jsonl`, `outcome.json`, `checkpoints/`, `adapter/`, and
/// `run.lock`, which is locked while a process works there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunFolder {
    path: PathBuf,
}

/// A folder that was made, or found empty, for a new run.
#[derive(Debug)]
pub(crate) struct NewRun {
    /// The folder of the new run.
    pub folder: RunFolder,
    /// Lock that keeps other processes out of the folder.
    pub lock: RunLock,
    /// Folders that were made for the run, the uppermost first.
    made: Vec<PathBuf>,
}

impl NewRun {
    /// Takes back what [`RunFolder::create`] and the start of a run made; whatever else has come into the folder stays.
    pub(crate) fn discard(self) -> Result<()> {
        // A folder that was there before, though empty, stays.
        if self.made.is_empty() {
            files::remove_files(&self.folder.path, &FIRST_FILES)?;
        } else {
            files::remove_own(&self.folder.path, &FIRST_FILES)?;
        }
        // Those above it may have been put to use meanwhile.
        self.made.iter().rev().skip(1).for_each(|folder| drop(fs::remove_dir(folder)));
        Ok(())
    }
}

impl RunFolder {
    /// A new one, locked: a folder that is not there yet, or an empty one. A run shares its folder with nothing.
    pub(crate) fn create(path: &Path) -> Result<NewRun> {
        let folder = Self { path: path.into() };
        let made = make_folders(path)?;
        // Before there is a lock to take, so that no lock file comes into a folder that is somebody else's.
        folder.check_free()?;
        let lock = RunLock::take(&folder)?;
        // Another process may have begun a run between the look and the lock.
        folder.check_free()?;
        Ok(NewRun { folder, lock, made })
    }

    /// A new one at the first of `NAME-1`, `NAME-2` and so on in `parent` that is free, however many look at once.
    pub(crate) fn create_numbered(parent: &Path, name: &str) -> Result<NewRun> {
        let mut number = 1;
        loop {
            match Self::create(&parent.join(paths::file_name(&format!("{name}-{number}")))) {
                Err(Error::RunExists { .. } | Error::NotEmpty { .. } | Error::InUse { .. }) => number += 1,
                created => return created,
            }
        }
    }

    /// Whether a new run may be begun at `path`: nothing is there, or an empty folder.
    pub(crate) fn check(path: &Path) -> Result<()> {
        if path.exists() { Self { path: path.into() }.check_free() } else { Ok(()) }
    }

    fn check_free(&self) -> Result<()> {
        if self.config().exists() || self.metrics().exists() || self.outcome().exists() {
            return Err(Error::RunExists { path: self.path.clone() });
        }
        for entry in fs::read_dir(&self.path).map_err(reading(&self.path))? {
            let name = entry.map_err(reading(&self.path))?.file_name();
            let name = name.to_string_lossy();
            // A process that was killed before it began leaves no more than these; Finder leaves its own where it looks.
            if ![LOCK, "prediction.json", ".DS_Store"].contains(&&*name) && !temporary::is_temporary(&name) {
                return Err(Error::NotEmpty { path: self.path.clone(), holds: name.into_owned() });
            }
        }
        Ok(())
    }

    /// Opens an existing run folder.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let folder = Self { path: path.into() };
        if folder.config().exists() {
            Ok(folder)
        } else {
            Err(Error::Mismatch { path: path.into(), reason: "it is not a run folder (no `run.toml`)".into() })
        }
    }

    /// All run folders directly inside a folder, by name.
    pub(crate) fn all_in(path: &Path) -> Result<Vec<Self>> {
        Ok(files::folders_in(path)?.iter().filter_map(|p| Self::open(p).ok()).collect())
    }

    /// Keeps every other process from working in it, for as long as the lock lives.
    ///
    /// # Errors
    /// Where another process works there, and where something that a run writes is a link: it would lead out of the folder.
    pub(crate) fn lock(&self) -> Result<RunLock> {
        if let Some(link) = OWN.iter().find(|name| self.path.join(name).is_symlink()) {
            let reason = format!("`{link}` is a link, and a run only writes into its own folder");
            return Err(Error::Mismatch { path: self.path.clone(), reason });
        }
        RunLock::take(self)
    }

    /// Whether a process works in it now, or did so when it was ended without a chance to say so.
    pub(crate) fn activity(&self) -> Activity {
        let Ok(mut file) = files::open_regular(&self.path.join(LOCK)) else { return Activity::Idle };
        let holder = Holder::read(&mut file);
        match (file.try_lock_shared(), holder) {
            (Err(fs::TryLockError::WouldBlock), holder) => Activity::Running(holder),
            (_, Some(holder)) => Activity::Ended(holder),
            (_, None) => Activity::Idle,
        }
    }

    /// Path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Name of the folder: the last component of its path.
    pub(crate) fn name(&self) -> String {
        let full = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        full.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned())
    }

    /// Path of `run.toml`, the run's configuration with nothing left to default.
    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// Path of `prediction.json`, what was predicted before the run began.
    pub(crate) fn prediction(&self) -> PathBuf {
        self.path.join("prediction.json")
    }

    /// Path of `metrics.jsonl`, with one line per optimizer step.
    pub(crate) fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Path of `outcome.json`, how the run ended.
    pub(crate) fn outcome(&self) -> PathBuf {
        self.path.join("outcome.json")
    }

    /// Path of the trained adapter, in PEFT's layout.
    pub(crate) fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }
}

/// The process that works in a run folder, and when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Process id.
    pub pid: u32,
    /// Time when it began, seconds since 1970.
    pub unix_time: u64,
    /// Number of processes that the kernel had ended for want of memory by then, in this one's control groups.
    pub oom_kills: u64,
    /// Whether the process ended itself because memory was about to run out.
    #[serde(default)]
    pub gave_up: bool,
}

impl Holder {
    fn text(self) -> Result<String> {
        serde_json::to_string(&self).map_err(|e| Error::Serialise { what: "run.lock", reason: e.to_string() })
    }

    /// Reads the holder from the lock file; `None` where the lock was given back in order.
    fn read(file: &mut File) -> Option<Self> {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).and_then(|_| file.take(LONGEST).read_to_string(&mut text)).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// Whether a process works in a run folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// No process works in the folder.
    Idle,
    /// A process works in the folder now; which, where it has said so.
    Running(Option<Holder>),
    /// The process that held the folder was ended without a chance to say so.
    Ended(Holder),
}

/// A run folder that belongs to this process. The kernel drops the lock with the process, however that ends; the name of
/// the holder stays in the file then, which is how the next process knows that this one was killed.
#[derive(Debug)]
pub(crate) struct RunLock {
    path: PathBuf,
    file: File,
    previous: Option<Holder>,
    held: bool,
}

impl RunLock {
    fn take(folder: &RunFolder) -> Result<Self> {
        let path = folder.path.join(LOCK);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
        let mut file = opened.map_err(writing(&path))?;
        let mut taken = file.try_lock();
        for _ in 1..TRIES {
            // Whoever only asks what goes on here holds it for a moment.
            if !matches!(taken, Err(fs::TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            taken = file.try_lock();
        }
        let previous = Holder::read(&mut file);
        // A lock on a file that was removed meanwhile keeps nobody out.
        let same = |there: fs::Metadata| file.metadata().is_ok_and(|here| here.ino() == there.ino());
        if taken.is_ok() && !fs::metadata(&path).is_ok_and(same) {
            taken = Err(fs::TryLockError::WouldBlock);
        }
        match taken {
            Ok(()) => Ok(Self { path, file, previous, held: false }),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::InUse { path: folder.path.clone(), pid: previous.map(|p| p.pid) })
            }
            Err(fs::TryLockError::Error(e)) => Err(writing(&path)(e)),
        }
    }

    /// The process that worked here last, if it was ended without a chance to say so.
    pub(crate) fn killed(&self) -> Option<Holder> {
        self.previous
    }

    /// Writes down who works here from now on.
    pub(crate) fn hold(&mut self, holder: Holder) -> Result<()> {
        self.held = true;
        fill(&self.file, &holder.text()?).map_err(writing(&self.path))
    }

    /// Something that says of `holder` that it gave up, for a moment in which there is no memory left to make it.
    pub(crate) fn last_words(&self, holder: Holder) -> Result<impl FnOnce() + Send + 'static> {
        let text = Holder { gave_up: true, ..holder }.text()?;
        let file = self.file.try_clone().map_err(writing(&self.path))?;
        Ok(move || drop(fill(&file, &text)))
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // A panic is no orderly end.
        if self.held && !std::thread::panicking() {
            let _ = fill(&self.file, "");
        }
    }
}

fn fill(mut file: &File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
