//! A folder to run `headroom` in, what is in it before and after, and `disk.c`: a preloaded library that counts every
//! operation on the disk under that folder, and kills, stops or fails the process at any of them.

#![allow(dead_code)] // none of the tests needs all of it

mod table;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

#[allow(unused_imports)] // some hold tests alone
pub use self::table::*;

/// Nothing here takes a tenth of it; whoever needs longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether every case is to be tried (`HEADROOM_FAULTS=all`, by hand) and not a spread of them.
pub fn all() -> bool {
    std::env::var_os("HEADROOM_FAULTS").is_some_and(|v| v == "all")
}

/// The numbers from 1 to `count`, or `few` of them spread evenly.
pub fn moments(count: usize, few: usize) -> Vec<usize> {
    if count <= few || all() {
        return (1..=count).collect();
    }
    (0..few).map(|i| 1 + i * (count - 1) / (few - 1)).collect()
}

/// The library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk/disk.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (own, shared) = (folder.join(format!("disk-{}.so", std::process::id())), folder.join("disk.so"));
        let cc = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&own).arg(source).arg("-ldl").status();
        assert!(cc.expect("`cc` is needed to build the library that counts disk operations").success());
        fs::rename(own, &shared).unwrap();
        shared
    })
}

/// What is to happen at an operation on the disk, counted from 1; the words of `disk.c`.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: usize,
    pub what: String,
}

impl Fault {
    pub fn new(at: usize, what: &str) -> Self {
        Self { at, what: what.into() }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; 128 and the number of the signal that ended it, as shells say it; -1 for one that hung.
    pub code: i32,
    pub answer: String,
    pub said: String,
}

impl Ran {
    /// Neither an answer nor an error, but a crash: a panic, an abort, a fault of memory, a hang.
    pub fn crashed(&self) -> bool {
        !matches!(self.code, 0..=2)
    }

    /// Code and last words.
    pub fn brief(&self) -> String {
        let words: Vec<&str> = self.said.lines().filter(|l| !l.trim().is_empty()).collect();
        format!("exit {}: {}", self.code, words[words.len().saturating_sub(3)..].join(" / "))
    }
}

pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A folder that commands are run in, alone in another one.
pub struct World {
    _root: tempfile::TempDir,
    pub path: PathBuf,
    trace: PathBuf,
    /// Bytes of address space that a command may take.
    pub memory: Option<u64>,
    /// Seconds of a processor that a command may take.
    pub processor: Option<u64>,
    pub patience: Duration,
}

impl World {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let whole = root.path().canonicalize().unwrap();
        let path = whole.join("w");
        fs::create_dir(&path).unwrap();
        Self { _root: root, path, trace: whole.join("trace"), memory: None, processor: None, patience: PATIENCE }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file and makes the folders above it.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// `headroom` with these arguments in the folder. One thread, so that two worlds share two processors.
    pub fn command(&self, args: &[&str], fault: Option<&Fault>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        command.current_dir(&self.path).args(args);
        self.prepare(&mut command, fault);
        command
    }

