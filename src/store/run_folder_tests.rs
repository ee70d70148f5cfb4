//! Run folders, temporary files and checksums.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::run_folder::{Activity, Holder};
use super::tests::strings;
use super::*;
use crate::error::Error;

#[test]
fn a_run_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    assert!(RunFolder::open(&path).unwrap_err().to_string().contains("is not a run folder"));
    let folder = RunFolder::create(&path).unwrap().folder;
    RunFolder::create(&path).unwrap();
    write(&folder.config(), b"x").unwrap();
    let error = RunFolder::create(&path).unwrap_err();
    assert!(matches!(error, Error::RunExists { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--resume"));
    assert_eq!(RunFolder::open(&path).unwrap().name(), "run");
    assert_eq!(RunFolder::all_in(dir.path()).unwrap(), [folder]);
    assert_eq!(RunFolder::all_in(&dir.path().join("absent")).unwrap(), []);
}

#[test]
fn a_run_has_its_folder_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/run");
    for foreign in ["thesis.txt", "checkpoints", ".hidden"] {
        let shared = dir.path().join(format!("shared-{foreign}"));
        make_folder(&shared.join(foreign)).unwrap();
        let error = RunFolder::create(&shared).unwrap_err();
        assert!(matches!(&error, Error::NotEmpty { holds, .. } if holds == foreign), "{error}");
        assert!(!shared.join("run.lock").exists() && shared.join(foreign).exists());
    }
    let seen = dir.path().join("seen");
    write(&seen.join(".DS_Store"), b"x").unwrap();
    RunFolder::create(&seen).unwrap().discard().unwrap();
    assert_eq!(files_in(&seen).unwrap(), [seen.join(".DS_Store")]);
    // While one works there nobody else does, and afterwards everybody may.
    let mut new = RunFolder::create(&path).unwrap();
    assert_eq!(new.folder.activity(), Activity::Running(None));
    let holder = Holder { pid: 7, unix_time: 8, oom_kills: 9, gave_up: false };
    new.lock.hold(holder).unwrap();
    let error = RunFolder::create(&path).unwrap_err();
    assert!(matches!(error, Error::InUse { pid: Some(7), .. }), "{error}");
    assert_eq!(new.folder.activity(), Activity::Running(Some(holder)));
    write(&new.folder.config(), b"x").unwrap();
    write(&path.join("thesis.txt"), b"x").unwrap();
    // What was made is taken back, and nothing else.
    new.discard().unwrap();
    assert_eq!(files_in(&path).unwrap(), [path.join("thesis.txt")]);
    let empty = dir.path().join("new/run");
    RunFolder::create(&empty).unwrap().discard().unwrap();
    assert!(!dir.path().join("new").exists());
    let there = dir.path().join("there");
    make_folder(&there).unwrap();
    RunFolder::create(&there).unwrap().discard().unwrap();
    assert!(there.is_dir() && files_in(&there).unwrap().is_empty());
}

#[test]
fn a_holder_that_was_killed_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap().folder;
    let holder = Holder { pid: 7, unix_time: 8, oom_kills: 9, gave_up: false };
    let mut lock = folder.lock().unwrap();
    assert_eq!(lock.killed(), None);
    lock.hold(holder).unwrap();
    // A kill lets go of the lock and leaves what it says.
    let text = fs::read(dir.path().join("run.lock")).unwrap();
    drop(lock);
    assert_eq!(folder.activity(), Activity::Idle);
    fs::write(dir.path().join("run.lock"), text).unwrap();
    assert_eq!(folder.activity(), Activity::Ended(holder));
    assert_eq!(folder.lock().unwrap().killed(), Some(holder));
    // Looking at it changes nothing; taking it over and giving it back does.
    let mut lock = folder.lock().unwrap();
    lock.hold(holder).unwrap();
    drop(lock);
    assert_eq!(folder.lock().unwrap().killed(), None);
}

