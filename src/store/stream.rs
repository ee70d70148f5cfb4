//! Files too large to hold: written piece by piece under another name, and there only once they are whole.

use std::ffi::CString;
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::store::files::{make_folder, open_regular};
use crate::store::paths::{parent, reading, writing};
use crate::store::temporary::Temporary;

/// Number of bytes gathered before they are written to disk.
const BUFFER: usize = 1 << 20;

/// A file that grows out of sight. Dropped unfinished, it leaves nothing.
pub(crate) struct Streamed {
    file: BufWriter<Temporary>,
    path: PathBuf,
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.handle().flush()
    }
}

impl Streamed {
    /// Begins a file that will be at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        make_folder(parent(path))?;
        let temporary = Temporary::file(path).map_err(writing(path))?;
        Ok(Self { file: BufWriter::with_capacity(BUFFER, temporary), path: path.into() })
    }

    /// Appends bytes to the file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(writing(&self.path))
    }

    /// Moves the finished file to its place.
    pub(crate) fn finish(self) -> Result<()> {
        let temporary = self.file.into_inner().map_err(|e| writing(&self.path)(e.into_error()))?;
        temporary.place(&self.path).map_err(writing(&self.path))
    }
}

/// A folder that is filled out of sight and takes its place as a whole. Dropped unfinished, it leaves nothing.
pub(crate) struct Staged {
    temporary: Temporary,
    path: PathBuf,
}

impl Staged {
    /// Begins a folder that will be at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        make_folder(parent(path))?;
        let temporary = Temporary::folder(path).map_err(writing(path))?;
        Ok(Self { temporary, path: path.into() })
    }

    /// Path of the temporary folder that files are written into.
    pub(crate) fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts it in its place. What was there is exchanged for it in one step of the file system, and then removed: the
    /// caller has made sure that nothing is lost with it.
    pub(crate) fn finish(self) -> Result<()> {
        if !self.path.exists() {
            return self.temporary.place(&self.path).map_err(writing(&self.path));
        }
        // Dropping the temporary folder, which now is the old one, removes it.
        exchange(self.temporary.path(), &self.path).map_err(writing(&self.path))
    }
}

/// Exchanges two names of one file system, so that at no moment either is missing.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let [one, other] = [one, other].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (one, other) = (one?, other?);
    // SAFETY: both are strings that end in a zero byte and outlive the call.
    #[cfg(target_os = "macos")]
    let result = unsafe { libc::renamex_np(one.as_ptr(), other.as_ptr(), libc::RENAME_SWAP) };
    // SAFETY: as above.
    #[cfg(not(target_os = "macos"))]
    let result =
        unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Copies a large file, which is there once it is whole; `progress` is told the bytes done and the bytes in all.
pub(crate) fn copied(from: &Path, to: &Path, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let mut file = open_regular(from)?;
    let total = file.metadata().map_err(reading(from))?.len();
    let (mut out, mut piece, mut done) = (Streamed::create(to)?, vec![0; BUFFER], 0);
    loop {
        match file.read(&mut piece).map_err(reading(from))? {
            0 => return out.finish(),
            n => {
                out.write(&piece[..n])?;
                done += n as u64;
                progress(done, total)?;
            }
        }
    }
}

/// Copies a file to another path.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(writing(to))
}
