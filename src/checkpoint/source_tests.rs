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

/// A folder whose tensors lie in the files of these names, and the index that is written beside them.
fn sharded(files: &[&str], index: Option<&[(&str, &str)]>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (i, name) in files.iter().enumerate() {
        let tensor = candle_core::Tensor::new(&[i as f32], &candle_core::Device::Cpu).unwrap();
        let tensors = std::collections::HashMap::from([(format!("t{i}"), tensor)]);
        candle_core::safetensors::save(&tensors, folder.path().join(name)).unwrap();
    }
    if let Some(index) = index {
        let map: std::collections::BTreeMap<&str, &str> = index.iter().copied().collect();
        let json = serde_json::json!({ "weight_map": map });
        std::fs::write(folder.path().join("model.safetensors.index.json"), json.to_string()).unwrap();
    }
    folder
}

#[test]
fn shards_are_found_without_an_index_and_with_a_stale_one() {
    let found = |folder: &tempfile::TempDir| {
        let files = safetensors_files(folder.path()).map_err(|e| e.to_string())?;
        Ok::<_, String>(files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>())
    };
    let two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let with_adapter = [two[0], two[1], "adapter_model.safetensors", "consolidated.safetensors"];
    assert_eq!(found(&sharded(&with_adapter, None)).unwrap(), two);
    assert_eq!(found(&sharded(&["weights.safetensors"], None)).unwrap(), ["weights.safetensors"]);
    assert_eq!(found(&sharded(&["model.safetensors", two[1]], None)).unwrap(), ["model.safetensors"]);
    // An index of other shards, whose tensors are all there; and one of which a tensor is not.
    let old = "model-00001-of-00001.safetensors";
    assert_eq!(found(&sharded(&two, Some(&[("t0", old), ("t1", old)]))).unwrap(), two);
    let error = found(&sharded(&two, Some(&[("t0", two[0]), ("t1", old), ("t2", old)]))).unwrap_err();
    assert!(error.contains(&format!("`{old}` is missing, though the index names it")), "{error}");
    let none = tempfile::tempdir().unwrap();
    assert!(found(&none).unwrap_err().contains("no model.safetensors and no other file"));
    std::fs::write(none.path().join("pytorch_model.bin"), "x").unwrap();
    let error = found(&none).unwrap_err();
    assert!(error.contains("`pytorch_model.bin`") && error.contains("save_pretrained"), "{error}");
}
