//! What the build is made of: the workflow runs what is here, and candle's crates fit each other and Metal.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod sources;

use std::path::Path;

use clap::Parser;
use headroom::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn the_workflow_runs_what_is_here() {
    let workflow = read(".github/workflows/ci.yml");
    assert!(workflow.contains("run: .ci/run") && root().join(".ci/run").is_file());
    let (mut targets, mut commands) = (0, 0);
    for line in workflow.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for name in words.windows(2).filter(|pair| pair[0] == "--test").map(|pair| pair[1]) {
            let places = [format!("tests/{name}.rs"), format!("tests/{name}/main.rs")];
            assert!(places.iter().any(|place| root().join(place).is_file()), "there is no test target `{name}`");
            targets += 1;
        }
        if let Some(at) = words.iter().position(|word| word.ends_with("release/headroom")) {
            Cli::try_parse_from(&words[at..]).unwrap_or_else(|e| panic!("{line}: {e}"));
            commands += 1;
        }
        if let Some(action) = line.split_once("uses: ").map(|(_, action)| action) {
            let version = action.split_once("@v").map_or("", |(_, version)| version);
            assert!(!version.is_empty() && version.chars().all(|c| c.is_ascii_digit()), "`{action}` is not pinned");
        }
    }
    assert!(targets >= 3 && commands >= 2, "{targets} test targets and {commands} commands were found");
}

/// Versions of a package in the lock file.
fn versions(lock: &str, package: &str) -> Vec<String> {
    let head = format!("name = \"{package}\"\nversion = \"");
    lock.split(&head).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[test]
fn candles_crates_fit_each_other() {
    let lock = read("Cargo.lock");
    let core = versions(&lock, "candle-core");
    assert_eq!(core.len(), 1, "{core:?}");
    for package in ["candle-nn", "candle-transformers", "candle-metal-kernels"] {
        assert_eq!(versions(&lock, package), core, "{package}");
    }
    // Its types pass between this crate and candle.
    for package in ["objc2-metal", "objc2-foundation", "objc2"] {
        assert_eq!(versions(&lock, package).len(), 1, "{package}");
    }
}

/// candle-nn and candle-transformers are built without their Metal feature: their own operations fail on a Mac's GPU. What
/// is used of them computes with candle-core's operations, or on the CPU.
#[test]
fn nothing_of_candle_nn_computes_on_metal() {
    let allowed = ["candle_nn::kv_cache::KvCache", "candle_transformers::generation::"];
    let mut paths = Vec::new();
    sources::sources(&root().join("src"), &mut paths);
    let mut seen = 0;
    for path in paths.iter().filter(|p| !p.to_string_lossy().ends_with("tests.rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        let foot = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        let code = text[..foot].lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code.filter(|l| l.contains("candle_nn::") || l.contains("candle_transformers::")) {
            seen += 1;
            assert!(allowed.iter().any(|a| line.contains(a)), "{}: {}", path.display(), line.trim());
        }
    }
    assert!(seen >= 2, "only {seen} lines were found");
}

/// Matrix products are all that Metal computes by candle's kernels. Every tile that candle may choose for f32 must be among
/// the kernels that it compiles, and its products must still write what it takes from its own pool.
#[test]
fn the_products_that_candle_asks_for_are_among_its_kernels() {
    let out = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let kernels = packages.iter().find(|p| p["name"] == "candle-metal-kernels").unwrap();
    let source = Path::new(kernels["manifest_path"].as_str().unwrap()).with_file_name("src");
    let read = |path: &str| std::fs::read_to_string(source.join(path)).unwrap();
    let (choice, compiled) = (read("kernels/mlx_gemm.rs"), read("metal_src/mlx_gemm.metal"));
    let tiles: Vec<&str> =
        choice.split("TileConfig = TileConfig::new(").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(tiles.len() >= 5, "{tiles:?}");
    for tile in tiles {
        let helper = format!("instantiate_gemm_transpose_helper(f32, float, f32, float, {tile})");
        assert!(compiled.contains(&helper), "{helper}");
    }
    for turned in ["nn", "nt", "tn"] {
        assert!(compiled.contains(&format!("instantiate_gemm({turned}, ")), "{turned}");
    }
    let vectors = read("metal_src/gemv.metal");
    assert!(vectors.contains("instantiate_gemv_blocks(float32, float)"));
    assert!(vectors.contains("instantiate_gemv_t_blocks(float32, float)"));
}
