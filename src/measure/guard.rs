//! A thread that watches the memory of its own process while a step is taken, because nobody else can.
//!
//! Two things can happen. The footprint goes over the limit that was set: `Guard::exceeded` says so from then on, and
//! the run stops with a checkpoint when its step is done. Or the system has next to nothing left, and the kernel would
//! soon end the process without a word: then the guard does, after the caller's last words are written. The checkpoint
//! before is whole, as checkpoints are put in place all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::measure::room::{LOOK, Room, Spare};
use crate::memory::of_process;
use crate::units::Bytes;

/// Exit code of a process that its guard ends: the run does not fit.
const DOES_NOT_FIT: i32 = 1;

/// A thread that watches the memory of this process until the guard is dropped.
pub struct Guard {
    over: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Starts to watch this process. `limit` is the footprint that is not to be exceeded, where there is one.
    ///
    /// `last_words` is called with the footprint when memory is about to run out, and the process ends with exit code 1
    /// when it returns. It runs beside the training on what little memory is left: a file with a text that was made
    /// beforehand is what it should write, and no more.
    pub fn start(limit: Option<Bytes>, last_words: impl FnOnce(Bytes) + Send + 'static) -> Self {
        let room = Room::here();
        let sample = move || {
            let footprint = of_process(std::process::id()).map_or(Bytes(0), |(now, peak)| now.max(peak));
            Sample { footprint, spare: room.spare() }
        };
        let over = Arc::new(AtomicU64::new(0));
        let watcher = Watcher { limit, over: Arc::clone(&over), sample };
        let done = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&done);
        let thread = thread::Builder::new().name("guard".into()).spawn(move || {
            if let Some(footprint) = watch(&watcher, &end) {
                last_words(footprint);
                // SAFETY: ends the process at once, whatever its other threads do; nothing of ours runs after it.
                unsafe { libc::_exit(DOES_NOT_FIT) };
            }
        });
        // Without a thread to be had, the looks after each step are all there is.
        Self { over, done, thread: thread.ok() }
    }

    /// Highest footprint seen, once it was over the limit.
    pub(crate) fn exceeded(&self) -> Option<Bytes> {
        Some(Bytes(self.over.load(Ordering::Relaxed))).filter(|b| *b > Bytes(0))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Looks until there is nothing left, and says what the footprint was then; or until it is told to end.
fn watch(watcher: &Watcher<impl Fn() -> Sample>, end: &AtomicBool) -> Option<Bytes> {
    while !end.load(Ordering::Relaxed) {
        match watcher.look() {
            Look::Gone(footprint) => return Some(footprint),
            Look::Fine(spare) => thread::park_timeout(spare.map_or(LOOK, Spare::pause)),
        }
    }
    None
}

/// Footprint and spare memory at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    footprint: Bytes,
    spare: Option<Spare>,
}

/// Whether memory was left when it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// There is room; how much, where that is known.
    Fine(Option<Spare>),
    /// There is no room left; holds the footprint at that moment.
    Gone(Bytes),
}

struct Watcher<S> {
    limit: Option<Bytes>,
    over: Arc<AtomicU64>,
    sample: S,
}

impl<S: Fn() -> Sample> Watcher<S> {
    fn look(&self) -> Look {
        let Sample { footprint, spare } = (self.sample)();
        if self.limit.is_some_and(|limit| footprint > limit) {
            self.over.fetch_max(footprint.0, Ordering::Relaxed);
        }
        if spare.is_some_and(Spare::is_gone) { Look::Gone(footprint) } else { Look::Fine(spare) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn mib(n: u64) -> Bytes {
        Bytes::from_mib(n)
    }

    /// A watcher over a footprint and what is left, which the test sets.
    fn watcher(limit: Option<Bytes>, at: &Cell<(u64, u64)>) -> Watcher<impl Fn() -> Sample> {
        let sample = || {
            let (footprint, left) = at.get();
            Sample { footprint: mib(footprint), spare: Some(Spare { left: mib(left), of: mib(1200) }) }
        };
        Watcher { limit, over: Arc::default(), sample }
    }

    #[test]
    fn over_the_limit_is_remembered_with_its_highest() {
        let at = Cell::new((100, 900));
        let watcher = watcher(Some(mib(200)), &at);
        let over = || Bytes(watcher.over.load(Ordering::Relaxed));
        for (footprint, expected) in [(100, 0), (200, 0), (250, 250), (400, 400), (50, 400)] {
            at.set((footprint, 900 - footprint));
            assert!(matches!(watcher.look(), Look::Fine(Some(_))));
            assert_eq!(over(), mib(expected), "at {footprint}");
        }
    }

    #[test]
    fn nothing_left_is_the_end_whatever_the_limit() {
        let at = Cell::new((100, 900));
        for limit in [None, Some(mib(200)), Some(mib(5000))] {
            let watcher = watcher(limit, &at);
            at.set((100, 51));
            assert!(matches!(watcher.look(), Look::Fine(_)));
            // Others took it: the kernel does not care whose fault it is.
            at.set((100, 49));
            assert_eq!(watcher.look(), Look::Gone(mib(100)));
            assert_eq!(watch(&watcher, &AtomicBool::new(false)), Some(mib(100)));
        }
    }

    #[test]
    fn without_a_limit_nothing_is_over_it() {
        let watcher =
            Watcher { limit: None, over: Arc::default(), sample: || Sample { footprint: mib(9999), spare: None } };
        assert_eq!(watcher.look(), Look::Fine(None));
        assert_eq!(watcher.over.load(Ordering::Relaxed), 0);
        assert_eq!(watch(&watcher, &AtomicBool::new(true)), None);
    }

    #[test]
    fn it_watches_this_process_until_it_is_dropped() {
        let guard = Guard::start(Some(Bytes(1)), |_| ());
        while guard.exceeded().is_none() {
            thread::yield_now();
        }
        assert!(guard.exceeded() > Some(mib(1)));
        let roomy = Guard::start(None, |_| ());
        assert_eq!(roomy.exceeded(), None);
    }
}
