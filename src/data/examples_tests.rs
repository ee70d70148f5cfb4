use std::io::Write as _;

use super::*;
use crate::checkpoint::source::ModelSource;

fn builtin() -> (Text, usize) {
    let spec = ModelSource::Builtin.spec().unwrap();
    (Text::open(&ModelSource::Builtin, &spec, "builtin").unwrap(), spec.vocab_size)
}

fn run(text: &str) -> RunConfig {
    let text = format!("model = \"builtin\"\ndata = \"d.jsonl\"\n{text}");
    RunConfig::from_toml(&text, Path::new("run.toml")).unwrap()
}

#[test]
fn rows_that_are_too_long_are_named() {
    let (text, vocab_size) = builtin();
    let long = "x".repeat(LONGEST_TEXT);
    let good = "{\"text\": \"a b c\"}";
    for row in [format!("{{\"text\": \"{long}\"}}"), format!("{long}x")] {
        let error = examples(format!("{good}\n\n{row}\n").into(), Path::new("d.jsonl"), &text, vocab_size).unwrap_err();
        let expected = "`d.jsonl`, line 3: is 4.0 MiB, and a row may have at most 4.0 MiB";
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().unwrap().contains("split it"));
    }
    let within = format!("{{\"text\": \"{}\"}}", "a b ".repeat(1 << 16));
    let found = examples(format!("{within}\n{good}").into(), Path::new("d.jsonl"), &text, vocab_size).unwrap();
    assert!(found[0].tokens.len() > 1 << 16 && found.len() == 2);
}

#[test]
fn a_row_that_the_tokenizer_cannot_take_is_named() {
    let (_, vocab_size) = builtin();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf_folder");
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    let mut template = std::fs::File::create(folder.path().join("chat_template.jinja")).unwrap();
    template.write_all(b"{% if messages[0].content == 'x' %}{{ raise_exception('no x') }}{% endif %}a b c d").unwrap();
    let spec = ModelSource::Folder(fixture).spec().unwrap();
    let text = Text::open(&ModelSource::Folder(folder.path().into()), &spec, "m").unwrap();
    let row = |content: &str| format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"{content}\"}}]}}\n");
    let rows = row("a") + &row("x") + &row("b");
    let error = examples(rows.into(), Path::new("d.jsonl"), &text, vocab_size).unwrap_err().to_string();
    assert!(error.contains("no x") && error.ends_with("(row of `d.jsonl`, line 2)"), "{error}");
}

#[test]
fn rows_without_targets_are_counted_and_a_run_of_nothing_else_is_refused() {
    let example = |tokens: usize, prompt: usize| Example { tokens: vec![1; tokens], prompt };
    let rows = |train: &[(usize, usize)], valid: &[(usize, usize)]| Rows {
        train: train.iter().map(|(t, p)| example(*t, *p)).collect(),
        valid: valid.iter().map(|(t, p)| example(*t, *p)).collect(),
    };
    let masked = run("[recipe]\nmax_seq_length = 8\nmask_prompt = true");
    let whole = run("[recipe]\nmax_seq_length = 8");
    // Cut at 8 tokens: nothing is left of the completion, one token, all of it.
    let some = rows(&[(20, 8), (20, 7), (20, 0), (5, 5)], &[(9, 3)]);
    assert_eq!(some.untrained(&masked).unwrap(), 2);
    assert_eq!(some.untrained(&whole).unwrap(), 0);
    let cases = [
        (rows(&[(20, 8), (9, 12)], &[]), "data in `d.jsonl`: no row has target tokens"),
        (rows(&[(20, 2)], &[(20, 8)]), "data in `d.jsonl`: no row has target tokens"),
    ];
    for (rows, expected) in cases {
        let error = rows.untrained(&masked).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("the 8 tokens of `max_seq_length`"), "{error}");
        assert_eq!(rows.untrained(&whole).unwrap(), 0);
    }
}
