//! How much memory the system can still give to this process and those that it starts.
//!
//! Linux ends a process when the machine, or a control group above it, has nothing left. macOS pages instead, and says
//! how it fares by its pressure level; there is nothing to stand in front of, so a room there is without walls.

use std::time::Duration;

#[cfg(not(target_os = "macos"))]
use crate::measure::cgroup;
#[cfg(not(target_os = "macos"))]
use crate::measure::cgroup::Group;
use crate::units::Bytes;

/// Time between two checks of memory: short beside the time in which it fills.
pub(crate) const LOOK: Duration = Duration::from_millis(25);
/// Time between two checks of memory where little is left.
const CLOSE_LOOK: Duration = Duration::from_millis(1);
/// Memory that a process can take at the most, bytes/s: two threads that touch new pages take a quarter of it. What is
/// left lasts for several looks.
const TAKING: f64 = 8e9;

/// Share of the memory at which it counts as gone, and the least and the most that this comes to, MiB. Of 110 runs that
/// were planned to just fit (`results/safety`), each left 5.5 % or more.
const RESERVE: f64 = 1.0 / 24.0;
const LEAST_RESERVE: u64 = 8;
const LARGEST_RESERVE: u64 = 256;

/// Memory that is left under one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spare {
    /// Memory left under the limit, bytes.
    pub left: Bytes,
    /// The limit itself, bytes.
    pub of: Bytes,
}

impl Spare {
    fn reserve(self) -> Bytes {
        self.of.scale(RESERVE).clamp(Bytes::from_mib(LEAST_RESERVE), Bytes::from_mib(LARGEST_RESERVE))
    }

    /// Whether so little is left that the kernel is about to end a process.
    pub(crate) fn is_gone(self) -> bool {
        self.left < self.reserve()
    }

    /// Time until memory is to be checked again.
    pub(crate) fn pause(self) -> Duration {
        Duration::from_secs_f64(self.left.as_f64() / TAKING).clamp(CLOSE_LOOK, LOOK)
    }
}

/// Memory limits that apply to this process, found once and checked as often as needed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room {
    #[cfg(not(target_os = "macos"))]
    groups: Vec<Group>,
}

#[cfg(target_os = "macos")]
impl Room {
    /// The limits of this process: none on macOS.
    pub(crate) fn here() -> Self {
        Self::default()
    }

    /// Memory left under the limits of the groups: not known on macOS.
    pub(crate) fn left(&self) -> Option<Bytes> {
        None
    }

    /// The limit that is nearest to its end: not known on macOS.
    pub(crate) fn spare(&self) -> Option<Spare> {
        None
    }

    /// Number of processes that the kernel has ended in these groups for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        0
    }
}

#[cfg(not(target_os = "macos"))]
impl Room {
    /// The limits of this process, from its control groups.
    pub(crate) fn here() -> Self {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        let (cgroup, mountinfo) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
        Self { groups: cgroup::groups(&cgroup, &mountinfo, "/".as_ref()) }
    }

    /// The least limit on the memory of this process, bytes, if there is one.
    pub(crate) fn limit(&self) -> Option<Bytes> {
        self.groups.iter().filter_map(Group::limit).min()
    }

    /// Limit of the outermost group that can be seen, bytes: of a container, all that it has.
    pub(crate) fn outermost(&self) -> Option<Bytes> {
        self.groups.last()?.limit()
    }

    /// Left under the limits of the groups and of the address space, beside what the system as a whole has left.
    pub(crate) fn left(&self) -> Option<Bytes> {
        let groups = self.groups.iter().filter_map(|g| g.left(Bytes(u64::MAX)));
        groups.chain(address_space_left()).min()
    }

    /// The limit that is nearest to its end. What can be swapped out counts as left: the kernel ends nobody before.
    pub(crate) fn spare(&self) -> Option<Spare> {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let [total, available, swap] = ["MemTotal:", "MemAvailable:", "SwapFree:"].map(|name| meminfo(&text, name));
        let swap = swap.unwrap_or_default();
        let machine = total.zip(available).map(|(of, left)| Spare { left: left + swap, of });
        let of_group = |group: &Group| {
            let of = group.limit()?;
            let reserve = Spare { left: of, of }.reserve();
            let swap = group.swap_left().unwrap_or(swap).min(swap);
            Some(Spare { left: group.left(reserve.scale(4.0))? + swap, of })
        };
        let spares = machine.into_iter().chain(self.groups.iter().filter_map(of_group));
        spares.min_by_key(|s| s.left.saturating_sub(s.reserve()))
    }

    /// Number of processes that the kernel has ended in these groups for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.groups.iter().filter_map(Group::oom_kills).sum()
    }
}

#[cfg(not(target_os = "macos"))]
fn meminfo(text: &str, name: &str) -> Option<Bytes> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok().map(Bytes::from_kib)
}

/// What a process like this one could hold under `ulimit -v`: the limit, less the addresses that hold nothing.
#[cfg(not(target_os = "macos"))]
fn address_space_left() -> Option<Bytes> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `getrlimit` writes to the struct it is given and to nothing else.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
    if !known || limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let empty = meminfo(&status, "VmSize:")?.saturating_sub(meminfo(&status, "VmRSS:")?);
    Some(Bytes(limit.rlim_cur).saturating_sub(empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_share_within_bounds() {
        for (of, gone, still) in [(100, 7, 9), (1200, 49, 51), (64 * 1024, 255, 257)] {
            let spare = |left| Spare { left: Bytes::from_mib(left), of: Bytes::from_mib(of) };
            assert!(spare(gone).is_gone() && !spare(still).is_gone(), "{of}");
        }
    }

    #[test]
    fn the_less_is_left_the_sooner_is_the_next_look() {
        let pause = |mib| Spare { left: Bytes::from_mib(mib), of: Bytes::from_gib(8.0) }.pause();
        assert_eq!([pause(0), pause(4000)], [CLOSE_LOOK, LOOK]);
        assert!(CLOSE_LOOK < pause(40) && pause(40) < LOOK);
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn this_machine_has_room_left() {
        let spare = Room::here().spare().unwrap();
        assert!(spare.left > Bytes(0) && spare.left < spare.of + Bytes::from_gib(1e6), "{spare:?}");
        assert_eq!(meminfo("MemTotal:   2048 kB\nX: 1 kB\n", "MemTotal:"), Some(Bytes::from_mib(2)));
        assert_eq!(meminfo("MemTotal: many\n", "MemTotal:"), None);
    }
}
