//! What a person can get wrong: each mistake gets a clear error that names the place and the mend, the right exit code,
//! and nothing half written.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

use std::path::Path;

use assert_cmd::Command;

fn headroom(folder: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::cargo_bin("headroom").unwrap();
    let output = command.current_dir(folder).args(args).env("HEADROOM_RESULTS", "results").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

const RUN: &str = "model = \"builtin\"\ndata = \"builtin\"\n[recipe]\nsteps = 2\nmax_seq_length = 64\n";

/// The run file with something added, what is said, and what it hints at.
const MISTAKES: [(&str, &str, &str, &str); 10] = [
    ("[recipe]\nlearning_rat = 1.0", "unknown field `learning_rat`", "line 6", "did you mean `learning_rate`?"),
    ("[execution]\nweights = \"int9\"", "unknown variant `int9`", "line 7", "int8"),
    ("[execution]\nbatch_size = \"two\"", "invalid type: string", "line 7", ""),
    ("[execution]\nbatch_size = 3", "`batch_size` is 3, but must be a divisor", "", ""),
    ("[recipe]\nlora = { rank = 0 }", "`rank` is 0", "", ""),
    ("[recipe]\nlora = { target_modules = [\"q_prj\"] }", "`q_prj`", "", "q_proj"),
    ("[recipe]\nepochs = 2.0", "`epochs` is given together with `steps`", "", ""),
    ("[extra]\nx = 1", "unknown field `extra`", "line 6", ""),
    ("not toml at all", "", "line 6", ""),
    ("[recipe]\nmax_grad_norm = nan", "`max_grad_norm` is NaN", "", ""),
];

#[test]
fn mistakes_in_a_run_file_name_their_line_and_write_nothing() {
    for (extra, what, place, mend) in MISTAKES {
        let folder = tempfile::tempdir().unwrap();
        // A key of [recipe] goes under the table that is there already.
        let text = match extra.strip_prefix("[recipe]\n") {
            Some(line) => format!("{RUN}{line}\n"),
            None => format!("{RUN}{extra}\n"),
        };
        std::fs::write(folder.path().join("run.toml"), text).unwrap();
        for verb in ["predict", "launch"] {
            let (code, said) = headroom(folder.path(), &[verb, "run.toml"]);
            assert_eq!(code, 2, "{verb} {extra}: {said}");
            for part in [what, place, mend] {
                assert!(said.contains(part), "{verb} {extra}: `{part}` is not in\n{said}");
            }
            let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
            assert_eq!(files, ["run.toml"], "{verb} {extra} left something behind");
        }
    }
}

#[test]
fn what_cannot_be_answered_exits_with_two_and_a_no_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], i32, &[&str]); 10] = [
        (&["plan", "--ram", "8"], 2, &["`8` has no unit", "8G"]),
        (&["plan", "--ram", "8X"], 2, &["unknown unit `x`"]),
        (&["plan", "--ram", "7G"], 2, &["7"]),
        (&["plan", "--machine", "M99"], 2, &["unknown machine `M99`", "M2 Pro"]),
        (&["plan", "--model", "Qwen2.5-1.5B-Instuct", "--ram", "8G"], 2, &["unknown model", "Qwen2.5-1.5B-Instruct"]),
        (&["plan", "--model", "./nowhere", "--ram", "8G"], 2, &["cannot read"]),
        (&["plan", "--model", "meta-llama/Llama-3.3-70B-Instruct", "--ram", "8G"], 1, &["70B", "GiB"]),
        (&["launch", "nothing.toml"], 2, &["cannot read `nothing.toml`"]),
        (&["predict", "nothing.toml"], 2, &["cannot read `nothing.toml`"]),
        (&["generate", "hello", "--adapter", "nothing"], 2, &["cannot read"]),
    ];
    for (args, expected, parts) in cases {
        let (code, said) = headroom(folder.path(), args);
        assert_eq!(code, expected, "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: `{part}` is not in\n{said}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("run.toml"), RUN).unwrap();
    let (code, said) = headroom(folder.path(), &["launch", "run.toml", "--memory-limit", "5M"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("--force"), "{said}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn data_that_cannot_be_used_is_named_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("empty.jsonl", "");
    write("broken.jsonl", "{\"text\": \"The bell rang.\"}\n{\"text\": \n");
    write("form.jsonl", "{\"txt\": \"The bell rang.\"}\n");
    let cases = [
        ("empty.jsonl", vec!["empty.jsonl", "no example"]),
        ("broken.jsonl", vec!["broken.jsonl`, line 2", "is not valid JSON"]),
        ("form.jsonl", vec!["form.jsonl`, line 1", "{\"prompt\",\"completion\"}"]),
    ];
    for (file, parts) in cases {
        let run = RUN.replace("data = \"builtin\"", &format!("data = \"{file}\""));
        write("run.toml", &run);
        let auto = ["auto", "--model", "builtin", "--data", file];
        for args in [&["launch", "run.toml"][..], &["predict", "run.toml"], &auto] {
            let (code, said) = headroom(folder.path(), args);
            assert_eq!(code, 2, "{args:?}: {said}");
            assert!(parts.iter().all(|p| said.contains(p)), "{args:?}: {said}");
        }
    }
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn data_that_are_there_and_cannot_be_read_are_refused_and_only_absent_ones_assumed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("latin1.jsonl"), b"{\"text\": \"caf\xe9 au lait\"}\n").unwrap();
    std::fs::create_dir(folder.path().join("folder.jsonl")).unwrap();
    let answer = |file: &str, verb: &str| {
        let run = RUN.replace("data = \"builtin\"", &format!("data = \"{file}\""));
        std::fs::write(folder.path().join("run.toml"), run).unwrap();
        headroom(folder.path(), &[verb, "run.toml"])
    };
    for verb in ["predict", "launch"] {
        for file in ["latin1.jsonl", "folder.jsonl"] {
            let (code, said) = answer(file, verb);
            assert!(code == 2 && said.contains("cannot read") && said.contains(file), "{verb} {file}: {code}, {said}");
        }
    }
    let (code, said) = answer("absent.jsonl", "predict");
    assert!(code == 0 && said.contains("its lengths are assumed"), "{code}, {said}");
}

#[test]
fn a_run_that_learns_nothing_is_refused_and_rows_that_teach_nothing_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let run = RUN.replace("data = \"builtin\"", "data = \"rows.jsonl\"") + "mask_prompt = true\n";
    std::fs::write(folder.path().join("run.toml"), run).unwrap();
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"Over.\"}}\n", "The bell rang. ".repeat(40));
    let short = "{\"prompt\": \"Who works?\", \"completion\": \" Max.\"}\n";
    std::fs::write(folder.path().join("rows.jsonl"), long.repeat(3)).unwrap();
    for verb in ["predict", "launch"] {
        let (code, said) = headroom(folder.path(), &[verb, "run.toml"]);
        assert!(code == 2 && said.contains("no row has target tokens"), "{verb}: {code}, {said}");
    }
    assert!(!folder.path().join("runs/run").exists());
    std::fs::write(folder.path().join("rows.jsonl"), long.repeat(3) + short).unwrap();
    let (code, said) = headroom(folder.path(), &["predict", "run.toml"]);
    assert!(code == 0 && said.contains("3 of 4 rows have no target tokens"), "{code}, {said}");
}

