//! Files too large to hold: written piece by piece under another name, and there only once they are whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{beside, make_folder, parent, writing};
use crate::error::Result;

/// Bytes gathered before they go to the disk.
const BUFFER: usize = 1 << 20;

/// A file that grows out of sight. Dropped unfinished, it leaves nothing.
pub struct Streamed {
    file: BufWriter<File>,
    path: PathBuf,
    temporary: PathBuf,
    finished: bool,
}

impl Streamed {
    /// Begins a file that will be at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = beside(path);
        make_folder(parent(path))?;
        let file = File::create(&temporary).map_err(writing(&temporary))?;
        Ok(Self { file: BufWriter::with_capacity(BUFFER, file), path: path.into(), temporary, finished: false })
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(writing(&self.path))
    }

    /// Puts it in its place.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(writing(&self.path))?;
        fs::rename(&self.temporary, &self.path).map_err(writing(&self.path))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A folder that is filled out of sight and takes its place as a whole. Dropped unfinished, it leaves nothing.
pub struct Staged {
    path: PathBuf,
    temporary: PathBuf,
    finished: bool,
}

impl Staged {
    /// Begins a folder that will be at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = beside(path);
        make_folder(&temporary)?;
        Ok(Self { path: path.into(), temporary, finished: false })
    }

    /// Where its files go meanwhile.
    pub fn folder(&self) -> &Path {
        &self.temporary
    }

    /// Puts it in its place, and what was there away.
    pub fn finish(mut self) -> Result<()> {
        let old = self.path.exists().then(|| beside(&self.path));
        if let Some(old) = &old {
            fs::rename(&self.path, old).map_err(writing(&self.path))?;
        }
        if let Err(e) = fs::rename(&self.temporary, &self.path) {
            if let Some(old) = &old {
                let _ = fs::rename(old, &self.path);
            }
            return Err(writing(&self.path)(e));
        }
        self.finished = true;
        old.map_or(Ok(()), |old| super::remove_folder(&old))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Copies a file.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(writing(to))
}
