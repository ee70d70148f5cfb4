//! Work on files of strangers, kept within bounds.
//!
//! The tokenizer and the chat template of a model are run by libraries that trust them: a few bytes of JSON can ask for
//! gigabytes, panic, or never end. No list of such files is complete, so the bounds are set from outside: the work is
//! done in a thread of its own, whose panics are caught, whose time is watched, and whose allocations and depth of calls
//! the allocator looks at. A thread that goes too far is put to sleep there for good, as an allocator may neither fail
//! (the process would be aborted) nor unwind; what it holds is no more than it was allowed.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;
use std::{fmt, thread};

use crate::units::{Bytes, Seconds};

/// Stack of the thread, bytes. Recursion that allocates is ended far above; what does not allocate (parsing a long
/// template, letting go of a deep value) is as deep as the bounds on sizes and instructions let it be, and has room. Only
/// what is used of it becomes memory.
const STACK: usize = 512 << 20;
/// Stack that may be in use when something is allocated, bytes.
const DEEPEST: usize = 32 << 20;
/// How often the time is looked at. Ticks are counted and not the clock, so that a machine that sleeps or pages stops
/// both sides alike.
const TICK: Duration = Duration::from_millis(10);
/// Characters of a message that are repeated.
const LONGEST_MESSAGE: usize = 300;

/// Limits on the memory and time of a piece of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Memory that may be allocated at one time, bytes.
    pub(crate) memory: usize,
    /// Time that the work may take.
    pub(crate) time: Duration,
}

impl Bounds {
    /// No limits: for work that only puts pieces together, each of which has its own.
    pub(crate) const NONE: Self = Self { memory: isize::MAX as usize, time: Duration::MAX };

    /// For something to be done with a text of that many bytes: twice and more what ordinary texts take.
    pub(crate) fn of(bytes: usize) -> Self {
        Self { memory: (32 << 20) + 512 * bytes, time: Duration::from_secs(2 + bytes as u64 / 100_000) }
    }
}

/// Work that was ended, and why.
#[derive(Debug)]
pub(crate) struct Stopped {
    what: &'static str,
    why: Why,
}

#[derive(Debug)]
enum Why {
    Memory(usize),
    Time(Duration),
    Depth,
    Panic(String),
    Thread(std::io::Error),
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what;
        match &self.why {
            Why::Memory(bytes) => write!(f, "{what} takes more than {} of memory", Bytes(*bytes as u64)),
            Why::Time(time) => write!(f, "{what} takes longer than {}", Seconds(time.as_secs_f64())),
            Why::Depth => write!(f, "{what} is nested too deeply"),
            Why::Panic(message) => write!(f, "{what} cannot be used ({message})"),
            Why::Thread(error) => write!(f, "{what} cannot be tried: no thread could be started ({error})"),
        }
    }
}

/// Does `work` within `bounds`; `what` names it in messages. Within other such work it is a part of it: it has bounds of
/// its own, and if it passes them the whole is ended.
pub(crate) fn run<T, F>(what: &'static str, bounds: Bounds, work: F) -> Result<T, Stopped>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if let Some(watch) = Watch::here() {
        let (outer, left) = (watch.turn(), LEFT.get());
        watch.begin(Turn { what, bounds, ..outer });
        let result = caught(what, work);
        // What it leaves behind is the outer work's.
        let kept = bounds.memory.saturating_sub(LEFT.get());
        watch.begin(outer);
        LEFT.set(left.saturating_sub(kept));
        return result;
    }
    silence_panics();
    let watch = Arc::new(Watch { ended: AtomicU8::new(NO), turn: Mutex::new(Turn { number: 0, what, bounds }) });
    let (sender, receiver) = mpsc::channel();
    let watched = Arc::clone(&watch);
    let inside = move || {
        watched.enter();
        let result = caught(what, work);
        WATCH.set(std::ptr::null());
        // Nobody waits any more where the time was up.
        let _ = sender.send(result);
    };
    match thread::Builder::new().stack_size(STACK).spawn(inside) {
        Ok(_) => watch.wait(&receiver),
        Err(error) => Err(Stopped { what, why: Why::Thread(error) }),
    }
}