    /// The environment and the limits of every command.
    pub fn prepare(&self, command: &mut Command, fault: Option<&Fault>) {
        let _ = fs::remove_file(&self.trace);
        command.env("HOME", self.path.join("home")).env("RAYON_NUM_THREADS", "1").env("RUST_BACKTRACE", "0");
        command.env("HEADROOM_RESULTS", "results");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(fault) = fault {
            command.env("LD_PRELOAD", library()).env("DISK_UNDER", &self.path).env("DISK_TRACE", &self.trace);
            command.env("DISK_AT", fault.at.to_string()).env("DISK_DO", &fault.what);
        }
        let limits = [
            (libc::RLIMIT_AS, self.memory),
            (libc::RLIMIT_CPU, self.processor),
            (libc::RLIMIT_CORE, self.memory.or(self.processor).map(|_| 0)),
        ];
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                for (what, most) in limits {
                    let Some(most) = most else { continue };
                    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
                    if libc::setrlimit(what, &raw const limit) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
    }

    /// A line of `sh` in the folder, in which `$HEADROOM` is `headroom` with a fault.
    pub fn shell(&self, line: &str, fault: &Fault) -> Ran {
        let mut command = Command::new("sh");
        self.prepare(&mut command, Some(fault));
        command.env_remove("LD_PRELOAD").current_dir(&self.path).arg("-c").arg(line);
        let preloaded = format!("env LD_PRELOAD={} {}", library().display(), env!("CARGO_BIN_EXE_headroom"));
        self.end(command.env("HEADROOM", preloaded).spawn().unwrap())
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.end(self.command(args, None).spawn().unwrap())
    }

    pub fn run_with(&self, args: &[&str], fault: &Fault) -> Ran {
        self.end(self.command(args, Some(fault)).spawn().unwrap())
    }

    /// Waits for a command; one that outlasts all patience is ended.
    pub fn end(&self, child: Child) -> Ran {
        finish(child, self.patience)
    }

    /// The operations of the last command with a fault, in their order: `write /whole/path`.
    pub fn operations(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.trace).unwrap_or_default();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// How many operations a command takes, and which.
    pub fn count(&self, args: &[&str]) -> (Ran, Vec<String>) {
        let ran = self.run_with(args, &Fault::new(0, "nothing"));
        (ran, self.operations())
    }

    /// What is in the folder.
    pub fn listing(&self) -> Listing {
        listing(&self.path)
    }

    pub fn remove(&self, name: &str) {
        remove(&self.at(name));
    }
}

/// Removes a file or a folder, if it is there.
pub fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Reads what a child says until it ends.
pub fn finish(mut child: Child, patience: Duration) -> Ran {
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(child.stdout.take().map(|s| Box::new(s) as _));
    let err = read(child.stderr.take().map(|s| Box::new(s) as _));
    let started = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break code(status);
        }
        if started.elapsed() > patience {
            child.kill().unwrap();
            child.wait().unwrap();
            break -1;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ran { code, answer: out.join().unwrap(), said: err.join().unwrap() }
}

/// Every path under a folder, and what is there: a folder, where a link leads, or a file's length and hash.
pub type Listing = BTreeMap<String, String>;

pub fn listing(folder: &Path) -> Listing {
    let mut found = Listing::new();
    list(folder, "", &mut found);
    found
}

fn list(folder: &Path, before: &str, found: &mut Listing) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{before}{}", path.file_name().unwrap().to_string_lossy());
        let meta = path.symlink_metadata().unwrap();
        if meta.is_symlink() {
            found.insert(name, format!("link to {}", fs::read_link(&path).unwrap().display()));
        } else if meta.is_dir() {
            list(&path, &format!("{name}/"), found);
            found.insert(name, "folder".into());
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            let mut hash = DefaultHasher::new();
            bytes.hash(&mut hash);
            found.insert(name, format!("{} bytes, hash {:x}", bytes.len(), hash.finish()));
        } else {
            found.insert(name, "neither file nor folder".into());
        }
    }
}

/// Whether a path is one of these, or in one of them.
pub fn is_in(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|f| path == *f || path.strip_prefix(f).is_some_and(|rest| rest.starts_with('/')))
}

/// What is gone, changed or new, but for what is in `own`. What a lock is held on may come.
pub fn harm(before: &Listing, after: &Listing, own: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, what) in before.iter().filter(|(path, _)| !is_in(path, own)) {
        match after.get(path) {
            None => found.push(format!("`{path}` is gone")),
            Some(now) if now != what => found.push(format!("`{path}` was {what} and is {now}")),
            Some(_) => {}
        }
    }
    // The folders above what a verb owns are made by it too.
    let above = |path: &String| own.iter().any(|o| o.starts_with(&format!("{path}/")));
    let lock = |path: &String| path.rsplit('/').next().is_some_and(|name| name.contains("lock"));
    let new = after.keys().filter(|path| !before.contains_key(*path) && !is_in(path, own));
    found.extend(new.filter(|path| !above(path) && !lock(path)).map(|path| format!("`{path}` is new")));
    found
}

/// Files that were being written when the writer died.
pub fn temporary(listing: &Listing) -> Vec<String> {
    let hidden = |path: &&String| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.starts_with('.') && name.ends_with(".tmp")
    };
    listing.keys().filter(hidden).cloned().collect()
}

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
