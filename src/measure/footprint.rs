//! The memory of a process group from outside, by the kernel's own account.
//!
//! A group and not a process, because an engine may start another (a Python that trains). Linux:
//! resident memory, mapped files included (`VmRSS`, and `VmHWM` for its highest). macOS: the physical
//! footprint, which is what Activity Monitor shows and what the system kills by.

use crate::memory::of_process;
use crate::units::Bytes;

/// Memory footprint of a process group, now and at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Current footprint of all processes of the group together, bytes.
    pub now: Bytes,
    /// Highest footprint that any one process of the group ever had, bytes.
    pub peak: Bytes,
}

impl Footprint {
    fn add(self, now: Bytes, peak: Bytes) -> Self {
        Self { now: self.now + now, peak: self.peak.max(peak) }
    }

    /// The larger of the current footprint of the group and the peak of one process, bytes.
    pub(crate) fn highest(self) -> Bytes {
        self.now.max(self.peak)
    }
}

/// Footprint of process group `group`; zero where it has no processes.
pub(crate) fn of_group(group: u32) -> Footprint {
    members(group).into_iter().filter_map(of_process).fold(Footprint::default(), |sum, (now, peak)| sum.add(now, peak))
}

#[cfg(target_os = "macos")]
fn members(group: u32) -> Vec<u32> {
    let mut pids = vec![0i32; 64];
    loop {
        let bytes = libc::c_int::try_from(size_of_val(pids.as_slice())).unwrap_or(libc::c_int::MAX);
        // SAFETY: the buffer is as long as it is said to be.
        let count = unsafe { libc::proc_listpgrppids(group as libc::pid_t, pids.as_mut_ptr().cast(), bytes) };
        let count = usize::try_from(count).unwrap_or(0);
        // A buffer that was filled may have been too short.
        if count < pids.len() {
            return pids[..count].iter().filter_map(|pid| u32::try_from(*pid).ok()).collect();
        }
        pids.resize(2 * pids.len(), 0);
    }
}

#[cfg(not(target_os = "macos"))]
fn members(group: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        group_of(&stat) == Some(group)
    })
    .collect()
}

/// The process group in a line of /proc/PID/stat. The name before it may hold spaces and brackets.
#[cfg(not(target_os = "macos"))]
fn group_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(all(test, not(target_os = "macos")))]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_read_past_any_name() {
        assert_eq!(group_of("12 (a) b) S 1 77 77 0 -1"), Some(77));
        assert_eq!(group_of("12 (a S 1"), None);
    }

    #[test]
    fn an_absent_process_has_no_memory() {
        assert_eq!(of_process(u32::MAX), None);
        assert_eq!(of_group(u32::MAX), Footprint::default());
    }
}
