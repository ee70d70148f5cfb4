//! What is damaged on the disk is seen and named.

use super::*;

// ---- damaged ----

/// What is done to a run that was killed, and what is wished of the resume.
pub(crate) struct Damage {
    pub(crate) name: String,
    pub(crate) wish: Wish,
    pub(crate) apply: Box<dyn Fn(&World) + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wish {
    /// The bytes of the whole run, from this checkpoint or the one before it; or a refusal that changes nothing.
    SameOrRefused,
    /// The bytes of the whole run.
    Same,
    /// Exit 2, and nothing changed.
    Refused,
}

impl fmt::Debug for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

pub(crate) fn damage(name: impl Into<String>, wish: Wish, apply: impl Fn(&World) + Send + Sync + 'static) -> Damage {
    Damage { name: name.into(), wish, apply: Box::new(apply) }
}

/// Something done to the bytes of a file.
pub(crate) fn bytes(
    file: &str,
    name: &str,
    wish: Wish,
    change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static,
) -> Damage {
    let path = file.to_owned();
    damage(format!("{file}: {name}"), wish, move |world| {
        let mut bytes = world.bytes(&path);
        change(&mut bytes);
        fs::write(world.at(&path), bytes).unwrap();
    })
}

/// Something done to the lines of a file.
pub(crate) fn lines(
    file: &str,
    name: &str,
    wish: Wish,
    change: impl Fn(&mut Vec<String>) + Send + Sync + 'static,
) -> Damage {
    bytes(file, name, wish, move |bytes| {
        let mut lines: Vec<String> = String::from_utf8(bytes.clone()).unwrap().lines().map(str::to_owned).collect();
        change(&mut lines);
        *bytes = lines.iter().map(|l| format!("{l}\n")).collect::<String>().into_bytes();
    })
}

pub(crate) fn replaced(file: &str, from: &'static str, to: &'static str, wish: Wish) -> Damage {
    bytes(file, &format!("`{from}` is `{to}`"), wish, move |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "`{from}` is not there to be replaced");
        *bytes = text.replacen(from, to, 1).into_bytes();
    })
}

/// What can happen to the bytes of any file of a checkpoint, at places that are spread over it.
pub(crate) fn of_a_file(file: &str, length: usize) -> Vec<Damage> {
    use Wish::SameOrRefused;
    let few = if all() { length.div_ceil(1024).clamp(24, 70) } else { 6 };
    let places = (0..few).map(|i| i * (length - 1) / (few - 1));
    let mut found = Vec::new();
    for at in places {
        found.push(bytes(file, &format!("cut at {at}"), SameOrRefused, move |b| b.truncate(at)));
        found.push(bytes(file, &format!("a bit at {at}"), SameOrRefused, move |b| b[at] ^= 1 << (at % 8)));
        found.push(bytes(file, &format!("512 zeros at {at}"), SameOrRefused, move |b| {
            let end = b.len().min(at + 512);
            b[at..end].fill(0);
        }));
    }
    found.push(bytes(file, "100 bytes more", SameOrRefused, |b| b.extend([7; 100])));
    let path = file.to_owned();
    found.push(damage(format!("{file}: gone"), SameOrRefused, move |world| world.remove(&path)));
    found
}

pub(crate) const NEWEST: &str = "runs/run/checkpoints/step-000009";

pub(crate) const OLDER: &str = "runs/run/checkpoints/step-000006";

/// Flips a bit of a weight in a checkpoint.
pub(crate) fn flip(world: &World, checkpoint: &str) {
    let files = fs::read_dir(world.at(checkpoint)).unwrap().map(|e| e.unwrap().path());
    let tensors = files.max_by_key(|f| f.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&tensors).unwrap();
    let place = bytes.len() - 1000;
    bytes[place] ^= 64;
    fs::write(tensors, bytes).unwrap();
}

