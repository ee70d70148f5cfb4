//! What memory this process has taken: tensors by a counting allocator, the process by the kernel's own account.

pub(crate) mod bounded;
pub mod trace;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crate::units::Bytes;

/// The system's allocator, with a count of the bytes alive and of their highest number.
///
/// A program that wants the counts, and the bounds on memory of what strangers' tokenizers and templates may take,
/// makes it its global allocator: `#[global_allocator] static ALLOCATOR: Counting = Counting;`. Without it the counts
/// stay zero.
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
        bounded::taking(layout.size());
        // SAFETY: the caller's promise is passed on.
        let p = unsafe { System.alloc(layout) };
        if !p.is_null() {
            grow(layout.size());
        }
        p
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bounded::taking(layout.size());
        // SAFETY: as above.
        let p = unsafe { System.alloc_zeroed(layout) };
        if !p.is_null() {
            grow(layout.size());
        }
        p
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        trace::freed(p as usize);
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) };
        LIVE.fetch_sub(layout.size(), Relaxed);
        bounded::giving(layout.size());
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        bounded::taking(new_size);
        // SAFETY: as above.
        let q = unsafe { System.realloc(p, layout, new_size) };
        if !q.is_null() {
            grow(new_size);
            LIVE.fetch_sub(layout.size(), Relaxed);
            bounded::giving(layout.size());
        }
        q
    }
}

/// Lets what a step frees serve the next step: glibc would hand every large block back to the kernel and have it
/// cleared again page by page, which is a tenth of a step's time. Does nothing elsewhere.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: two settings of the allocator, made before any thread is started. A refusal leaves things as they were.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

/// Hands back to the kernel what was freed: what a thread that is gone had freed would serve nobody else. Does nothing
/// elsewhere.
pub(crate) fn hand_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only looks for pages without a live allocation.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Memory allocated now, bytes, by the counting allocator.
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
/// footprint (what Activity Monitor shows) on macOS. (`getrusage` will not do: on Linux a process inherits the figure
/// of the one that started it.)
pub(crate) fn footprint_peak() -> Bytes {
    of_process(std::process::id()).map_or(Bytes(0), |(_, peak)| peak)
}

/// Current and highest memory of one process; `None` if it is gone.
#[cfg(target_os = "macos")]
pub(crate) fn of_process(pid: u32) -> Option<(Bytes, Bytes)> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage_info_v4>::zeroed();
    // SAFETY: the buffer is of the kind that is asked for, and zeros are a value of it.
    let usage = unsafe {
        let failed = libc::proc_pid_rusage(pid as libc::c_int, libc::RUSAGE_INFO_V4, usage.as_mut_ptr().cast());
        (failed == 0).then(|| usage.assume_init())?
    };
    Some((Bytes(usage.ri_phys_footprint), Bytes(usage.ri_lifetime_max_phys_footprint)))
}

/// Current and highest memory of one process; `None` if it is gone.
#[cfg(not(target_os = "macos"))]
pub(crate) fn of_process(pid: u32) -> Option<(Bytes, Bytes)> {
    parse_status(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

#[cfg(not(target_os = "macos"))]
fn parse_status(status: &str) -> Option<(Bytes, Bytes)> {
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok().map(Bytes::from_kib)
    };
    // A process that is gone but not yet waited for has neither line.
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

#[cfg(all(test, not(target_os = "macos")))]
mod tests {
    use super::*;

    #[test]
    fn recorded_lines_are_read_and_broken_ones_are_not() {
        let status = "Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status), Some((Bytes::from_mib(1), Bytes::from_mib(2))));
        for broken in ["", "VmRSS: 12 kB", "VmRSS:\tx kB\nVmHWM:\t1 kB", "VmRSS:\t1\nVmHWM:\t1 kB"] {
            assert_eq!(parse_status(broken), None);
        }
    }

    #[test]
    fn this_process_has_memory() {
        let (now, peak) = of_process(std::process::id()).unwrap();
        assert!(now > Bytes::from_mib(1) && peak >= now && footprint_peak() >= now);
    }
}
