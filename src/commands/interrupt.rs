//! Signals that ask for an end, heard and obeyed in order, so that what was measured or learned is kept.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Once};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::store::quote::shell_quote;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// Set by the first SIGINT (Ctrl-C), SIGTERM or SIGHUP from the first call of this on. The second ends the process at
/// once.
pub(crate) fn interrupted() -> &'static AtomicBool {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)) {
            // In this order the first signal passes the shutdown and arms it. Where a handler cannot be had, the signal
            // ends the process as it always does.
            let _ = flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&INTERRUPTED));
            let _ = flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize);
            let _ = flag::register(signal, Arc::clone(&INTERRUPTED));
        }
    });
    &INTERRUPTED
}

/// Whether whoever started this process wants it to outlive the signal, as `nohup` does with SIGHUP.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: a zeroed `sigaction` is a valid value to be filled in; with a null pointer in the place of a new action the
    // call only asks.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// The exit code of a process that obeyed a signal: 128 and its number, as shells have it (130 for Ctrl-C).
pub(crate) fn exit_code() -> u8 {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => 128 + SIGINT as u8,
        signal => 128 + signal as u8,
    }
}

/// The command as it was typed, without this flag: typed again, it goes on with what is there.
pub(crate) fn typed_again(without: Option<&str>) -> String {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let words = words.filter(|word| Some(word.as_str()) != without).map(|word| shell_quote(&word));
    std::iter::once("headroom".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}
