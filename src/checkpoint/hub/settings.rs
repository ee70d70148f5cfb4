//! Where the hub is and what is known of the user, from the variables that huggingface_hub reads.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The hub's address where none is set.
const ENDPOINT: &str = "https://huggingface.co";

/// Time without a byte after which a transfer counts as broken, where none is set.
const SILENCE: Duration = Duration::from_secs(30);

/// A larger token is none.
const LONGEST_TOKEN: usize = 4096;

/// What the environment says of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Address of the hub, without a slash at its end.
    pub(crate) endpoint: String,
    /// Folder of the cache.
    pub(super) cache: Option<PathBuf>,
    /// The user's token, where there is one.
    pub(super) token: Option<String>,
    /// Whether nothing may be asked of the network.
    pub(crate) offline: bool,
    /// Time without a byte after which a transfer counts as broken.
    pub(super) silence: Duration,
}

impl Settings {
    /// From the environment of this process.
    pub(crate) fn from_env() -> Self {
        Self::of(|name| std::env::var_os(name))
    }

    /// From the variables that `variable` knows.
    pub(super) fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| variable(name).and_then(|v| v.into_string().ok()).filter(|v| !v.trim().is_empty());
        let on = |name: &str| {
            text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.trim().to_uppercase().as_str()))
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache: cache_folder(&variable),
            token: token(&variable, &text).filter(|_| !on("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            silence: seconds(text("HF_HUB_DOWNLOAD_TIMEOUT")).unwrap_or(SILENCE),
        }
    }
}

/// A number of seconds, of which there is at least one.
fn seconds(text: Option<String>) -> Option<Duration> {
    text?.trim().parse().ok().filter(|&seconds| seconds > 0).map(Duration::from_secs)
}

fn folder(variable: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The folder that everything of Hugging Face's lies in.
fn home(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    folder(variable, "HF_HOME")
        .or_else(|| folder(variable, "XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface")))
}

/// Hugging Face's cache, found as huggingface_hub finds it.
pub(super) fn cache_folder(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let hub = folder(variable, "HF_HUB_CACHE").or_else(|| folder(variable, "HUGGINGFACE_HUB_CACHE"));
    hub.or_else(|| home(variable).map(|home| home.join("hub")))
}

/// The token: a variable, or the file that `hf auth login` writes.
fn token(variable: &impl Fn(&str) -> Option<OsString>, text: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let file = folder(variable, "HF_TOKEN_PATH").or_else(|| home(variable).map(|home| home.join("token")));
    let written = || file.filter(|f| f.metadata().is_ok_and(|m| m.len() <= LONGEST_TOKEN as u64));
    let token = text("HF_TOKEN")
        .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| written().and_then(|file| std::fs::read_to_string(file).ok()))?;
    let token = token.trim();
    // It goes into a header.
    (!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn settings(set: &[(&str, &str)]) -> Settings {
        Settings::of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_looks_for_it() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
        ];
        for (first, (_, _, expected)) in all.iter().enumerate() {
            let set: Vec<(&str, &str)> = all[first..].iter().map(|(name, value, _)| (*name, *value)).collect();
            assert_eq!(settings(&set).cache.unwrap(), Path::new(expected));
            // What is set and empty is not set.
            let empty = all[..first].iter().map(|(name, ..)| (*name, ""));
            let set: Vec<(&str, &str)> = empty.chain(set.iter().copied()).collect();
            assert_eq!(settings(&set).cache.unwrap(), Path::new(expected));
        }
        assert_eq!(settings(&[]).cache, std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")));
    }

    #[test]
    fn tokens_come_from_the_usual_places_and_the_network_may_be_forbidden() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().to_str().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let token = |set: &[(&str, &str)]| settings(&[set, &[("HF_HOME", at)]].concat()).token;
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", " hf_env ")]).as_deref(), Some("hf_env"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_TOKEN", "two\nlines")]), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
        assert!(settings(&[("HF_HUB_OFFLINE", "True")]).offline && settings(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "2")]).silence, Duration::from_secs(2));
        assert_eq!(settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "0")]).silence, SILENCE);
        assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
        assert_eq!(settings(&[("HF_ENDPOINT", "http://x:1/")]).endpoint, "http://x:1");
    }
}
