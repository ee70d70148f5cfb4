//! Folders and links of others.

use super::*;

#[test]
pub(crate) fn a_link_out_of_a_model_folder_is_not_followed_into_an_export() {
    let work = copied("qwen2");
    fs::write(work.path().join("id_rsa"), "secret").unwrap();
    for name in ["notes.txt", "LICENSE-x", "extra.json"] {
        let link = work.path().join("model").join(name);
        symlink(work.path().join("id_rsa"), &link).unwrap();
        refused(
            work.path(),
            &[&FUSED[..], &["out"]].concat(),
            &format!("`{name}` is a link to a file outside the folder"),
        );
        assert!(!work.path().join("out").exists());
        fs::remove_file(link).unwrap();
    }
    // Inside of it, and from one folder of Hugging Face's cache into the other, links are how files are kept.
    fs::write(work.path().join("model/README.txt"), "about").unwrap();
    symlink("README.txt", work.path().join("model/LICENSE")).unwrap();
    exported(work.path(), &[&FUSED[..], &["out"]].concat());
    assert_eq!(fs::read_to_string(work.path().join("out/LICENSE")).unwrap(), "about");
    let repo = work.path().join("hub/models--org--name");
    let (blobs, snapshot) = (repo.join("blobs"), repo.join("snapshots/0123abc"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (i, file) in ["config.json", "model.safetensors", "README.txt"].into_iter().enumerate() {
        fs::copy(work.path().join("model").join(file), blobs.join(i.to_string())).unwrap();
        symlink(format!("../../blobs/{i}"), snapshot.join(file)).unwrap();
    }
    let model = snapshot.to_str().unwrap();
    exported(work.path(), &["adapter", "--model", model, "--format", "fused", "--out", "snapshot"]);
    let files = |name: &str| fs::read(work.path().join(name)).unwrap();
    assert_eq!(files("snapshot/config.json"), files("model/config.json"));
    assert_eq!(public_name(model), "org/name");
}

#[test]
pub(crate) fn shards_in_folders_of_their_own_and_pipes_are_refused() {
    let work = copied("qwen2");
    let model = work.path().join("model");
    for part in ["a", "b"] {
        fs::create_dir(model.join(part)).unwrap();
        fs::copy(model.join("model.safetensors"), model.join(part).join("model.safetensors")).unwrap();
    }
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let index = json!({"weight_map": {"x": "a/model.safetensors", "y": "b/model.safetensors"}});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    loaded(&model, "f32").unwrap();
    refused(work.path(), &[&FUSED[..], &["out"]].concat(), "`a/model.safetensors` is in a subfolder");
    let index = "model.safetensors.index.json";
    fs::write(model.join(index), format!("{{\"weight_map\":{{}}{}}}", " ".repeat(16 << 20))).unwrap();
    not_loaded(&model, "f32", "it is not a weight index");
    fs::write(model.join(index), r#"{"weight_map":{"x":"pipe.safetensors"}}"#).unwrap();
    let pipe = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    pipe(&model.join("pipe.safetensors"));
    not_loaded(&model, "f32", "`pipe.safetensors` is missing");
    pipe(&work.path().join("x.gguf"));
    not_loaded(&work.path().join("x.gguf"), "f32", "cannot read");
}

#[test]
pub(crate) fn force_replaces_what_an_export_made_and_nothing_else() {
    let work = copied("qwen2");
    let here = |name: &str| work.path().join(name);
    let peft = ["adapter", "--model", "model", "--format", "peft", "--out", "out"];
    let forced = [&peft[..], &["--force"]].concat();
    fs::create_dir(here("out")).unwrap();
    exported(work.path(), &peft);
    refused(work.path(), &peft, "`out` exists already");
    exported(work.path(), &forced);
    let listed = fs::read_to_string(here("out/.headroom-export")).unwrap();
    assert_eq!(listed, "adapter_config.json\nadapter_model.safetensors\n");
    // Another form in its place: all of the old files go, as they were listed.
    exported(work.path(), &[&FUSED[..], &["out", "--force"]].concat());
    assert!(!here("out/adapter_config.json").exists());
    let foreign = |said: &str| {
        refused(work.path(), &forced, said);
        assert!(here("out/model.safetensors").exists());
    };
    fs::write(here("out/thesis.tex"), "mine").unwrap();
    foreign("it holds `thesis.tex`");
    assert_eq!(fs::read_to_string(here("out/thesis.tex")).unwrap(), "mine");
    fs::remove_file(here("out/thesis.tex")).unwrap();
    fs::create_dir(here("out/.git")).unwrap();
    foreign("it holds `.git`");
    fs::remove_dir(here("out/.git")).unwrap();
    symlink("nowhere", here("out/link")).unwrap();
    foreign("it holds `link`");
    fs::remove_file(here("out/link")).unwrap();
    exported(work.path(), &forced);
    // Without its list a folder is nobody's.
    fs::remove_file(here("out/.headroom-export")).unwrap();
    refused(work.path(), &forced, "it holds `adapter_config.json`");
    // A file.
    let gguf = ["--model", "model", "--format", "gguf", "--out"];
    fs::write(here("thesis.tex"), "mine").unwrap();
    refused(work.path(), &[&gguf[..], &["thesis.tex", "--force"]].concat(), "this is another file");
    assert_eq!(fs::read_to_string(here("thesis.tex")).unwrap(), "mine");
    exported(work.path(), &[&gguf[..], &["m.gguf"]].concat());
    exported(work.path(), &[&gguf[..], &["m.gguf", "--force"]].concat());
    // The base itself.
    fs::copy(fixture("gguf/qwen2.gguf"), here("base.gguf")).unwrap();
    let onto_itself = ["adapter", "--model", "base.gguf", "--format", "gguf-adapter", "--out", "base.gguf", "--force"];
    let before = fs::read(here("base.gguf")).unwrap();
    assert_eq!(export(work.path(), &onto_itself).0, 2);
    assert_eq!(fs::read(here("base.gguf")).unwrap(), before);
    // The longest name there is, and one of many bytes a letter.
    for name in ["x".repeat(255), "模".repeat(80)] {
        exported(work.path(), &[&FUSED[..], &[&name]].concat());
    }
}

#[test]
pub(crate) fn what_is_handed_over_names_no_folder_but_the_last() {
    let work = copied("qwen2");
    let model = work.path().join("model");
    let base = |folder: &str, key: &str| {
        let text = fs::read_to_string(work.path().join(folder).join("adapter_config.json")).unwrap();
        assert!(!text.contains(work.path().to_str().unwrap()));
        serde_json::from_str::<Value>(&text).unwrap()[key].clone()
    };
    let path = model.to_str().unwrap();
    exported(work.path(), &["adapter", "--model", path, "--format", "peft", "--out", "peft"]);
    exported(work.path(), &["adapter", "--model", path, "--format", "mlx-lm", "--out", "mlx"]);
    assert_eq!((base("peft", "base_model_name_or_path"), base("mlx", "model")), (json!("model"), json!("model")));
    for (name, public) in
        [("builtin", "builtin"), ("org/name", "org/name"), ("/home/me/models/x", "x"), ("~/x.gguf", "x.gguf")]
    {
        assert_eq!(public_name(name), public);
    }
    // The last name does not say where the base is, though a folder of that name is here: the run file beside does.
    refused(work.path(), &["peft", "--format", "mlx-lm", "--out", "again"], "the adapter names its base `model`");
    let run = format!("model = \"{path}\"\ndata = \"builtin\"\n");
    fs::create_dir(work.path().join("run")).unwrap();
    fs::write(work.path().join("run/run.toml"), run).unwrap();
    fs::rename(work.path().join("peft"), work.path().join("run/adapter")).unwrap();
    exported(work.path(), &["run/adapter", "--format", "mlx-lm", "--out", "again"]);
    exported(work.path(), &["run", "--format", "mlx-lm", "--out", "once-more"]);
}

#[test]
pub(crate) fn a_run_writes_an_adapter_without_the_path_of_its_base() {
    let work = copied("qwen2");
    let model = work.path().join("model");
    let decoder = loaded(&model, "f32").unwrap();
    let text = format!("model = \"{}\"\ndata = \"d\"", model.display());
    let run = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let spec = ModelSource::Folder(model).spec().unwrap();
    adapter::save(&decoder, &spec, &run, &work.path().join("saved")).unwrap();
    let saved = fs::read_to_string(work.path().join("saved/adapter_config.json")).unwrap();
    assert!(saved.contains(r#""base_model_name_or_path": "model""#), "{saved}");
}

#[test]
pub(crate) fn overlapping_tensors_are_refused() {
    let work = copied("qwen2");
    let path = work.path().join("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let norm = |i: usize| format!("model.layers.{i}.input_layernorm.weight");
    header[norm(1)]["data_offsets"] = header[norm(0)]["data_offsets"].clone();
    let text = header.to_string();
    let all = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(&path, all).unwrap();
    not_loaded(&work.path().join("model"), "f32", "overlap");
    refused(work.path(), &[&FUSED[..], &["out"]].concat(), "overlap");
}
