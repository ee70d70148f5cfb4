//! A child process that cannot outstay its welcome: its lines, its last words, its end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::measure::devices;
use crate::measure::footprint::{self, Footprint};

/// A command that runs this program once more, on the device that this process has chosen.
pub(crate) fn this_program() -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::Engine {
        engine: "trial".into(),
        reason: format!("the headroom program cannot be found: {e}"),
    })?;
    let mut command = Command::new(program);
    command.env(devices::VARIABLE, devices::chosen().name());
    Ok(command)
}

/// What a child inherits of the environment: where things are, how text is written, and what decides how many threads
/// and which allocator it has. Whatever else there is, tokens among it, is none of its business.
const INHERITED: [&str; 14] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "LANGUAGE",
    "TERM",
    "TZ",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "GLIBC_TUNABLES",
];
/// Prefixes of further environment variables that a child inherits.
const INHERITED_PREFIXES: [&str; 6] = ["LC_", "OMP_", "MALLOC_", "LD_", "DYLD_", "HEADROOM_"];

/// Longer lines are cut into pieces, so that a stream without newlines does not fill our memory.
const LONGEST_LINE: u64 = 1 << 20;
/// Number of last lines of stderr that are kept.
const LAST_WORDS: usize = 20;
/// Time between asking a process to end and killing it.
const GRACE: Duration = Duration::from_millis(500);

/// A child in a process group of its own, so that whatever it starts ends with it, and a Ctrl-C at
/// the terminal reaches it only through us.
///
/// It ends with us too, however we end: on Linux the kernel sees to it, and elsewhere a child can tell by its stdin, which
/// stays open for as long as we live.
pub(crate) struct ChildGroup {
    child: Child,
    /// Stdin of the child, which closes when this process ends and so tells the child.
    _life_line: Option<ChildStdin>,
    lines: Receiver<String>,
    words: Arc<Mutex<VecDeque<String>>>,
    /// Exit status, once the child was waited for; from then on its number may be somebody else's.
    status: Option<ExitStatus>,
}

/// How a process ended that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Exit code or signal, in words.
    pub how: String,
    /// Whether SIGKILL ended the process, for which no reason is given.
    pub killed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// The process has ended and is still to be waited for.
    Ended,
    /// The process has ended and there is nothing to wait for.
    Gone,
}

/// Start of the description of a process that SIGKILL ended.
pub(crate) const KILLED: &str = "signal 9";

/// What was read from the child's stdout.
pub(crate) enum Heard {
    /// A line, or a piece of one at the very end.
    Line(String),
    /// No line arrived in time.
    Silence,
    /// The stream has ended.
    End,
}