/// Memory that the work on this thread may still allocate, bytes.
pub(crate) fn left() -> usize {
    LEFT.get()
}

/// The start of a message that a library made: it may repeat what it was given.
pub(crate) fn shortened(message: &str) -> String {
    let mut short: String = message.chars().take(LONGEST_MESSAGE).collect();
    if short.len() < message.len() {
        short.push_str(" ...");
    }
    short
}

fn caught<T>(what: &'static str, work: impl FnOnce() -> T) -> Result<T, Stopped> {
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    result.map_err(|payload| Stopped { what, why: Why::Panic(message(payload.as_ref())) })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    shortened(text.unwrap_or("it panics"))
}

/// Panics that are caught here are told as errors, and not on stderr.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if WATCH.get().is_null() {
                before(info);
            }
        }));
    });
}

/// How work was ended: not at all, by the allocator's look at memory or depth, or by the one who waits.
const NO: u8 = 0;
const MEMORY: u8 = 1;
const DEPTH: u8 = 2;
const TIME: u8 = 3;

/// What the thread and the one who waits for it both see.
struct Watch {
    ended: AtomicU8,
    turn: Mutex<Turn>,
}

/// The piece of work that is being done.
#[derive(Clone, Copy)]
struct Turn {
    number: u64,
    what: &'static str,
    bounds: Bounds,
}

thread_local! {
    /// Of the work on this thread; null on every other thread.
    static WATCH: Cell<*const Watch> = const { Cell::new(std::ptr::null()) };
    /// Memory that this thread may still allocate, bytes.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// The lowest address that the stack may reach.
    static FLOOR: Cell<usize> = const { Cell::new(0) };
}

impl Watch {
    /// The watch over the work on this thread, if there is one.
    fn here<'a>() -> Option<&'a Self> {
        // SAFETY: the pointer is set by `enter`, and cleared before the thread lets go of what it points to.
        unsafe { WATCH.get().as_ref() }
    }

    /// From here on this thread is watched.
    fn enter(&self) {
        LEFT.set(self.turn().bounds.memory);
        FLOOR.set(stack_pointer() - DEEPEST);
        WATCH.set(self);
    }

