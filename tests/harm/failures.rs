//! What fails takes nothing with it.

use super::*;

/// Ways in which a training fails: before its first step, and after it.
pub(crate) const FAILURES: [&str; 10] = [
    "weights cut short",
    "a shard gone",
    "no number in the weights",
    "too long for the model",
    "no adapter to begin with",
    "no data",
    "no tokenizer",
    "a learning rate of 1e30",
    "no room",
    "too little memory",
];

/// Makes the next launch fail, and says how to call it.
pub(crate) fn spoil(world: &World, failure: &str) -> (Vec<&'static str>, Option<Fault>) {
    let (first, second) = ("model/model-00001-of-00002.safetensors", "model/model-00002-of-00002.safetensors");
    let run = |from: &str, to: &str| world.put("exp.toml", run_file(4, "", "").replace(from, to));
    let mut more = vec![];
    let mut fault = None;
    match failure {
        "weights cut short" => {
            let bytes = world.bytes(first);
            world.put(first, &bytes[..bytes.len() / 2]);
        }
        "a shard gone" => world.remove(second),
        "no number in the weights" => {
            let mut bytes = world.bytes(first);
            let from = bytes.len() - 20_000;
            bytes[from..].chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&[0xc0, 0x7f]));
            world.put(first, bytes);
        }
        "too long for the model" => run("max_seq_length = 48", "max_seq_length = 300"),
        "no adapter to begin with" => run("rank = 3", "rank = 3\ninit_adapter = \"adaptor\""),
        "no data" => world.remove("data/train.jsonl"),
        "no tokenizer" => world.put("model/tokenizer.json", "{}"),
        "a learning rate of 1e30" => run("5e-3\nwarmup_steps = 2", "1e30\nwarmup_steps = 0\nmax_grad_norm = 0.0"),
        "no room" => fault = Some(Fault::new(12, "ENOSPC-on")),
        "too little memory" => more.extend(["--memory-limit", "5M"]),
        other => panic!("{other}"),
    }
    (more, fault)
}

#[test]
pub(crate) fn a_training_that_fails_takes_nothing_with_it() {
    let mut table = Table::default();
    for out in ["fresh", "empty", "mine", "states", "."] {
        table.try_all(&format!("launch --out {out}"), &FAILURES, Desk::new, |desk, failure| {
            desk.restore();
            let (more, fault) = spoil(&desk.world, failure);
            let before = desk.world.listing();
            let args = [&["launch", "exp.toml", "--out", out][..], &more].concat();
            let fault = fault.unwrap_or(Fault::new(0, "nothing"));
            let ran = desk.world.run_with(&args, &fault);
            ended(&ran, &[1, 2])?;
            let own: &[&str] =
                if matches!(out, "fresh" | "empty") { &["fresh", "empty/", "results"] } else { &["results"] };
            let inside = |path: &String| out == "empty" && path.starts_with("empty/");
            let mut after = desk.world.listing();
            after.retain(|path, _| !inside(path));
            let found = harm(&before, &after, own);
            if !found.is_empty() {
                return Err(format!("{}; {}", found.join(", "), ran.brief()));
            }
            tidy(&desk.world)
        });
    }
    table.hold();
}

/// A launch that failed before its first step does not stand in the way of the next one.
#[test]
pub(crate) fn what_failed_before_it_began_can_be_tried_again() {
    let mut table = Table::default();
    let early: Vec<&str> = FAILURES.iter().copied().filter(|f| *f != "a learning rate of 1e30").collect();
    for out in ["fresh", "empty"] {
        table.try_all(&format!("again into {out}"), &early, Desk::new, |desk, failure| {
            desk.restore();
            let (more, fault) = spoil(&desk.world, failure);
            let args = ["launch", "exp.toml", "--out", out];
            let ran = desk.world.run_with(&[&args[..], &more].concat(), &fault.unwrap_or(Fault::new(0, "nothing")));
            ended(&ran, &[1, 2])?;
            for name in ["model", "data", "exp.toml"] {
                desk.world.remove(name);
            }
            copy_tree(&desk.saved.join("model"), &desk.world.at("model"));
            copy_tree(&desk.saved.join("data"), &desk.world.at("data"));
            fs::copy(desk.saved.join("exp.toml"), desk.world.at("exp.toml")).unwrap();
            let again = desk.world.run(&args);
            // With no room it has begun, and says so: then it is resumed.
            match (again.code, *failure) {
                (2, "no room") if again.said.contains("--resume") => {
                    ended(&desk.world.run(&[&args[..], &["--resume"]].concat()), &[0])
                }
                _ => ended(&again, &[0]),
            }
        });
    }
    table.hold();
}
