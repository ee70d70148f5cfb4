//! A user at a desk: a folder, a run file, and the command with the variables of the hub set.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::server::{COMMIT, Files, Hub, etag};

pub const WEIGHTS: &str = "model.safetensors";

/// Variables that would change what is tested.
const OTHERS: [&str; 8] = [
    "HF_TOKEN",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "TRANSFORMERS_OFFLINE",
];

/// The model that ships, with a licence and what nobody needs.
pub fn files() -> Files {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/model");
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", WEIGHTS];
    let mut files: Files =
        names.iter().map(|name| (name.to_string(), std::fs::read(folder.join(name)).unwrap())).collect();
    files.insert("LICENSE".into(), b"free".to_vec());
    files.insert("pytorch_model.bin".into(), b"\x80\x02evil".to_vec());
    files.insert("README.md".into(), b"# tiny".to_vec());
    files
}

/// A user with a folder of their own, and the hub that they are told of.
pub struct Desk {
    pub hub: Hub,
    pub folder: tempfile::TempDir,
}

impl Desk {
    pub fn new() -> Self {
        let desk = Self { hub: Hub::with(files()), folder: tempfile::tempdir().unwrap() };
        desk.write_run("org/tiny");
        desk
    }

    pub fn write_run(&self, model: &str) {
        let text = format!(
            "model = \"{model}\"\ndata = \"builtin\"\n[recipe]\nmax_seq_length = 64\nsteps = 2\neffective_batch_size = 2\n\
             [recipe.lora]\nrank = 4\n[execution]\nbatch_size = 1\n"
        );
        std::fs::write(self.folder.path().join("run.toml"), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        command.current_dir(self.folder.path()).args(args).env("NO_COLOR", "1").env("HF_HUB_OFFLINE", "0");
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.folder.path().join("hf"));
        for name in OTHERS {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        read(self.command(args).output().unwrap())
    }

    pub fn launch(&self) -> (i32, String, String) {
        let _ = std::fs::remove_dir_all(self.folder.path().join("out"));
        self.run(&["launch", "run.toml", "--out", "out", "--results", "results"])
    }

    /// A launch that is on its way.
    pub fn launching(&self) -> Child {
        let mut command = self.command(&["launch", "run.toml", "--out", "out", "--results", "results"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until so many bytes of a file have arrived; returns how many have.
    pub fn arrived(&self, file: &str, bytes: u64) -> u64 {
        let state = self.hub.state.lock().unwrap();
        let name = format!("{}.incomplete", etag(file, &state.models["org/tiny"][file]));
        drop(state);
        let begun = Instant::now();
        loop {
            let length = self.repo().join("blobs").join(&name).metadata().map_or(0, |m| m.len());
            if length >= bytes {
                return length;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing arrives of {file}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What was asked of the host of large files since the last look: file and where it begins.
    pub fn transfers(&self) -> Vec<(String, u64)> {
        let seen = self.hub.seen().into_iter().filter(|s| s.host == "store");
        let from = |range: String| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        seen.map(|s| (s.path.rsplit('/').next().unwrap().to_owned(), s.range.map_or(0, from))).collect()
    }

    pub fn repo(&self) -> PathBuf {
        self.folder.path().join("hf/hub/models--org--tiny")
    }

    /// Every file of the snapshot is what the hub has, and lies as huggingface_hub lays it.
    pub fn holds(&self, names: &[&str]) {
        let all = files();
        for name in names {
            let link = self.repo().join("snapshots").join(COMMIT).join(name);
            assert_eq!(std::fs::read(&link).unwrap(), all[*name], "{name}");
            let target = format!("../../blobs/{}", etag(name, &all[*name]));
            assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(&target), "{name}");
        }
        assert_eq!(std::fs::read_to_string(self.repo().join("refs/main")).unwrap(), COMMIT);
        let left = std::fs::read_dir(self.repo().join("blobs")).unwrap();
        let left: Vec<_> = left.map(|f| f.unwrap().file_name().to_string_lossy().into_owned()).collect();
        assert!(left.iter().all(|name| !name.ends_with(".incomplete")), "{left:?}");
    }
}

pub fn read(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

pub const ALL: [&str; 6] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", WEIGHTS];