#[test]
fn a_run_writes_through_no_link() {
    for name in ["metrics.jsonl", "run.lock", "outcome.json", "checkpoints", "adapter"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(&dir.path().join("run")).unwrap().folder;
        write(&folder.config(), b"x").unwrap();
        let _ = fs::remove_file(folder.path().join(name));
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(name)).unwrap();
        let error = folder.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}` is a link")), "{error}");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}

#[test]
fn numbered_folders_are_the_first_that_are_free() {
    let dir = tempfile::tempdir().unwrap();
    let first = RunFolder::create_numbered(dir.path(), "a b").unwrap();
    assert_eq!(first.folder.path(), dir.path().join("a-b-1"));
    let second = RunFolder::create_numbered(dir.path(), "a b").unwrap();
    assert_eq!(second.folder.path(), dir.path().join("a-b-2"));
}

#[test]
fn what_a_killed_process_left_is_cleared_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join(".a.json.headroom-123-4.tmp");
    fs::write(&left, "half").unwrap();
    let folder = dir.path().join(".export.headroom-123-5.tmp");
    make_folder(&folder.join("inside")).unwrap();
    let kept = [".a.tmp", ".a.headroom-x-1.tmp", "a.headroom-1-2.tmp", ".a.headroom-1-2", ".a.headroom-1.tmp"];
    kept.iter().for_each(|name| fs::write(dir.path().join(name), "mine").unwrap());
    // One that is still written to, and a link with such a name.
    let growing = stream::Streamed::create(&dir.path().join("model.gguf")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join(".l.headroom-1-1.tmp")).unwrap();
    write(&dir.path().join("b.json"), b"{}").unwrap();
    let names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| temporary::is_temporary(name))
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(kept.iter().all(|name| dir.path().join(name).exists()) && !left.exists() && !folder.exists());
    growing.finish().unwrap();
    assert!(dir.path().join("model.gguf").is_file());
}

#[test]
fn long_names_and_planted_links_are_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("\u{e4}".repeat(120) + "x.json");
    write(&long, b"{}").unwrap();
    assert_eq!(fs::read(&long).unwrap(), b"{}");
    // A link in the place of a result is replaced; what it led to stays as it was.
    let (victim, link) = (dir.path().join("victim"), dir.path().join("index.html"));
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    write(&link, b"page").unwrap();
    assert_eq!((fs::read(&victim).unwrap(), fs::read(&link).unwrap()), (b"precious".to_vec(), b"page".to_vec()));
}

#[test]
fn a_folder_is_exchanged_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("export");
    for text in ["old", "new"] {
        let staged = stream::Staged::create(&path).unwrap();
        fs::write(staged.folder().join(text), text).unwrap();
        staged.finish().unwrap();
    }
    assert_eq!(files_in(&path).unwrap(), [path.join("new")]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(stream::Staged::create(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn pipes_devices_and_folders_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("config.json");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the name is a string that ends in a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let run = RunFolder::create(&dir.path().join("run")).unwrap().folder;
    fs::rename(&pipe, run.path().join("run.lock")).unwrap();
    assert_eq!(run.activity(), Activity::Idle);
    fs::rename(run.path().join("run.lock"), &pipe).unwrap();
    let link = dir.path().join("endless");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    for (path, why) in [(&*pipe, "a pipe or a device"), (&link, "a pipe or a device"), (dir.path(), "a folder")] {
        let error = read_text(path).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(why), "{error}: {cause}");
        assert!(read_lines(path).is_err() && checksums::of_file(path).is_err());
    }
}

#[test]
fn checksums_see_every_change() {
    use checksums::{Checked, SUMS};
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(checksums::check(dir.path(), &["a", "b"]), Checked::Unknown);
    fs::write(dir.path().join("a"), "abc").unwrap();
    fs::write(dir.path().join("b"), [0u8; 5000]).unwrap();
    checksums::write(dir.path(), &["a", "b"]).unwrap();
    // The published test vector of SHA-256.
    let sums = fs::read_to_string(dir.path().join(SUMS)).unwrap();
    assert!(sums.starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n"), "{sums}");
    assert_eq!(checksums::check(dir.path(), &["a", "b"]), Checked::Whole);
    for name in ["a", "b", SUMS] {
        let whole = fs::read(dir.path().join(name)).unwrap();
        for at in 0..whole.len().min(300) {
            for changed in [flip(&whole, at), whole[..at].to_vec()] {
                fs::write(dir.path().join(name), changed).unwrap();
                assert!(matches!(checksums::check(dir.path(), &["a", "b"]), Checked::Damaged(_)), "{name} at {at}");
            }
        }
        fs::write(dir.path().join(name), whole).unwrap();
    }
    fs::remove_file(dir.path().join("b")).unwrap();
    assert!(matches!(checksums::check(dir.path(), &["a", "b"]), Checked::Damaged(reason) if reason.contains("`b`")));
    fs::write(dir.path().join(SUMS), format!("{}  ../../etc/hostname\n", "0".repeat(64))).unwrap();
    assert!(matches!(checksums::check(dir.path(), &["a", "b"]), Checked::Damaged(reason) if reason.contains(SUMS)));
}

fn flip(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[at] ^= 1;
    changed
}

#[test]
fn a_table_is_begun_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("measurements.csv");
    let header = strings(&["schema", "name"]);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (path, header) = (&path, &header);
            scope.spawn(move || {
                check_csv(path, header).unwrap();
                append_csv(path, header, &strings(&["1", &i.to_string()])).unwrap();
            });
        }
    });
    let lines = read_lines(&path).unwrap();
    assert_eq!(lines.iter().filter(|line| *line == "schema,name").count(), 1, "{lines:?}");
    assert_eq!((lines[0].as_str(), lines.len()), ("schema,name", 9));
    // Line ends of another system are no other columns.
    fs::write(&path, "schema,name\r\n1,x\r\n").unwrap();
    append_csv(&path, &header, &strings(&["1", "y"])).unwrap();
    assert_eq!(read_csv(&path).unwrap().1.len(), 2);
}

#[test]
fn a_folder_that_may_not_be_written_to_says_so() {
    // Root writes wherever it likes, so a file in the place of a folder stands in for the permission there.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let blocked = dir.path().join("file");
    if fs::write(&blocked, "x").is_err() {
        assert!(matches!(write(&blocked, b"y"), Err(Error::Write { .. })));
        assert!(matches!(append_line(&blocked, "y"), Err(Error::Write { .. })));
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&blocked, "x").unwrap();
    let error = write(&blocked.join("inside"), b"y").unwrap_err();
    assert!(matches!(&error, Error::Write { .. }), "{error}");
    assert!(matches!(append_line(&blocked.join("inside"), "y"), Err(Error::Write { .. })));
    assert!(matches!(RunFolder::create(&blocked.join("run")), Err(Error::Write { .. })));
}