    fn turn(&self) -> Turn {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, next: Turn) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = Turn { number: turn.number + 1, ..next };
        LEFT.set(next.bounds.memory);
    }

    fn wait<T>(&self, result: &mpsc::Receiver<Result<T, Stopped>>) -> Result<T, Stopped> {
        let (mut number, mut ticks) = (0, 0);
        loop {
            let received = result.recv_timeout(TICK);
            let turn = self.turn();
            let Bounds { memory, time } = turn.bounds;
            let stopped = |why| Err(Stopped { what: turn.what, why });
            match (received, self.ended.load(Ordering::Acquire)) {
                (Ok(result), _) => return result,
                (Err(RecvTimeoutError::Disconnected), _) => return stopped(Why::Panic("it ended".into())),
                (Err(RecvTimeoutError::Timeout), MEMORY) => return stopped(Why::Memory(memory)),
                (Err(RecvTimeoutError::Timeout), DEPTH) => return stopped(Why::Depth),
                (Err(RecvTimeoutError::Timeout), _) => {}
            }
            ticks = if turn.number == number { ticks + 1 } else { 0 };
            number = turn.number;
            if TICK * ticks > time {
                // If it ever allocates again, it stops there.
                self.ended.store(TIME, Ordering::Release);
                return stopped(Why::Time(time));
            }
        }
    }

    /// Puts this thread to sleep for good.
    fn end(&self, how: u8) -> ! {
        // It may have been ended for its time already.
        let _ = self.ended.compare_exchange(NO, how, Ordering::Release, Ordering::Relaxed);
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

#[inline(always)]
fn stack_pointer() -> usize {
    let here = 0u8;
    &raw const here as usize
}

/// The allocator is about to take memory. It does not come back where the work on this thread has gone too far.
#[inline]
pub(super) fn taking(bytes: usize) {
    if !WATCH.get().is_null() {
        look(bytes);
    }
}

fn look(bytes: usize) {
    let Some(watch) = Watch::here() else { return };
    match LEFT.get().checked_sub(bytes) {
        None => watch.end(MEMORY),
        Some(_) if stack_pointer() < FLOOR.get() => watch.end(DEPTH),
        Some(_) if watch.ended.load(Ordering::Relaxed) != NO => watch.end(TIME),
        Some(left) => LEFT.set(left),
    }
}

/// The allocator has been given memory back.
#[inline]
pub(super) fn giving(bytes: usize) {
    if !WATCH.get().is_null() {
        LEFT.set(LEFT.get().saturating_add(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bounds = Bounds { memory: 1 << 20, time: Duration::from_millis(200) };

    fn said<T: Send + fmt::Debug + 'static>(work: impl FnOnce() -> T + Send + 'static) -> String {
        run("it", SMALL, work).unwrap_err().to_string()
    }

    fn deep(n: u64) -> Box<u64> {
        if n == 0 { Box::new(0) } else { Box::new(*deep(n - 1) + 1) }
    }

    fn endless(n: u64) -> u64 {
        let held = std::hint::black_box(Box::new(n)); // not optimised away
        if n == u64::MAX { 0 } else { *held + endless(std::hint::black_box(n + 1)) }
    }

    #[test]
    fn work_within_its_bounds_is_done() {
        assert_eq!(run("it", SMALL, || vec![7u8; 1 << 19].len()).unwrap(), 1 << 19);
        // What is freed counts no more, in however many pieces.
        let held = run("it", SMALL, || (0..100).map(|_| vec![0u8; 1 << 19].len()).max());
        assert_eq!(held.unwrap(), Some(1 << 19));
        assert_eq!(*run("it", SMALL, || deep(1000)).unwrap(), 1000);
    }

    #[test]
    fn work_that_goes_too_far_is_ended_and_says_how() {
        assert_eq!(said(|| vec![0u8; 1 << 21]), "it takes more than 1.0 MiB of memory");
        assert_eq!(said(|| vec![0u8; 1 << 45]), "it takes more than 1.0 MiB of memory");
        let growing = || {
            std::iter::repeat_with(|| Box::new(0u64)).fold(Vec::new(), |mut all, one| {
                all.push(one);
                all
            })
        };
        assert_eq!(said(growing), "it takes more than 1.0 MiB of memory");
        assert_eq!(
            said(|| loop {
                std::hint::spin_loop()
            }),
            "it takes longer than 0.2 s"
        );
        assert_eq!(said(|| panic!("a {}", "reason")), "it cannot be used (a reason)");
        let bounds = Bounds { memory: 1 << 40, ..Bounds::of(0) };
        assert_eq!(run("it", bounds, || endless(0)).unwrap_err().to_string(), "it is nested too deeply");
    }

    #[test]
    fn parts_have_bounds_of_their_own() {
        let parts = run("all", Bounds::NONE, || {
            let parts: Vec<Vec<u8>> = (0..4).map(|_| run("a part", SMALL, || vec![1u8; 1 << 19]).unwrap()).collect();
            let panics = run("a part", SMALL, || panic!("no")).unwrap_err().to_string();
            (parts.concat().len(), panics)
        });
        assert_eq!(parts.unwrap(), (1 << 21, "a part cannot be used (no)".to_owned()));
        let ended = run("all", Bounds::NONE, || run("a part", SMALL, || vec![1u8; 1 << 21].len()).unwrap());
        assert_eq!(ended.unwrap_err().to_string(), "a part takes more than 1.0 MiB of memory");
        // What parts leave behind counts for the whole.
        let ended = run("all", Bounds { memory: 3 << 18, ..SMALL }, || {
            let part = || run("a part", SMALL, || vec![1u8; 1 << 19]).unwrap();
            let held = [part(), part()];
            held.concat().len()
        });
        assert_eq!(ended.unwrap_err().to_string(), "all takes more than 768 KiB of memory");
    }
}