#[test]
fn the_footprint_is_that_of_the_run_and_not_of_who_started_it() {
    // A parent with a quarter of a gigabyte in use; the built-in run takes some 40 MB.
    let large = vec![1u8; 256 << 20];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("run.toml"), RUN).unwrap();
    let (code, said) = headroom(folder.path(), &["launch", "run.toml"]);
    assert_eq!(code, 0, "{said}");
    let metrics = std::fs::read_to_string(folder.path().join("runs/run/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let footprint = last["footprint_bytes"].as_u64().unwrap();
    assert!((10 << 20..150 << 20).contains(&footprint), "{footprint} bytes");
    assert!(std::hint::black_box(&large).iter().all(|b| *b == 1));
}

#[test]
fn auto_on_a_folder_of_ones_own_keeps_the_ordinary_recipe() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf_folder");
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = headroom(folder.path(), &["auto", "--model", model, "--data", &format!("{model}/train.jsonl")]);
    assert_eq!(code, 0, "{said}");
    let run = std::fs::read_to_string(folder.path().join("runs/hf_folder-1/run.toml")).unwrap();
    let run = headroom::spec::run::RunConfig::from_toml(&run, Path::new("run.toml")).unwrap();
    let ordinary = headroom::spec::run::Recipe::default();
    assert_eq!((run.recipe.learning_rate, run.recipe.mask_prompt), (ordinary.learning_rate, ordinary.mask_prompt));
    assert!(folder.path().join("reports/hf_folder-1/index.html").is_file());
}

#[test]
#[cfg(not(target_os = "macos"))]
fn the_device_is_chosen_or_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let refused =
        ["`metal` cannot be used here, because only Macs have it", "`--device cpu` computes on the processor"];
    let ask = |args: &[&str], variable: Option<&str>| {
        let mut command = Command::cargo_bin("headroom").unwrap();
        command.current_dir(folder.path()).args(args).env_remove("HEADROOM_DEVICE");
        let output = command.envs(variable.map(|value| ("HEADROOM_DEVICE", value))).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let commands: [&[&str]; 8] = [
        &["launch", "run.toml"],
        &["calibrate"],
        &["auto"],
        &["sweep", "m1-8g", "--measure"],
        &["generate", "hello"],
        &["trial"],
        &["doctor"],
        &["plan"],
    ];
    for command in commands {
        for (args, variable) in [([command, &["--device", "metal"]].concat(), None), (command.to_vec(), Some("metal"))]
        {
            let (code, said) = ask(&args, variable);
            assert!(code == 2 && refused.iter().all(|part| said.contains(part)), "{args:?}: {said}");
        }
    }
    let (code, said) = ask(&["doctor"], Some("gpu"));
    assert!(code == 2 && said.contains("`HEADROOM_DEVICE` is gpu, but must be `cpu` or `metal`"), "{said}");
    // What is typed counts more than the variable.
    assert_eq!(ask(&["doctor", "--device", "cpu"], Some("metal")), (0, String::new()));
    assert_eq!(ask(&["generate", "hello", "--max-tokens", "1"], Some("cpu")).0, 0);
    let (code, said) = ask(&["plan", "--ram", "8G", "--device", "cpu"], None);
    assert!(code == 2 && said.contains("cannot be used with"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
