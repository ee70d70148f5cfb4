//! Names of models as others may see them, and of fields as they were perhaps meant.

use std::path::{Component, Path};

use crate::error::Error;

/// A model or a file as others may know it: a hub id or a name as it is, and the last part of a path that begins at a root
/// or leads upwards, because the rest tells whose machine it was on. A folder of Hugging Face's cache, whose own name is
/// a commit's, is known by its hub id.
pub(crate) fn public_name(name: &str) -> String {
    let path = Path::new(name);
    let leads_out = path.components().any(|part| part == Component::ParentDir) || name.starts_with('~');
    if !path.is_absolute() && !leads_out {
        return name.into();
    }
    let mut parts = path.components().rev().skip(1).map(|part| part.as_os_str().to_string_lossy());
    if let (Some("snapshots"), Some(repo)) = (parts.next().as_deref(), parts.next())
        && let Some(id) = repo.strip_prefix("models--")
    {
        return id.replacen("--", "/", 1);
    }
    path.file_name().map_or_else(|| "folder".into(), |last| last.to_string_lossy().into_owned())
}

/// A TOML error with its file, its line and the key that was probably meant.
pub(crate) fn toml_error(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().trim().to_owned();
    let hint = message.strip_prefix("unknown field `").and_then(|rest| {
        let (wrong, rest) = rest.split_once('`')?;
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        closest(wrong, known.iter().copied()).map(|k| format!("did you mean `{k}`?"))
    });
    Error::Parse { path: path.into(), line, message, hint }
}

/// Bytes of a name from which on it is no misspelling of another, and is not compared: that takes the square of it.
pub(crate) const LONGEST_NAME: usize = 200;

/// The known word nearest to `wrong`, if one is near.
pub(crate) fn closest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .filter(|_| wrong.len() <= LONGEST_NAME)
        .map(|k| (k, strsim::jaro_winkler(wrong, k)))
        .filter(|(_, s)| *s > 0.75)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(k, _)| k)
}