impl ChildGroup {
    /// Starts the command and writes `input` and a newline to its stdin.
    pub(crate) fn start(command: &mut Command, input: &str) -> std::io::Result<Self> {
        keep_only_inherited(command);
        end_with_parent(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (to, lines) = channel();
        let words = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || read_lines(stdout, &to));
        }
        if let Some(stderr) = child.stderr.take() {
            let (to, lines) = channel();
            let kept = Arc::clone(&words);
            thread::spawn(move || read_lines(stderr, &to));
            thread::spawn(move || lines.iter().for_each(|line| keep(&kept, line)));
        }
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // A child that ends without reading is judged by its end, not by this.
            let _ = stdin.write_all(format!("{input}\n").as_bytes());
        }
        Ok(Self { child, _life_line: stdin, lines, words, status: None })
    }

    /// Reads the next line of stdout, waiting no longer than `patience`.
    pub(crate) fn hear(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Disconnected) => Heard::End,
            // What it said last may not have been read yet; but something that it started may keep the pipe open.
            Err(RecvTimeoutError::Timeout) if self.ended() => {
                self.lines.recv_timeout(GRACE).map_or(Heard::End, Heard::Line)
            }
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
        }
    }

    /// Footprint of the child and of all processes it started.
    pub(crate) fn footprint(&self) -> Footprint {
        footprint::of_group(self.child.id())
    }

    /// Last lines that the child wrote to stderr.
    pub(crate) fn last_words(&self) -> Vec<String> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn ended(&self) -> bool {
        self.status.is_some() || self.state() != State::Running
    }

    /// How it is, without waiting for it, so that its number stays its own.
    fn state(&self) -> State {
        // SAFETY: a `siginfo_t` of zeroes is a valid value of that plain struct.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `waitid` writes to the struct it is given and, with WNOWAIT, changes nothing else.
        let result = unsafe {
            libc::waitid(libc::P_PID, self.child.id(), &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
        };
        match (result, info.si_signo) {
            (0, libc::SIGCHLD) => State::Ended,
            (0, _) => State::Running,
            // Where SIGCHLD is ignored the kernel takes leave of children by itself.
            _ => State::Gone,
        }
    }

    fn wait_ended(&self) -> bool {
        let deadline = Instant::now() + GRACE;
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        self.ended()
    }

    /// Waits for its end for a short while, ends it if need be, and says how it ended: nothing for 0, or why.
    pub(crate) fn wait(&mut self) -> Option<End> {
        if !self.wait_ended() {
            self.end();
            return Some(End { how: "it closed its output without ending".into(), killed: false });
        }
        // Its last words may still be on their way through the pipe.
        thread::sleep(Duration::from_millis(20));
        self.reap();
        self.status.and_then(describe)
    }

    /// Asks the child to end, and kills it if it does not.
    pub(crate) fn end(&mut self) {
        if !self.ended() {
            self.signal(libc::SIGTERM);
            self.wait_ended();
        }
        self.reap();
    }

    /// Ends what it started, which may live on after it, and then takes leave of it: in this order, because the group's
    /// number is free for others once its leader was waited for.
    fn reap(&mut self) {
        if self.status.is_none() && self.state() != State::Gone {
            self.signal(libc::SIGKILL);
            self.status = self.child.wait().ok();
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: `kill` touches no memory of ours. The group is the child's own (`process_group(0)`) and the child was
        // not waited for, so a negative id reaches it and what it started and nobody else.
        unsafe {
            libc::kill(-(self.child.id() as i32), signal);
        }
    }
}

impl Drop for ChildGroup {
    fn drop(&mut self) {
        self.end();
    }
}

/// Leaves a command the variables of the list and those that were set for it.
fn keep_only_inherited(command: &mut Command) {
    let set: Vec<(OsString, Option<OsString>)> =
        command.get_envs().map(|(name, value)| (name.into(), value.map(Into::into))).collect();
    command.env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| is_inherited(&name.to_string_lossy())));
    for (name, value) in set {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

fn is_inherited(name: &str) -> bool {
    INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Has the kernel kill the child when we end, even by SIGKILL; more exactly, when the thread ends that started it, which
/// is the one that listens to it.
#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || {
        // SAFETY: two system calls that touch no memory; nothing else happens between fork and exec.
        let (asked, alive) = unsafe {
            (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong), libc::getppid() as u32 == parent)
        };
        // Without the help of the kernel its stdin still tells it. If we ended before it asked, nobody will.
        if asked != 0 || alive { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: the closure makes system calls that are safe after a fork, and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_: &mut Command) {}

/// How a process ended, if not well.
fn describe(status: ExitStatus) -> Option<End> {
    let killed = status.signal() == Some(libc::SIGKILL);
    let how = match (status.code(), status.signal()) {
        (Some(0), _) => return None,
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match signal {
            libc::SIGKILL => format!("{KILLED} (SIGKILL, sent when memory runs out)"),
            libc::SIGSEGV => "signal 11 (SIGSEGV)".into(),
            libc::SIGABRT => "signal 6 (SIGABRT)".into(),
            other => format!("signal {other}"),
        },
        (None, None) => "an unknown end".into(),
    };
    Some(End { how, killed })
}

fn keep(words: &Mutex<VecDeque<String>>, line: String) {
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    if !line.trim().is_empty() {
        words.push_back(line);
    }
    while words.len() > LAST_WORDS {
        words.pop_front();
    }
}

fn read_lines(from: impl Read, to: &Sender<String>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(text).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
