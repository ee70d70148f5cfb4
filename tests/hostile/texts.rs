//! Text of others stays text.

use super::*;

pub(crate) const WIDE: &str = "漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢漢";

/// A world that is put back before every case.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) saved: std::path::PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let world = a_run();
        let saved = world.path.with_file_name("saved");
        copy_tree(&world.path, &saved);
        Self { world, saved }
    }

    pub(crate) fn restore(&self) {
        for entry in fs::read_dir(&self.world.path).unwrap() {
            disk::remove(&entry.unwrap().path());
        }
        copy_tree(&self.saved, &self.world.path);
    }
}

#[test]
pub(crate) fn what_somebody_made_by_hand_is_answered_or_refused() {
    let mut table = Table::default();
    let rows = [
        ("sizes", sizes()),
        ("tokenizers", tokenizers()),
        ("chat templates", templates()),
        ("pipes and devices", pipes()),
        ("GGUF", ggufs()),
        ("files of one's own", own_files()),
    ];
    for (what, cases) in rows {
        table.try_all(what, &cases, Bench::new, |bench, case| {
            bench.restore();
            (case.make)(&bench.world);
            let ran = bench.world.run(&case.args);
            match fault(&ran) {
                None => Ok(()),
                Some(fate) => Err(format!("{fate}: {}", ran.brief().chars().take(300).collect::<String>())),
            }
        });
    }
    table.hold();
}

/// transformers ignores both: left in a file after somebody's training, they would cut and fill rows here.
#[test]
pub(crate) fn truncation_and_padding_of_a_tokenizer_change_nothing() {
    let bench = Bench::new();
    let world = &bench.world;
    let cut = json!({"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"});
    for change in [("/truncation", cut), ("/padding", padding(json!({"Fixed": 40}), Value::Null))] {
        bench.restore();
        world.remove("results");
        set(world, "model/tokenizer.json", std::slice::from_ref(&change));
        let after = world.run(LAUNCH);
        assert_eq!(after.code, 0, "{}", after.said);
        let tokens = |metrics: String| -> Vec<Value> {
            metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["tokens"].clone()).collect()
        };
        let (here, there) = (tokens(text(world, "o/metrics.jsonl")), tokens(text(world, "runs/run/metrics.jsonl")));
        assert_eq!(here, there, "{} is obeyed", change.0);
    }
}

/// What a file says does not reach the terminal as a command, a page as a script, or a table as a formula.
#[test]
pub(crate) fn text_of_others_stays_text() {
    let bench = Bench::new();
    let mut table = Table::default();
    let spoken = "\u{1b}]52;c;aGVsbG8=\u{7}\u{1b}[2J\u{9b}31m";
    let cases: [(&str, &[&str]); 4] = [
        ("model_type", PREDICT),
        ("model of a run file", PREDICT),
        ("raise_exception", PREDICT),
        ("a key of the run file", PREDICT),
    ];
    for (what, args) in cases {
        bench.restore();
        let world = &bench.world;
        match what {
            "model_type" => set(world, "model/config.json", &[("/model_type", spoken.into())]),
            "model of a run file" => {
                let escaped = "\\u001b]52;c;aGVsbG8=\\u0007\\u001b[2J\\u009b31m";
                world.put("run.toml", run_file(1, "", "").replace("./model", escaped));
            }
            "raise_exception" => {
                let row =
                    json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
                world.put("data/train.jsonl", format!("{row}\n"));
                let template = format!("{{{{ raise_exception('{spoken}') }}}}");
                set(world, "model/tokenizer_config.json", &[("/chat_template", template.into())]);
            }
            _ => world.put("run.toml", format!("\"{}\" = 1\n{}", "\\u001b]0;a\\u0007\\u009b", run_file(1, "", ""))),
        }
        // As on a terminal: where there is none, the colours are taken out, and these with them.
        let child = world.command(args, None).env("CLICOLOR_FORCE", "1").spawn().unwrap();
        let ran = world.end(child);
        let reached =
            ["\u{1b}]", "\u{7}", "\u{1b}[2J", "\u{9b}"].iter().any(|c| ran.said.contains(c) || ran.answer.contains(c));
        let result = match (reached, ran.code) {
            (false, 2) => Ok(()),
            (true, _) => Err(format!("{what}: a control sequence is said")),
            _ => Err(format!("{what}: {}", ran.brief())),
        };
        table.add("control sequences", result);
    }
    for url in [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\\tscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
    ] {
        bench.restore();
        let guides = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("grids/guides.toml")).unwrap();
        let address = "https://github.com/HueCodes/Qwen-Finetune-Air/blob/main/MAXIMUM_TRAINING.md";
        assert!(guides.contains(address));
        bench.world.put("guides.toml", guides.replacen(address, url, 1));
        let ran = bench.world.run(&["report", "guides", "--claims", "guides.toml"]);
        let page = fs::read_to_string(bench.world.at("reports/guides/index.html")).unwrap_or_default().to_lowercase();
        let page = page.replace("&#x2f;", "/").replace("&#x3a;", ":");
        let links: Vec<&str> =
            page.split("<a href=\"").skip(1).map(|l| l.split('"').next().unwrap_or_default()).collect();
        let bad = links.iter().any(|l| !["http://", "https://", "#"].iter().any(|p| l.starts_with(p)));
        let result = match (ran.code, bad) {
            (2, _) => Ok(()),
            (0, false) if page.contains("<html") => Ok(()),
            _ => Err(format!("`{url}` is linked; {}", ran.brief())),
        };
        table.add("addresses", result);
    }
    for formula in ["=1+1", "+1+1", "-1+1", "@SUM(1)", "=HYPERLINK(\"x\")"] {
        bench.restore();
        let world = &bench.world;
        fs::rename(world.at("runs/run"), world.at("runs").join(formula)).unwrap();
        let ran = world.run(&["report", &format!("runs/{formula}"), "--name", "page"]);
        let csv = fs::read_to_string(world.at("reports/page/data.csv")).unwrap_or_default();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(csv.as_bytes());
        let bare = reader.records().flatten().any(|row| row.iter().any(|cell| cell == formula));
        let result = match (ran.code, bare) {
            (0, false) | (2, _) => Ok(()),
            _ => Err(format!("`{formula}` stands bare in data.csv; {}", ran.brief())),
        };
        table.add("formulas", result);
    }
    table.hold();
}
