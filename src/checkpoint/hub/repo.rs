//! A model on the hub: `org/name`, or one revision of it, `org/name@revision`.

/// The revision that is meant where none is named.
const MAIN: &str = "main";

/// Longest name of an organisation, a model or a revision on the hub.
const LONGEST: usize = 96;

/// A model and its revision on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repo {
    /// `org/name`.
    pub(crate) id: String,
    /// Branch, tag or commit.
    pub(crate) revision: String,
}

impl Repo {
    /// A name that can be one on the hub; also as an address of its page.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let name = name.trim();
        let plain = ["https://huggingface.co/", "https://hf.co/", "hf.co/", "hf://"].iter();
        let name = plain.fold(name, |name, start| name.strip_prefix(start).unwrap_or(name)).trim_end_matches('/');
        let (id, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let (owner, model) = id.split_once('/')?;
        let word = |text: &str| {
            let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            plain && !text.is_empty() && text.len() <= LONGEST && !text.starts_with(['.', '-']) && !text.contains("..")
        };
        let revision_is_one = revision.split('/').all(word);
        (word(owner) && word(model) && revision_is_one).then(|| Self { id: id.into(), revision: revision.into() })
    }

    /// Its name without what an address has around it: `org/name`, or with its revision.
    pub(crate) fn name(&self) -> String {
        if self.is_main() { self.id.clone() } else { format!("{}@{}", self.id, self.revision) }
    }

    pub(super) fn is_main(&self) -> bool {
        self.revision == MAIN
    }

    /// Name of its folder in the cache.
    pub(super) fn folder_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        let repo = |name: &str| Repo::parse(name).map(|r| (r.id, r.revision));
        let some = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(repo("Qwen/Qwen3-8B"), some("Qwen/Qwen3-8B", "main"));
        assert_eq!(repo("org/na.me@v1.0"), some("org/na.me", "v1.0"));
        assert_eq!(repo("org/name@refs/pr/1"), some("org/name", "refs/pr/1"));
        assert_eq!(repo("https://huggingface.co/org/name/"), some("org/name", "main"));
        for bad in ["name", "a/b/c", "../x", "a/..", "a/b@../../x", "/a/b", "a/", "a b/c", "a/b@", "-a/b", "a/b@x y"] {
            assert_eq!(repo(bad), None, "{bad}");
        }
    }
}
