//! What memory this process has taken: tensors by a counting allocator, the process by the kernel's own account.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::units::Bytes;

/// The system's allocator, with a count of the bytes alive and of their highest number.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    // Most allocations are small and set no record: look before taking the cache line.
    if live > PEAK.load(Relaxed) {
        PEAK.fetch_max(live, Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let p = unsafe { System.alloc(layout) };
        if !p.is_null() {
            grow(layout.size());
        }
        p
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let p = unsafe { System.alloc_zeroed(layout) };
        if !p.is_null() {
            grow(layout.size());
        }
        p
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) };
        LIVE.fetch_sub(layout.size(), Relaxed);
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        let q = unsafe { System.realloc(p, layout, new_size) };
        if !q.is_null() {
            grow(new_size);
            LIVE.fetch_sub(layout.size(), Relaxed);
        }
        q
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes alive now.
pub fn live() -> Bytes {
    Bytes(LIVE.load(Relaxed) as u64)
}

/// Highest number of bytes alive at once since the start or the last [`reset_peak`].
pub fn peak() -> Bytes {
    Bytes(PEAK.load(Relaxed) as u64)
}

/// Starts a new record from what is alive now.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Relaxed), Relaxed);
}

/// Highest memory of this process so far, by the kernel's account: resident memory on Linux, the physical
/// footprint (what Activity Monitor shows) on macOS.
#[cfg(target_os = "macos")]
pub fn footprint_peak() -> Bytes {
    use libproc::pid_rusage::{RUsageInfoV4, pidrusage};
    let usage = pidrusage::<RUsageInfoV4>(std::process::id() as i32);
    Bytes(usage.map_or(0, |u| u.ri_lifetime_max_phys_footprint))
}

/// Highest memory of this process so far, by the kernel's account: resident memory on Linux, the physical
/// footprint (what Activity Monitor shows) on macOS.
#[cfg(not(target_os = "macos"))]
pub fn footprint_peak() -> Bytes {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `getrusage` fills the struct it is given, and only a complete one is read.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return Bytes(0);
        }
        usage.assume_init()
    };
    const KIB: u64 = 1024; // ru_maxrss is in KiB on Linux, in bytes on macOS
    Bytes(usage.ru_maxrss as u64 * KIB)
}
