//! Limits of Linux's control groups, of both versions, along the path from this process's group to the outermost.
//!
//! A limit binds wherever it is set on that path, and what all groups below it have taken counts. Files of the page
//! cache are given back on demand, so they do not count as taken.

use std::fs;
use std::path::{Path, PathBuf};

use crate::units::Bytes;

/// A control group that has a say in the memory of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The groups of the process with these `/proc/PID/cgroup` and `/proc/PID/mountinfo`, its own first. Mount points are
/// looked for under `root`.
pub(crate) fn groups(cgroup: &str, mountinfo: &str, root: &Path) -> Vec<Group> {
    let mut all = Vec::new();
    for line in cgroup.lines() {
        // hierarchy:controllers:path
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = match (hierarchy, controllers) {
            ("0", "") => Version::Two,
            (_, controllers) if controllers.split(',').any(|c| c == "memory") => Version::One,
            _ => continue,
        };
        let Some((inside, mount)) = mountinfo.lines().find_map(|line| mount(line, version)) else { continue };
        let mount = root.join(mount.trim_start_matches('/'));
        // A path that the mount does not show belongs to an outer name space: what is mounted is all there is to see.
        let below = Path::new(path).strip_prefix(&inside).ok().filter(|p| !p.starts_with(".."));
        let own = below.map_or_else(|| mount.clone(), |below| mount.join(below));
        let path = own.ancestors().take_while(|folder| folder.starts_with(&mount));
        all.extend(path.map(|folder| Group { folder: folder.into(), version }));
    }
    all
}

/// (path inside the hierarchy, mount point) of a line of mountinfo that mounts the memory controller.
fn mount(line: &str, version: Version) -> Option<(String, String)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let wanted = match version {
        Version::Two => name == "cgroup2",
        Version::One => name == "cgroup" && options.split(',').any(|o| o == "memory"),
    };
    let mut place = place.split(' ').skip(3);
    // Spaces and the like are written in octal.
    let plain = |text: &str| text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    wanted.then_some(())?;
    Some((plain(place.next()?), plain(place.next()?)))
}

impl Group {
    /// What this group and those in it may take; nothing where it has no limit.
    pub(crate) fn limit(&self) -> Option<Bytes> {
        match self.version {
            Version::Two => [self.number("memory.max"), self.number("memory.high")].into_iter().flatten().min(),
            Version::One => {
                let above = self.stat("hierarchical_memory_limit");
                [self.number("memory.limit_in_bytes"), above].into_iter().flatten().min()
            }
        }
        // Version 1 writes "no limit" as the largest whole number of pages.
        .filter(|limit| limit.0 < i64::MAX as u64 / 2)
    }

    /// Left under the limit. What can be reclaimed is only counted where less than `enough` is left without it, as that
    /// takes longer to ask.
    pub(crate) fn left(&self, enough: Bytes) -> Option<Bytes> {
        let limit = self.limit()?;
        let (usage, files): (&str, &[&str]) = match self.version {
            Version::Two => ("memory.current", &["inactive_file", "active_file", "slab_reclaimable"]),
            Version::One => ("memory.usage_in_bytes", &["total_inactive_file", "total_active_file"]),
        };
        let usage = self.number(usage)?;
        let left = limit.saturating_sub(usage);
        if left >= enough {
            return Some(left);
        }
        let reclaimable = files.iter().filter_map(|f| self.stat(f)).fold(Bytes(0), |sum, bytes| sum + bytes);
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
    }

    /// What this group may still swap out, where it says.
    pub(crate) fn swap_left(&self) -> Option<Bytes> {
        match self.version {
            Version::Two => Some(self.number("memory.swap.max")?.saturating_sub(self.number("memory.swap.current")?)),
            Version::One => {
                let both = self.number("memory.memsw.limit_in_bytes")?;
                Some(both.saturating_sub(self.number("memory.limit_in_bytes")?))
            }
        }
    }

    /// Processes of this group that the kernel has ended for want of memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            Version::Two => "memory.events",
            Version::One => "memory.oom_control",
        };
        field(&self.read(file)?, "oom_kill")
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(file)).ok()
    }

    /// A file that holds one number, or `max`.
    fn number(&self, file: &str) -> Option<Bytes> {
        self.read(file)?.trim().parse().ok().map(Bytes)
    }

    fn stat(&self, name: &str) -> Option<Bytes> {
        field(&self.read("memory.stat")?, name).map(Bytes)
    }
}

