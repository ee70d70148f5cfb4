//! Temporary files and folders: written beside their place, locked while they are written, and moved there once whole.
//!
//! A process that is killed leaves its temporary file behind. The kernel drops the lock with the process, so the next
//! write into the same folder recognises what was left there, by name and by the missing lock, and removes it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::store::paths::parent;

/// Tells our temporary names from everybody else's: `.NAME.headroom-PID-N.tmp`.
const MARK: &str = ".headroom-";
const ENDING: &str = ".tmp";

/// Bytes of the final name that the temporary name repeats; file systems allow 255 in all.
const LONGEST_NAME: usize = 180;

/// Names that may be taken already (by a process of another namespace with our number) before giving up.
const TRIES: usize = 100;

/// A temporary file or folder. Dropped before it was put in its place, it is removed.
pub(super) struct Temporary {
    path: PathBuf,
    /// Holds the lock, and for a file is what is written to.
    handle: File,
    placed: bool,
}

impl Temporary {
    /// An empty file beside `target`. The name is new: a file or link that somebody planted there is never opened.
    pub(super) fn file(target: &Path) -> io::Result<Self> {
        Self::create(target, |path| OpenOptions::new().write(true).create_new(true).open(path))
    }

    /// Creates an empty temporary folder beside `target`.
    pub(super) fn folder(target: &Path) -> io::Result<Self> {
        Self::create(target, |path| fs::create_dir(path).and_then(|()| File::open(path)))
    }

    fn create(target: &Path, make: impl Fn(&Path) -> io::Result<File>) -> io::Result<Self> {
        remove_abandoned(parent(target));
        for _ in 0..TRIES {
            let path = name_beside(target);
            match make(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(handle) => {
                    // Where a file system knows no locks, nothing is ever taken for abandoned either.
                    let _ = handle.try_lock();
                    return Ok(Self { path, handle, placed: false });
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn handle(&mut self) -> &mut File {
        &mut self.handle
    }

    /// Moves it to `target` in one step of the file system, and makes the new name last.
    pub(super) fn place(mut self, target: &Path) -> io::Result<()> {
        self.handle.sync_all()?;
        fs::rename(&self.path, target)?;
        self.placed = true;
        File::open(parent(target))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            remove(&self.path);
        }
    }
}

/// A name beside `target` that no other thread of this process uses.
fn name_beside(target: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let name = &name[..name.floor_char_boundary(LONGEST_NAME)];
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    parent(target).join(format!(".{name}{MARK}{}-{count}{ENDING}", std::process::id()))
}

/// Whether a name is one that [`name_beside`] makes.
pub(super) fn is_temporary(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|n| n.strip_suffix(ENDING));
    let numbers = inner.and_then(|n| n.rsplit_once(MARK)).and_then(|(_, numbers)| numbers.split_once('-'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(pid, count)| digits(pid) && digits(count))
}

/// Removes what killed processes left in `folder`: temporary names of ours that nobody holds a lock on.
pub(super) fn remove_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_temporary)) {
        let path = entry.path();
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
        if opened.is_ok_and(|file| file.try_lock().is_ok()) {
            remove(&path);
        }
    }
}

/// Removes a temporary file or folder; whoever comes next tries again where that fails.
fn remove(path: &Path) {
    let _ = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}
