use super::*;

#[test]
fn the_cache_is_where_huggingface_hub_looks_for_it() {
    let all = [
        ("HF_HUB_CACHE", "/a", "/a"),
        ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
        ("HF_HOME", "/c", "/c/hub"),
        ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
    ];
    for (first, (_, _, expected)) in all.iter().enumerate() {
        let set = &all[first..];
        let found = hub_folder(|name| set.iter().find(|(n, ..)| *n == name).map(|(_, value, _)| value.into()));
        assert_eq!(found.unwrap(), Path::new(expected));
        // What is set and empty is not set.
        let empty = |name: &str| all.iter().position(|(n, ..)| *n == name).filter(|i| *i < first).map(|_| "".into());
        let or_empty = |name: &str| set.iter().find(|(n, ..)| *n == name).map(|(_, v, _)| v.into()).or(empty(name));
        assert_eq!(hub_folder(or_empty).unwrap(), Path::new(expected));
    }
    assert_eq!(hub_folder(|_| None), std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")));
}

#[test]
fn the_snapshot_is_the_one_that_main_names() {
    let hub = tempfile::tempdir().unwrap();
    let repo = hub.path().join("models--org--name");
    let find = || cached(hub.path().into(), "org/name");
    assert_eq!(find(), None);
    for commit in ["0aa", "1bb", "2cc"] {
        let snapshot = repo.join("snapshots").join(commit);
        std::fs::create_dir_all(&snapshot).unwrap();
        // A download that was broken off.
        if commit != "2cc" {
            std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        }
    }
    assert_eq!(find(), Some(repo.join("snapshots/1bb")));
    std::fs::create_dir(repo.join("refs")).unwrap();
    for (main, expected) in [("0aa", "0aa"), ("2cc", "1bb"), ("nowhere", "1bb")] {
        std::fs::write(repo.join("refs/main"), main).unwrap();
        assert_eq!(find(), Some(repo.join("snapshots").join(expected)), "{main}");
    }
    assert_eq!(cached(hub.path().into(), "org/other"), None);
}
