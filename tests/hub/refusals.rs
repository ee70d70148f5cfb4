//! What is not fetched, and what is said of it.

use crate::desk::{Desk, WEIGHTS, files, read};
use crate::server::{Fault, Files, listed};

/// A model of some 600 billion parameters, by its description.
fn huge() -> Files {
    let mut files = files();
    let mut config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
    config["intermediate_size"] = 4_000_000.into();
    config["num_hidden_layers"] = 400.into();
    files.insert("config.json".into(), config.to_string().into_bytes());
    files
}

#[test]
fn what_does_not_fit_into_memory_is_not_fetched() {
    let desk = Desk::new();
    desk.hub.state.lock().unwrap().models.insert("org/huge".into(), huge());
    desk.write_run("org/huge");
    let (code, out, err) = desk.launch();
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("needs 1667 GiB, but ") && err.contains("is available"), "{err}");
    assert_eq!(desk.transfers(), []);
    // Nor by a sweep, which trains what fits.
    let grid = "model = [\"org/tiny\", \"org/huge\"]\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 64\nsteps = 2\n\
                effective_batch_size = 1\n[recipe.lora]\nrank = 4\n[execution]\nbatch_size = 1\n";
    std::fs::write(desk.folder.path().join("grid.toml"), grid).unwrap();
    let (code, out, err) = desk.run(&["sweep", "grid.toml", "--measure", "--trial-time", "2s", "--results", "results"]);
    assert_eq!(code, 0, "{out}{err}");
    let all = desk.hub.seen();
    let fetched: Vec<&str> = all.iter().filter(|s| s.host == "store").map(|s| s.path.as_str()).collect();
    assert!(fetched.len() == 1 && fetched[0].contains("org/tiny"), "{fetched:?}");
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let desk = Desk::new();
    let index = r#"{"weight_map":{"a":"model.safetensors","b":"model-2.safetensors"}}"#;
    {
        let mut state = desk.hub.state.lock().unwrap();
        let tiny = state.models.get_mut("org/tiny").unwrap();
        tiny.insert("model.safetensors.index.json".into(), index.into());
        state.listed = vec![listed("model-2.safetensors", 1 << 50)];
    }
    let (code, out, err) = desk.launch();
    assert_eq!(code, 2, "{out}{err}");
    assert!(err.contains("1048576 GiB are to be fetched, and ") && err.contains("are free on the disk of"), "{err}");
    assert!(err.contains("HF_HOME"), "{err}");
    assert_eq!(desk.transfers(), []);
}

#[test]
fn a_text_without_end_is_not_fetched() {
    let desk = Desk::new();
    desk.hub.state.lock().unwrap().listed = vec![listed("model.safetensors.index.json", 1 << 40)];
    let (code, out, err) = desk.launch();
    assert_eq!(code, 2, "{out}{err}");
    assert!(err.contains("its `model.safetensors.index.json` has 1099511627776 bytes"), "{err}");
    {
        let mut state = desk.hub.state.lock().unwrap();
        state.models.insert("org/endless".into(), Files::new());
        state.listed = vec![listed("config.json", 1 << 40)];
    }
    desk.hub.seen();
    let (code, _, err) = desk.run(&["plan", "--ram", "8G", "--model", "org/endless"]);
    assert_eq!(code, 2);
    assert!(err.contains("its `config.json` has 1099511627776 bytes"), "{err}");
    assert!(!desk.hub.seen().iter().any(|s| s.path.contains("resolve")));
}