/// A value of a file of names and numbers, one pair a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw\n";

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = tree.0.path().join("sys/fs/cgroup").join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            tree
        }

        /// (tightest limit, least left) in MiB.
        fn seen(&self, cgroup: &str, mounts: &str) -> (Option<u64>, Option<u64>) {
            let all = groups(cgroup, mounts, self.0.path());
            let mib = |bytes: Bytes| bytes.0 >> 20;
            let limit = all.iter().filter_map(Group::limit).min().map(mib);
            (limit, all.iter().filter_map(|g| g.left(Bytes(u64::MAX))).min().map(mib))
        }
    }

    fn mib(n: u64) -> String {
        format!("{}\n", n << 20)
    }

    #[test]
    fn the_tightest_limit_on_the_path_counts_in_version_2() {
        let files = |inactive: u64| {
            format!("anon 5\nfile 6\ninactive_file {}\nactive_file 0\nslab_reclaimable {}\n", inactive << 20, 1 << 20)
        };
        let (max, roomy, tight) = ("max\n".to_owned(), mib(1000), mib(100));
        let (current, outer, stat) = (mib(70), mib(900), files(20));
        let tree = Tree::new(&[
            ("unified/a/memory.max", &roomy),
            ("unified/a/memory.current", &outer),
            ("unified/a/b/memory.max", &max),
            ("unified/a/b/memory.high", &tight),
            ("unified/a/b/memory.current", &current),
            ("unified/a/b/memory.stat", &stat),
            ("unified/a/b/memory.events", "low 0\nhigh 4\noom 9\noom_kill 3\noom_group_kill 1\n"),
            ("unified/a/b/c/memory.max", &max),
            ("unified/a/b/c/memory.current", &current),
        ]);
        // 100 - (70 - 20 - 1); the outer one has 100 left, and the innermost has no limit.
        assert_eq!(tree.seen("0::/a/b/c\n", MOUNTS), (Some(100), Some(51)));
        assert_eq!(tree.seen("0::/a\n", MOUNTS), (Some(1000), Some(100)));
        assert_eq!(tree.seen("0::/elsewhere\n", MOUNTS), (None, None));
        let kills = groups("0::/a/b/c\n", MOUNTS, tree.0.path());
        assert_eq!(kills.iter().filter_map(Group::oom_kills).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn the_tightest_limit_on_the_path_counts_in_version_1() {
        let unlimited = "9223372036854771712\n";
        let stat =
            format!("inactive_file 1\nhierarchical_memory_limit {}\ntotal_inactive_file {}\n", 80 << 20, 10 << 20);
        let (current, limit) = (mib(60), mib(200));
        let tree = Tree::new(&[
            ("memory/memory.limit_in_bytes", unlimited),
            ("memory/memory.usage_in_bytes", &limit),
            ("memory/job/memory.limit_in_bytes", &limit),
            ("memory/job/memory.usage_in_bytes", &current),
            ("memory/job/memory.stat", &stat),
            ("memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory/job/step/memory.limit_in_bytes", unlimited),
        ]);
        let own = "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/\n";
        // The limit of a group above that this name space does not show is told by the statistics.
        assert_eq!(tree.seen(own, MOUNTS), (Some(80), Some(30)));
        assert_eq!(tree.seen("4:memory:/\n", MOUNTS), (None, None));
        let kills = groups(own, MOUNTS, tree.0.path());
        assert_eq!(kills.iter().find_map(Group::oom_kills), Some(2));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let (limit, current) = (mib(300), mib(100));
        let tree = Tree::new(&[("memory.max", &limit), ("memory.current", &current)]);
        for (cgroup, mounts) in [
            ("0::/\n", "9 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
            ("0::/docker/ab\n", "9 1 0:1 /docker/ab /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
            ("0::/../other\n", "9 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
            ("0::/outside\n", "9 1 0:1 /docker/ab /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
        ] {
            assert_eq!(tree.seen(cgroup, mounts), (Some(300), Some(200)), "{cgroup}");
        }
    }

    #[test]
    fn absent_and_broken_files_are_no_limit() {
        let tree = Tree::new(&[("memory/a/memory.limit_in_bytes", "many\n"), ("unified/a/memory.max", "-1\n")]);
        for cgroup in ["", "x", "4:memory", "4:memory:/a\n0::/a\n", "4:memory:/b\n"] {
            assert_eq!(tree.seen(cgroup, MOUNTS), (None, None), "{cgroup}");
        }
        assert_eq!(tree.seen("4:memory:/a\n", "nonsense - cgroup"), (None, None));
        // A space in a mount point is written in octal.
        let spaced = r"9 1 0:1 / /sys/fs/my\040groups rw - cgroup2 cgroup rw";
        assert_eq!(groups("0::/\n", spaced, "/".as_ref())[0].folder, Path::new("/sys/fs/my groups"));
    }

    #[test]
    fn swap_is_what_is_left_of_it() {
        let tree = Tree::new(&[("unified/a/memory.swap.max", "300"), ("unified/a/memory.swap.current", "100")]);
        assert_eq!(groups("0::/a\n", MOUNTS, tree.0.path())[0].swap_left(), Some(Bytes(200)));
        assert_eq!(groups("0::/b\n", MOUNTS, tree.0.path())[0].swap_left(), None);
    }
}
