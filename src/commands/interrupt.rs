//! A Ctrl-C that is asked about, so that what was measured or learned is kept.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Set by the first Ctrl-C (or SIGTERM) from the first call of this on. The second ends the process at once.
pub fn interrupted() -> &'static AtomicBool {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // Where a handler cannot be had, Ctrl-C ends the process as it always does.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
    });
    &INTERRUPTED
}