#[test]
fn terms_and_tokens_are_explained() {
    let desk = Desk::new();
    let page = format!("accept them at {}/org/tiny ", desk.hub.endpoint);
    let launch = |token: Option<&str>| {
        let mut command = desk.command(&["launch", "run.toml", "--out", "out", "--results", "results"]);
        command.envs(token.map(|token| ("HF_TOKEN", token)));
        let (code, _, err) = read(command.output().unwrap());
        assert_eq!(code, 2, "{err}");
        err
    };
    desk.hub.fault("config.json", &[Fault::Status(401, "X-Error-Code", "GatedRepo")]);
    let err = launch(None);
    assert!(err.contains("it is gated") && err.contains(&page) && err.contains("`hf auth login`"), "{err}");
    desk.hub.fault("config.json", &[Fault::Status(403, "X-Error-Code", "GatedRepo")]);
    let err = launch(Some("hf_other"));
    assert!(err.contains("it is gated") && err.contains(&page) && err.contains("account"), "{err}");
    desk.hub.state.lock().unwrap().private = Some("hf_secret".into());
    let err = launch(Some("hf_other"));
    assert!(err.contains("the hub does not accept the token"), "{err}");
}

#[test]
fn a_renamed_model_is_found_under_its_old_name() {
    let desk = Desk::new();
    {
        let mut state = desk.hub.state.lock().unwrap();
        state.renamed.insert("old/name".into(), "org/tiny".into());
        state.private = Some("hf_secret".into());
    }
    desk.write_run("old/name");
    let mut command = desk.command(&["launch", "run.toml", "--out", "out", "--results", "results"]);
    let (code, out, err) = read(command.env("HF_TOKEN", "hf_secret").output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    let seen = desk.hub.seen();
    assert!(seen.iter().any(|s| s.path.contains("org/tiny/resolve")));
    // Redirects within the hub keep the token, those to the host of large files do not.
    for one in seen {
        assert_eq!(one.token.is_some(), one.host == "hub", "{one:?}");
    }
}

#[test]
fn without_the_network_what_is_missing_is_named() {
    let desk = Desk::new();
    let offline = || {
        let mut command = desk.command(&["launch", "run.toml", "--out", "out", "--results", "results"]);
        read(command.env("HF_HUB_OFFLINE", "1").output().unwrap()).2
    };
    let err = offline();
    assert!(err.contains("HF_HUB_OFFLINE forbids") && err.contains("nothing of it is there"), "{err}");
    assert_eq!(desk.run(&["plan", "--ram", "8G", "--model", "org/tiny"]).0, 0);
    assert!(offline().contains("there is no tokenizer.json"), "{}", offline());
    assert_eq!(desk.launch().0, 0);
    std::fs::remove_dir_all(desk.folder.path().join("out")).unwrap();
    let link = desk.repo().join("snapshots").join(crate::server::COMMIT).join(WEIGHTS);
    std::fs::remove_file(link).unwrap();
    assert!(offline().contains("there is no model.safetensors"), "{}", offline());
    desk.hub.seen();
    // With it, the link alone is put back.
    assert_eq!(desk.launch().0, 0);
    assert_eq!(desk.transfers(), []);
    let mut nowhere = desk.command(&["plan", "--ram", "8G", "--model", "org/other"]);
    let err = read(nowhere.env("HF_ENDPOINT", "hf.example").output().unwrap()).2;
    assert!(err.contains("HF_ENDPOINT is `hf.example`, which is no address"), "{err}");
}

#[test]
fn every_verb_that_needs_weights_fetches_them() {
    let desk = Desk::new();
    let calibrate = ["calibrate", "run.toml", "--time-limit", "2s", "--results", "results"];
    let (code, out, err) = desk.run(&calibrate);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(desk.transfers(), [(WEIGHTS.to_owned(), 0)]);
    assert_eq!(desk.launch().0, 0);
    // An adapter knows its base by its name, wherever it is.
    std::fs::rename(desk.folder.path().join("out/adapter"), desk.folder.path().join("mine")).unwrap();
    std::fs::remove_dir_all(desk.folder.path().join("hf")).unwrap();
    let (code, out, err) = desk.run(&["export", "mine", "--format", "fused", "--out", "fused"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(desk.transfers(), [(WEIGHTS.to_owned(), 0)]);
}
