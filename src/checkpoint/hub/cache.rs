//! Hugging Face's cache on the disk, in the layout that huggingface_hub keeps: `models--org--name/blobs/HASH`, links to them
//! in `snapshots/COMMIT`, and `refs/NAME` with a commit.

use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use crate::checkpoint::hub::repo::Repo;
use crate::error::{Error, Result};
use crate::store;

/// A model's place in the cache.
pub(crate) struct Place {
    cache: PathBuf,
    repo: Repo,
}

impl Place {
    pub(super) fn of(cache: &Path, repo: &Repo) -> Self {
        Self { cache: cache.into(), repo: repo.clone() }
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(self.repo.folder_name())
    }

    /// Folder of a snapshot.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The file with the bytes of this hash.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// The file that holds the commit of the revision.
    fn reference(&self) -> PathBuf {
        self.folder().join("refs").join(&self.repo.revision)
    }

    /// The file that is locked while a blob is written.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.cache.join(".locks").join(self.repo.folder_name()).join(format!("{etag}.lock"))
    }

    /// Folder of the blobs, or the nearest above it that is there.
    pub(super) fn disk(&self) -> PathBuf {
        let blobs = self.blob("x");
        blobs.ancestors().skip(1).find(|p| p.exists()).unwrap_or(Path::new("/")).into()
    }

    /// The snapshot that the revision names, or for the main one the last by name where none is named, as after a download
    /// of one revision.
    pub(crate) fn found(&self) -> Option<PathBuf> {
        let described = |commit: &str| Some(self.snapshot(commit)).filter(|p| p.join("config.json").is_file());
        let named = store::read_text(&self.reference()).ok().and_then(|commit| described(commit.trim()));
        let exact = || described(&self.repo.revision);
        let last = || {
            let mut snapshots = store::folders_in(&self.folder().join("snapshots")).ok()?;
            snapshots.retain(|p| p.join("config.json").is_file());
            snapshots.pop()
        };
        named.or_else(exact).or_else(|| self.repo.is_main().then(last).flatten())
    }

    /// Puts a blob's link into a snapshot.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        store::make_folder(path.parent().unwrap_or(&path))?;
        let up = Path::new(file).components().filter(|c| matches!(c, Component::Normal(_))).count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up).collect::<PathBuf>().join("blobs").join(etag);
        match symlink(&target, &path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(|source| Error::Write { path, source }),
        }
    }

    /// Names a commit by the revision that was asked for.
    pub(super) fn name(&self, commit: &str) -> Result<()> {
        match commit == self.repo.revision {
            true => Ok(()),
            false => store::write(&self.reference(), commit.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_the_one_that_the_revision_names() {
        let hub = tempfile::tempdir().unwrap();
        let folder = hub.path().join("models--org--name");
        let of = |name: &str| Place::of(hub.path(), &Repo::parse(name).unwrap());
        let find = || of("org/name").found();
        assert_eq!(find(), None);
        for commit in ["0aa", "1bb", "2cc"] {
            let snapshot = folder.join("snapshots").join(commit);
            std::fs::create_dir_all(&snapshot).unwrap();
            // A download that was broken off.
            if commit != "2cc" {
                std::fs::write(snapshot.join("config.json"), "{}").unwrap();
            }
        }
        assert_eq!(find(), Some(folder.join("snapshots/1bb")));
        std::fs::create_dir(folder.join("refs")).unwrap();
        for (main, expected) in [("0aa", "0aa"), ("2cc", "1bb"), ("nowhere", "1bb")] {
            std::fs::write(folder.join("refs/main"), main).unwrap();
            assert_eq!(find(), Some(folder.join("snapshots").join(expected)), "{main}");
        }
        assert_eq!(of("org/other").found(), None);
        assert_eq!(of("org/name@0aa").found(), Some(folder.join("snapshots/0aa")));
        assert_eq!(of("org/name@v2").found(), None);
        of("org/name@v2").name("0aa").unwrap();
        assert_eq!(of("org/name@v2").found(), Some(folder.join("snapshots/0aa")));
        // Links lead to the blobs from any depth.
        let place = of("org/name");
        std::fs::create_dir_all(place.blob("abc").parent().unwrap()).unwrap();
        std::fs::write(place.blob("abc"), "x").unwrap();
        for file in ["a.json", "deep/er/a.json"] {
            place.link("0aa", file, "abc").unwrap();
            place.link("0aa", file, "abc").unwrap();
            assert_eq!(std::fs::read_to_string(place.snapshot("0aa").join(file)).unwrap(), "x");
        }
    }
}
