//! What is there already is not written over.

use super::*;

/// Places where a verb has no business: it says so, and nothing changes there.
pub(crate) const REFUSED: [&[&str]; 34] = [
    &["launch", "exp.toml", "--out", "."],
    &["launch", "exp.toml", "--out", "mine"],
    &["launch", "exp.toml", "--out", "states"],
    &["launch", "exp.toml", "--out", "model"],
    &["launch", "exp.toml", "--out", "data"],
    &["launch", "exp.toml", "--out", "runs"],
    &["launch", "exp.toml", "--out", "runs/done"],
    &["launch", "exp.toml", "--out", "thesis.txt"],
    &["launch", "exp.toml", "--out", "linked"],
    &["launch", "exp.toml", "--out", "home"],
    &["plan", "--ram", "8G", "--data", "data/train.jsonl", "--out", "data/train.jsonl"],
    &["plan", "--ram", "8G", "--data", "data/train.jsonl", "--out", "data/train.jsonl", "--force"],
    &["plan", "--ram", "8G", "--out", "thesis.txt"],
    &["plan", "--ram", "8G", "--out", "exp.toml"],
    &["plan", "--ram", "8G", "--out", "runs/done/run.toml"],
    &["plan", "--ram", "8G", "--out", "model/config.json"],
    &["plan", "--ram", "8G", "--out", "mine"],
    &["plan", "--ram", "8G", "--out", "linked.toml"],
    &["export", "runs/done", "--format", "fused", "--out", "mine"],
    &["export", "runs/done", "--format", "fused", "--out", "mine", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", "paper", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "paper", "--force"],
    &["export", "runs/done", "--format", "mlx-lm", "--out", "paper", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", "model", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "runs/done", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "runs/done/adapter", "--force"],
    &["export", "runs/done", "--format", "peft", "--out", "runs/dora/adapter", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", ".", "--force"],
    &["export", "runs/done", "--format", "fused", "--out", "runs", "--force"],
    &["export", "runs/done", "--format", "gguf", "--out", "thesis.txt"],
    &["export", "runs/done", "--format", "gguf", "--out", "thesis.txt", "--force"],
    &["export", "runs/done", "--format", "gguf", "--out", "model/model-00001-of-00002.safetensors", "--force"],
    &["export", "runs/done", "--format", "gguf", "--out", "empty", "--force"],
    &["export", "runs/dora", "--format", "mlx-lm", "--out", "out"],
];

#[test]
pub(crate) fn what_is_there_already_is_not_written_over() {
    let mut table = Table::default();
    table.try_all("places of others", &REFUSED, Desk::new, |desk, args| {
        desk.restore();
        symlink("mine", desk.world.at("linked")).unwrap();
        symlink("thesis.txt", desk.world.at("linked.toml")).unwrap();
        let before = desk.world.listing();
        let ran = desk.world.run(args);
        let harm = harm(&before, &desk.world.listing(), &[]);
        match (ran.code, harm.is_empty()) {
            (2, true) => Ok(()),
            _ => Err(format!("{}; {}", harm.join(", "), ran.brief())),
        }
    });
    table.hold();
}

#[test]
pub(crate) fn auto_leaves_what_has_the_names_it_would_take() {
    let auto = |out: &[&'static str]| {
        let given = ["auto", "--model", "./model", "--data", "data/train.jsonl", "--script", "script.json"];
        [&given[..], out].concat()
    };
    // What is there, what is asked, what may come.
    type Case = (&'static str, Vec<&'static str>, &'static [&'static str]);
    let cases: [Case; 6] = [
        ("runs/mine.toml", auto(&["--out", "runs/mine"]), &["runs/mine", "reports/mine", "results"]),
        ("exp.toml", auto(&["--out", "exp.v2"]), &["exp.v2", "exp.v2.toml", "reports/exp.v2", "results"]),
        ("runs/model-1.toml", auto(&[]), &["runs/model-1", "runs/model-2", "runs/model-2.toml", "reports", "results"]),
        ("runs/notes-2.txt", auto(&["--out", "mine"]), &["results"]),
        ("runs/notes-2.txt", auto(&["--out", "."]), &["results"]),
        ("runs/notes-2.txt", auto(&["--out", "runs/done"]), &["results"]),
    ];
    let mut table = Table::default();
    table.try_all("auto", &cases, Desk::new, |desk, (there, args, own)| {
        desk.restore();
        desk.world.put(there, run_file(7, "", ""));
        let before = desk.world.listing();
        let ran = desk.world.run(args);
        unharmed(&before, &desk.world, own).map_err(|why| format!("{why}; {}", ran.brief()))?;
        ended(&ran, if *there == "runs/model-1.toml" { &[0] } else { &[0, 2] })
    });
    table.hold();
}

/// `--force` replaces an earlier export of the same kind, and nothing that came into its folder since.
#[test]
pub(crate) fn an_export_replaces_its_own_and_no_more() {
    let mut table = Table::default();
    let formats =
        [("peft", "out"), ("mlx-lm", "out"), ("fused", "out"), ("gguf", "out.gguf"), ("gguf-adapter", "out.gguf")];
    table.try_all("export --force", &formats, Desk::new, |desk, (format, out)| {
        desk.restore();
        let args = ["export", "runs/done", "--format", format, "--out", out];
        let force = [&args[..], &["--force"]].concat();
        ended(&desk.world.run(&args), &[0])?;
        let made = desk.world.listing();
        ended(&desk.world.run(&args), &[2])?;
        ended(&desk.world.run(&force), &[0])?;
        let own: Vec<&str> = made.keys().map(String::as_str).filter(|p| p.starts_with(out) && *p != "out").collect();
        unharmed(&made, &desk.world, &own)?;
        if out.ends_with(".gguf") {
            return tidy(&desk.world);
        }
        for foreign in ["out/thesis.tex", "out/notes/a.md"] {
            desk.world.put(foreign, "seven years");
            let before = desk.world.listing();
            ended(&desk.world.run(&force), &[0, 2])?;
            unharmed(&before, &desk.world, &own)?;
        }
        tidy(&desk.world)
    });
    table.hold();
}

/// Old checkpoints are removed file by file, and temporary files by a name that only they have.
#[test]
pub(crate) fn a_resumed_run_clears_only_what_a_run_wrote() {
    let desk = Desk::new();
    let args = ["launch", "long.toml", "--save-every", "3"];
    desk.world.put("long.toml", run_file(12, "", ""));
    let (_, operations) = desk.world.count(&args);
    let line = operations.iter().enumerate().filter(|(_, o)| o.starts_with("write") && o.ends_with("/metrics.jsonl"));
    let seventh = line.map(|(i, _)| i).nth(6).unwrap() + 2;
    desk.world.remove("runs/long");
    assert_eq!(desk.world.run_with(&args, &Fault::new(seventh, "kill")).code, 137);
    desk.world.put("runs/long/thesis.txt", "seven years");
    desk.world.put("runs/long/.thesis.tex.tmp", "seven years");
    desk.world.put("runs/long/checkpoints/notes.txt", "the sixth was best");
    desk.world.put("runs/long/checkpoints/step-000003/notes.txt", "this one was bad");
    copy_tree(&desk.world.at("runs/long/checkpoints/step-000003"), &desk.world.at("runs/long/checkpoints/backup"));
    copy_tree(&desk.world.at("runs/long/checkpoints/step-000003"), &desk.world.at("runs/long/checkpoints/a-backup"));
    let kept = ["thesis.txt", ".thesis.tex.tmp", "checkpoints/notes.txt", "checkpoints/step-000003/notes.txt"];
    let before = desk.world.listing();
    let ran = desk.world.run(&[&args[..], &["--resume"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.said);
    let after = desk.world.listing();
    let mut table = Table::default();
    let backups = before.keys().filter(|p| p.contains("backup")).cloned();
    for path in kept.iter().map(|k| format!("runs/long/{k}")).chain(backups) {
        let same = before[&path] == *after.get(&path).unwrap_or(&"gone".into());
        table.add("kept", if same { Ok(()) } else { Err(format!("`{path}` is gone or changed")) });
    }
    table.add(
        "no old checkpoint",
        match after.contains_key("runs/long/checkpoints/step-000003/state.json") {
            false => Ok(()),
            true => Err("step 3 is still there".into()),
        },
    );
    table.hold();
}

/// A page or a table that a verb did not make is not replaced by it.
#[test]
pub(crate) fn pages_of_others_stay() {
    let cases: [(&str, &[&str]); 5] = [
        ("reports/done/index.html", &["report", "runs/done"]),
        ("reports/done/data.csv", &["report", "runs/done"]),
        ("reports/done/data.parquet", &["report", "runs/done"]),
        ("reports/grid/sweep.csv", &["sweep", "grid.toml"]),
        ("reports/grid/sweep.parquet", &["sweep", "grid.toml"]),
    ];
    let mut table = Table::default();
    table.try_all("pages of others", &cases, Desk::new, |desk, (there, args)| {
        desk.restore();
        desk.world.put(there, "my own notes, for years\n");
        let ran = desk.world.run(args);
        ended(&ran, &[0, 2])?;
        let same = desk.world.bytes(there) == b"my own notes, for years\n";
        if same { Ok(()) } else { Err(format!("`{there}` was written over")) }
    });
    table.hold();
}

/// What is handed over names no folder of this machine, and holds nothing from outside the model's folder.
#[test]
pub(crate) fn what_is_handed_over_holds_nothing_of_the_home_folder() {
    let mut table = Table::default();
    let cases: [(&str, &[&str]); 6] = [
        ("runs/done/adapter", &["predict", "exp.toml"]),
        ("out", &["export", "runs/done", "--format", "peft", "--out", "out"]),
        ("out", &["export", "runs/done", "--format", "mlx-lm", "--out", "out"]),
        ("out", &["export", "runs/done", "--format", "fused", "--out", "out"]),
        ("out", &["export", "runs/done", "--format", "gguf", "--out", "out/m.gguf"]),
        ("reports/done", &["report", "runs/done"]),
    ];
    table.try_all("paths and secrets", &cases, Desk::new, |desk, (folder, args)| {
        desk.restore();
        for name in ["notes.txt", "LICENSE-x", "generation_config.json", "merges.txt"] {
            desk.world.remove(&format!("model/{name}"));
            symlink("../home/.netrc", desk.world.at("model").join(name)).unwrap();
        }
        let ran = desk.world.run(args);
        // A model with such a link may be refused as a whole.
        if ran.code != 0 && folder == &"out" {
            return ended(&ran, &[2]);
        }
        ended(&ran, &[0])?;
        let home = desk.world.path.to_string_lossy().into_owned();
        for (path, _) in desk.world.listing().iter().filter(|(p, what)| is_in(p, &[folder]) && what.contains("bytes")) {
            let bytes = desk.world.bytes(path);
            let text = String::from_utf8_lossy(&bytes);
            if text.contains(&home) {
                return Err(format!("`{path}` names {home}"));
            }
            if text.contains("password secret") {
                return Err(format!("`{path}` holds what a link led to"));
            }
        }
        Ok(())
    });
    table.hold();
}

/// Both ends are among the moments that are tried.
#[test]
pub(crate) fn moments_are_spread() {
    if !disk::all() {
        assert_eq!(spread(100, 4), [1, 34, 67, 100]);
    }
    assert_eq!(spread(3, 4), [1, 2, 3]);
    assert_eq!(spread(0, 4), [0; 0]);
}
