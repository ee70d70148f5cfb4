use std::path::Path;

use super::names::closest;
use super::*;
use crate::error::Result;

fn parse(text: &str) -> Result<RunConfig> {
    RunConfig::from_toml(text, Path::new("runs/run.toml"))
}

#[test]
fn a_run_file_reads_back_as_it_was_written() {
    let text = r#"
        model = "Qwen/Qwen2.5-0.5B"
        [data]
        train = "a.jsonl"
        valid = "/b.jsonl"
        [recipe]
        max_seq_length = 1024
        steps = 10
        [recipe.lora]
        rank = 4
        alpha = 6
        target_modules = "all-linear"
    "#;
    let config = parse(text).unwrap();
    assert_eq!(config.data.train(), Path::new("runs/a.jsonl"));
    assert_eq!(config.data.valid(), Some(Path::new("/b.jsonl")));
    assert_eq!(config.recipe.lora.scale(), 1.5);
    let again = RunConfig::from_toml(&config.to_toml().unwrap(), Path::new("run.toml")).unwrap();
    assert_eq!(config, again);
}

#[test]
fn mistakes_name_their_line_and_what_was_meant() {
    let error = parse("model = \"m\"\ndata = \"d\"\n[recipe]\nlearning_rat = 1e-4\n").unwrap_err();
    assert!(error.to_string().starts_with("`runs/run.toml`, line 4: unknown field `learning_rat`"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("did you mean `learning_rate`?"));
    let error = parse("model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = \"long\"\n").unwrap_err();
    assert!(error.to_string().contains("line 4") && error.to_string().contains("invalid type: string"), "{error}");
    assert!(parse("data = \"d\"").unwrap_err().to_string().contains("missing field `model`"));
}

#[test]
fn values_that_cannot_be_are_refused() {
    let base = "model = \"m\"\ndata = \"d\"\n";
    let cases = [
        ("[execution]\nbatch_size = 3\n[recipe]\neffective_batch_size = 16", "`batch_size` is 3"),
        ("[recipe]\nsteps = 5\nepochs = 1.0", "`epochs` is given together"),
        ("[recipe]\nlearning_rate = -1.0", "`learning_rate` is -1"),
        ("[recipe.lora]\ndropout = 1.0", "`dropout` is 1"),
        ("[recipe.lora]\nrank = 0", "`rank` is 0"),
        ("[recipe.lora]\nnum_layers = 0", "`num_layers` is 0"),
        ("[recipe]\nlearning_rate = inf", "`learning_rate` is inf"),
        ("[recipe]\neval_steps = 0", "`eval_steps` is 0"),
        ("[recipe]\nearly_stopping_patience = 3", "must be left out when `[data]` has no `valid` file"),
        (
            "[recipe]\nmax_seq_length = 32768\neffective_batch_size = 1024\n[execution]\nbatch_size = 1024",
            "`batch_size` is 1024, but must be at most 128 with rows of 32768 tokens",
        ),
        ("[recipe]\nmax_seq_length = 1048576\n[execution]\nmlp_chunk = 1", "`mlp_chunk` is 1, but must be at least 16"),
        ("[recipe]\nepochs = nan", "`epochs` is NaN"),
        ("[recipe]\nepochs = 1e300", "at most a million"),
        ("[recipe]\nsteps = 0", "`steps` is 0"),
        ("[recipe]\nsteps = 9223372036854775807", "`steps` is 9223372036854775807"),
        ("[recipe]\nwarmup_steps = 9223372036854775807", "`warmup_steps` is 9223372036854775807"),
        ("[execution]\nbatch_size = 9223372036854775807", "`batch_size` is 9223372036854775807"),
    ];
    for (text, expected) in cases {
        let error = parse(&format!("{base}{text}")).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn others_learn_no_folder_of_this_machine() {
    for (name, public) in [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("builtin", "builtin"),
        ("/home/somebody/models/mine", "mine"),
        ("/home/somebody/models/mine/", "mine"),
        ("/Users/somebody/a b/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("grids/../../somebody/rows.jsonl", "rows.jsonl"),
        ("/home/somebody/.cache/huggingface/hub/models--org--a-b/snapshots/0123abc", "org/a-b"),
        ("/home/somebody/snapshots/0123abc", "0123abc"),
        ("..", "folder"),
        ("/", "folder"),
    ] {
        assert_eq!(public_name(name), public);
    }
    let text = "model = \"/home/somebody/m.gguf\"\n[data]\ntrain = \"/home/somebody/t\"\nvalid = \"/home/somebody/v\"\n\
                [recipe.lora]\ninit_adapter = \"/home/somebody/a\"";
    let public = parse(text).unwrap().public().to_toml().unwrap();
    assert!(!public.contains("somebody") && public.contains("\"m.gguf\""), "{public}");
}

#[test]
fn a_name_of_a_megabyte_is_no_misspelling() {
    let error = parse(&format!("model = \"m\"\ndata = \"d\"\n{} = 1", "x".repeat(1 << 20))).unwrap_err();
    assert_eq!(error.hint(), None);
    assert_eq!(closest(&"x".repeat(LONGEST_NAME + 1), ["x"].into_iter()), None);
}

#[test]
fn rslora_divides_by_the_root_of_the_rank() {
    let lora = Lora { rank: 16, alpha: 8.0, ..Lora::default() };
    assert_eq!(lora.scale(), 0.5);
    let rslora = Lora { use_rslora: true, ..lora };
    assert_eq!(rslora.scale(), 2.0);
    assert_eq!((rslora.with_rank(4).alpha, rslora.with_rank(4).scale()), (4.0, 2.0));
}

#[test]
fn what_an_optimizer_remembers_of_a_tensor() {
    // 64 x 100 numbers: 25 blocks of 256; fewer than 4096 stay in f32.
    assert_eq!(Optimizer::Adamw.state_bytes(&[64, 100]), 2 * 4 * 6400);
    assert_eq!(Optimizer::Adamw8bit.state_bytes(&[64, 100]), 2 * (6400 + 4 * 25));
    assert_eq!(Optimizer::Adamw8bit.state_bytes(&[4, 100]), 2 * 4 * 400);
    assert_eq!(Optimizer::Adafactor.state_bytes(&[64, 100]), 4 * 164);
    assert_eq!(Optimizer::Adafactor.state_bytes(&[100]), 400);
}

#[test]
fn steps_come_from_epochs_and_rows() {
    let mut config = parse("model = \"m\"\ndata = \"d\"").unwrap();
    assert_eq!(config.steps(2000), 375);
    config.recipe.epochs = Some(0.001);
    assert_eq!(config.steps(10), 1);
    config.recipe.epochs = None;
    config.recipe.steps = Some(7);
    assert_eq!(config.steps(2000), 7);
}
