//! A child process that cannot outstay its welcome: its lines, its last words, its end.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::measure::footprint::{self, Footprint};

/// Longer lines are cut into pieces, so that a stream without newlines does not fill our memory.
const LONGEST_LINE: u64 = 1 << 20;
/// Lines of stderr that are kept.
const LAST_WORDS: usize = 20;
/// Between asking a process to end and ending it.
const GRACE: Duration = Duration::from_millis(500);

/// A child in a process group of its own, so that whatever it starts ends with it, and a Ctrl-C at
/// the terminal reaches it only through us.
pub struct ChildGroup {
    child: Child,
    lines: Receiver<String>,
    words: Arc<Mutex<VecDeque<String>>>,
    status: Option<ExitStatus>,
}

/// What the child's stdout has to say.
pub enum Heard {
    /// A line, or a piece of one at the very end.
    Line(String),
    /// Nothing yet.
    Silence,
    /// Nothing any more.
    End,
}

impl ChildGroup {
    /// Starts it and gives it `input`.
    pub fn start(command: &mut Command, input: &str) -> std::io::Result<Self> {
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
        if let Some(mut stdin) = child.stdin.take() {
            // A child that ends without reading is judged by its end, not by this.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(Self { child, lines, words, status: None })
    }

    /// What it says within `patience`.
    pub fn hear(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Disconnected) => Heard::End,
            // Something that it started may keep the pipe open after its end.
            Err(RecvTimeoutError::Timeout) if self.ended() => Heard::End,
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
        }
    }

    /// Its memory, and that of all it started.
    pub fn footprint(&self) -> Footprint {
        footprint::of_group(self.child.id())
    }

    /// The last lines of stderr.
    pub fn last_words(&self) -> Vec<String> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_some()
    }

    /// Waits for its end for a short while, ends it if need be, and says how it ended: nothing for 0, or why.
    pub fn wait(&mut self) -> Option<String> {
        let deadline = Instant::now() + GRACE;
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        if !self.ended() {
            self.end();
            return Some("it closed its output and did not end".into());
        }
        // Its last words may still be on their way through the pipe.
        thread::sleep(Duration::from_millis(20));
        self.status.and_then(describe)
    }

    /// Asks it to end, and ends it if it does not.
    pub fn end(&mut self) {
        if !self.ended() {
            self.signal(libc::SIGTERM);
            let deadline = Instant::now() + GRACE;
            while !self.ended() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        // What it started may live on after it.
        self.signal(libc::SIGKILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: `kill` touches no memory of ours. The group is the child's own (`process_group(0)`), so a
        // negative id reaches it and what it started and nobody else; if all are gone the call fails harmlessly.
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

/// How a process ended, if not well.
fn describe(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exit code {code}")),
        (None, Some(signal)) => Some(match signal {
            libc::SIGKILL => "signal 9 (SIGKILL, as the system sends when memory runs out)".into(),
            libc::SIGSEGV => "signal 11 (SIGSEGV)".into(),
            libc::SIGABRT => "signal 6 (SIGABRT)".into(),
            other => format!("signal {other}"),
        }),
        (None, None) => Some("an unknown end".into()),
    }
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
