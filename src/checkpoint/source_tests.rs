use super::*;

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
