//! Where an export goes, and what may not be lost there.

use std::path::{Path, PathBuf};

use crate::checkpoint::source::ModelSource;
use crate::error::{Error, Result};
use crate::export::request::Request;
use crate::store;
use crate::store::stream::Staged;
use crate::units::Bytes;

/// Name of the file in an exported folder that lists its files, one a line; any other file there is the user's own.
const MANIFEST: &str = ".headroom-export";

/// First bytes of every GGUF file.
const GGUF: &[u8] = b"GGUF";

/// A checked place that an export may be written to.
pub(crate) struct Place {
    out: PathBuf,
    force: bool,
}

impl Place {
    /// Refuses to write over anything without leave, over what is being read, and over what no export made.
    pub(crate) fn check(request: &Request, source: &ModelSource) -> Result<Self> {
        let place = Self { out: request.out.clone(), force: request.force };
        store::clear_beside(&place.out);
        if !place.out.exists() && !place.out.is_symlink() {
            return Ok(place);
        }
        if request.format.is_file() {
            place.check_file(source)?;
            return Ok(place);
        }
        if !place.out.is_dir() {
            return Err(place.must("a folder"));
        }
        if !store::entries_in(&place.out)?.is_empty() {
            if !place.force {
                return Err(Error::Exists { path: place.out });
            }
            let base = if let ModelSource::Folder(folder) = source { Some(folder) } else { None };
            let out = place.out.canonicalize();
            let inside =
                |read: &PathBuf| read.canonicalize().is_ok_and(|r| out.as_ref().is_ok_and(|o| r.starts_with(o)));
            if base.into_iter().chain(&request.adapter).any(inside) {
                return Err(place.must("another folder than the one it is made from"));
            }
        }
        place.refuse_foreign()?;
        Ok(place)
    }

    fn must(&self, must: &str) -> Error {
        Error::invalid("--out", format!("`{}`", self.out.display()), must)
    }

    fn check_file(&self, source: &ModelSource) -> Result<()> {
        if self.out.is_dir() {
            return Err(self.must("the name of a file, such as model.gguf"));
        }
        if !self.force {
            return Err(Error::Exists { path: self.out.clone() });
        }
        if !store::begins_with(&self.out, GGUF)? {
            return Err(self.must("a new name, or a GGUF file that is to be replaced: this is another file"));
        }
        let ModelSource::Gguf(base) = source else { return Ok(()) };
        match base.canonicalize().is_ok_and(|base| self.out.canonicalize().is_ok_and(|out| out == base)) {
            true => Err(self.must("another file than the one it is made from")),
            false => Ok(()),
        }
    }

    /// Refuses a folder that holds anything that no export put there.
    fn refuse_foreign(&self) -> Result<()> {
        let manifest = self.out.join(MANIFEST);
        let listed = if manifest.is_file() { store::read_text(&manifest)? } else { String::new() };
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            path.is_file() && (name == MANIFEST || listed.lines().any(|line| name == line))
        };
        match store::entries_in(&self.out)?.iter().find(|path| !ours(path)) {
            Some(other) => {
                let name = other.file_name().unwrap_or_default().to_string_lossy();
                let must = format!("empty, or hold nothing but what an export put there: it holds `{name}`");
                Err(self.must(&must))
            }
            None => Ok(()),
        }
    }

    /// A folder that takes the place once it is full.
    pub(crate) fn stage(&self) -> Result<Staged> {
        Staged::create(&self.out)
    }

    /// Lists what is in the folder and puts it in its place.
    pub(crate) fn finish(&self, staged: Staged) -> Result<()> {
        let files = store::entries_in(staged.folder())?;
        let names: Vec<String> =
            files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect();
        store::write(&staged.folder().join(MANIFEST), (names.join("\n") + "\n").as_bytes())?;
        // Something may have been put there meanwhile.
        self.refuse_foreign()?;
        staged.finish()
    }
}

/// Bytes of a file, or of the files in a folder.
pub(crate) fn size(path: &Path) -> Result<Bytes> {
    let of = |path: PathBuf| {
        let meta = path.metadata();
        meta.map(|m| m.len()).map_err(|source| Error::Read { path, source })
    };
    if path.is_dir() {
        return Ok(Bytes(store::files_in(path)?.into_iter().map(of).sum::<Result<u64>>()?));
    }
    of(path.into()).map(Bytes)
}