/// Damages of a checkpoint, file by file, and of checkpoints as a whole.
pub(crate) fn of_checkpoints(cut: &Cut) -> Vec<Damage> {
    use Wish::SameOrRefused;
    let mut found = Vec::new();
    let mut names = Vec::new();
    for entry in fs::read_dir(cut.world.at(NEWEST)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        found.extend(of_a_file(&format!("{NEWEST}/{name}"), entry.metadata().unwrap().len() as usize));
        names.push(name);
    }
    for name in names {
        let (from, to) = (format!("{OLDER}/{name}"), format!("{NEWEST}/{name}"));
        found.push(damage(format!("{name} of step 6 under step 9"), SameOrRefused, move |world| {
            fs::copy(world.at(&from), world.at(&to)).unwrap();
        }));
    }
    for step in ["8", "10", "6", "11", "0", "18446744073709551615"] {
        found.push(bytes(&format!("{NEWEST}/state.json"), &format!("step is {step}"), SameOrRefused, move |b| {
            let text = String::from_utf8(b.clone()).unwrap().replace("\"step\":9", "\"step\": 9");
            *b = text.replacen("\"step\": 9", &format!("\"step\": {step}"), 1).into_bytes();
        }));
    }
    found.push(damage("step 6 again as step 12", SameOrRefused, |world| {
        copy_tree(&world.at(OLDER), &world.at("runs/run/checkpoints/step-000012"));
    }));
    found.push(damage("both checkpoints damaged", SameOrRefused, |world| {
        [OLDER, NEWEST].iter().for_each(|folder| flip(world, folder));
    }));
    found.push(damage("no checkpoint", SameOrRefused, |world| world.remove("runs/run/checkpoints")));
    found
}

/// What belongs to a run and is not its state.
pub(crate) fn of_the_folder() -> Vec<Damage> {
    use Wish::{Refused, Same, SameOrRefused};
    let metrics = "runs/run/metrics.jsonl";
    let insert = |at: usize, line: &'static str| {
        lines(metrics, &format!("`{line}` before line {at}"), SameOrRefused, move |l| l.insert(at - 1, line.into()))
    };
    vec![
        bytes(metrics, "torn last line", Same, |b| b.extend(b"{\"step\": 12, \"lo")),
        bytes(metrics, "zeros at its end", Same, |b| b.extend([0; 100])),
        insert(4, "garbage"),
        insert(4, "{}"),
        insert(11, ""),
        bytes(metrics, "zeros in the middle", SameOrRefused, |b| b[300..400].fill(0)),
        bytes(metrics, "not UTF-8 in the middle", SameOrRefused, |b| b[300] = 0xff),
        lines(metrics, "line 4 gone", SameOrRefused, |l| drop(l.remove(3))),
        lines(metrics, "line 4 twice", SameOrRefused, |l| l.insert(3, l[3].clone())),
        lines(metrics, "lines 4 and 5 changed places", SameOrRefused, |l| l.swap(3, 4)),
        lines(metrics, "empty", SameOrRefused, Vec::clear),
        damage("metrics.jsonl gone", SameOrRefused, move |world| world.remove(metrics)),
        replaced("runs/run/run.toml", "rank = 3", "rank = 4", Refused),
        replaced("runs/run/run.toml", "seed = 5", "seed = 6", Refused),
        bytes("runs/run/run.toml", "cut in half", Refused, |b| b.truncate(b.len() / 2)),
        bytes("runs/run/run.toml", "empty", Refused, Vec::clear),
        replaced("run.toml", "5e-3", "6e-3", Refused),
        bytes("runs/run/prediction.json", "cut in half", SameOrRefused, |b| b.truncate(b.len() / 2)),
    ]
}

/// What a run is made of: changed, it is another run.
pub(crate) fn of_the_inputs() -> Vec<Damage> {
    use Wish::Refused;
    let (train, valid) = ("data/train.jsonl", "data/valid.jsonl");
    let weights = "model/model-00002-of-00002.safetensors";
    vec![
        replaced(train, "harbour", "market", Refused),
        lines(train, "a row less", Refused, |l| drop(l.remove(5))),
        lines(train, "a row more", Refused, |l| l.push(l[2].clone())),
        lines(train, "in another order", Refused, |l| l.reverse()),
        lines(train, "other rows", Refused, |l| {
            l.iter_mut().for_each(|l| *l = "{\"text\": \"something else\"}".into());
        }),
        lines(valid, "doubled", Refused, |l| l.extend(l.clone())),
        replaced(valid, "harbour", "market", Refused),
        bytes(weights, "a bit of a weight", Refused, |b| {
            let middle = b.len() / 2;
            b[middle] ^= 64;
        }),
        bytes(weights, "the last weight", Refused, |b| {
            let last = b.len() - 1;
            b[last] ^= 1;
        }),
        replaced("model/config.json", "1000000.0", "10000.0", Refused),
        replaced("model/tokenizer.json", "\"NFC\"", "\"NFKC\"", Refused),
        replaced("model/tokenizer_config.json", "You are a helpful", "You are a careful", Refused),
    ]
}

/// Resumes what was damaged, and says what became of it where that is not as wished.
pub(crate) fn resumed(cut: &Cut, damage: &Damage) -> Result<(), String> {
    cut.restore();
    (damage.apply)(&cut.world);
    let before = cut.world.listing();
    let ran = cut.world.run(&RESUME);
    let changed = || harm(&before, &cut.world.listing(), &[]);
    match (ran.code, damage.wish) {
        (0, Wish::Same | Wish::SameOrRefused) => match cut.whole.held(&cut.world, "runs/run") {
            // Lines that were lost do not come back; then that is said.
            Err(_) if damage.name.contains("metrics") && said_of_metrics(cut, &ran) => Ok(()),
            held => held,
        },
        (0, Wish::Refused) => Err("NOT SEEN: it went on".into()),
        (2, Wish::Refused | Wish::SameOrRefused) if changed().is_empty() => Ok(()),
        (2, Wish::Refused | Wish::SameOrRefused) => {
            Err(format!("refused, but {}; {}", changed().join(", "), ran.brief()))
        }
        _ => Err(format!("{:?} was wished: {}", damage.wish, ran.brief())),
    }
}

pub(crate) fn said_of_metrics(cut: &Cut, ran: &Ran) -> bool {
    ran.said.contains("metrics.jsonl") && adapter(&cut.world, "runs/run").is_ok_and(|a| a == cut.whole.adapter)
}

#[test]
pub(crate) fn damage_is_seen() {
    let first = Cut::new();
    let mut table = Table::default();
    let rows = [
        ("a checkpoint", of_checkpoints(&first)),
        ("the run's folder", of_the_folder()),
        ("the inputs", of_the_inputs()),
    ];
    for (what, damages) in rows {
        table.try_all(&format!("damage to {what}, then --resume"), &damages, Cut::new, resumed);
    }
    table.hold();
}

#[test]
pub(crate) fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let cut = Cut::new();
    flip(&cut.world, NEWEST);
    let ran = cut.world.run(&RESUME);
    assert_eq!(ran.code, 0, "{}", ran.said);
    assert!(ran.said.contains("step-000009"), "the damaged checkpoint is not named:\n{}", ran.said);
    cut.whole.held(&cut.world, "runs/run").unwrap();
}

/// What refuses to go on with changed inputs goes on once they are as they were.
#[test]
pub(crate) fn inputs_that_are_put_back_are_gone_on_with() {
    let cut = Cut::new();
    let row = "{\"text\": \"one more\"}\n";
    let rows = cut.world.bytes("data/train.jsonl");
    cut.world.put("data/train.jsonl", [&rows[..], row.as_bytes()].concat());
    let ran = cut.world.run(&RESUME);
    assert_eq!(ran.code, 2, "{}", ran.said);
    assert!(ran.said.contains("train"), "{}", ran.said);
    cut.world.put("data/train.jsonl", rows);
    go_on(&cut.world).unwrap();
    cut.whole.held(&cut.world, "runs/run").unwrap();
}

#[test]
pub(crate) fn a_damaged_adapter_is_not_handed_on() {
    let whole = Whole::of(run_file(3, "", ""));
    let world = whole.world();
    assert_eq!(world.run(&LAUNCH).code, 0);
    let file = "runs/run/adapter/adapter_model.safetensors";
    let mut bytes = world.bytes(file);
    let place = bytes.len() - 50;
    bytes[place] ^= 64;
    world.put(file, bytes);
    let mut table = Table::default();
    for args in [
        &["export", "runs/run", "--format", "peft", "--out", "a"][..],
        &["export", "runs/run", "--format", "fused", "--out", "b"],
        &["export", "runs/run", "--format", "gguf", "--out", "c.gguf"],
        &["generate", "Hello", "--adapter", "runs/run", "--max-tokens", "3"],
    ] {
        let ran = world.run(args);
        let seen = ran.code == 2 && ran.said.contains("adapter");
        table.add("a bit of the adapter", if seen { Ok(()) } else { Err(format!("{args:?}: {}", ran.brief())) });
    }
    table.hold();
}
