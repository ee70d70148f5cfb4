use super::*;

fn start(script: &str) -> ChildGroup {
    ChildGroup::start(Command::new("/bin/sh").args(["-c", script]), "the job").unwrap()
}

fn lines(child: &mut ChildGroup) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match child.hear(Duration::from_secs(5)) {
            Heard::Line(line) => all.push(line),
            Heard::Silence => {}
            Heard::End => return all,
        }
    }
}

#[test]
fn a_child_inherits_a_short_list() {
    for (name, expected) in [
        ("PATH", true),
        ("HOME", true),
        ("LC_ALL", true),
        ("HEADROOM_X", true),
        ("HF_HUB_CACHE", true),
        ("HUGGINGFACE_HUB_CACHE", true),
        ("XDG_CACHE_HOME", true),
        ("HF_TOKEN", false),
        ("HUGGING_FACE_HUB_TOKEN", false),
        ("AWS_SECRET_ACCESS_KEY", false),
        ("SSH_AUTH_SOCK", false),
        ("PATHS", false),
    ] {
        assert_eq!(is_inherited(name), expected, "{name}");
    }
    // cargo gives a test a dozen variables of its own.
    assert!(std::env::vars().any(|(name, _)| name.starts_with("CARGO_")));
    let mut command = Command::new("/usr/bin/env");
    command.env("GIVEN", "1").env_remove("HOME");
    let all = lines(&mut ChildGroup::start(&mut command, "").unwrap());
    assert!(all.contains(&"GIVEN=1".to_owned()) && all.iter().any(|line| line.starts_with("PATH=")), "{all:?}");
    assert!(!all.iter().any(|line| line.starts_with("CARGO_") || line.starts_with("HOME=")), "{all:?}");
}

#[test]
fn stdin_stays_open_after_the_job_for_as_long_as_the_group_is_held() {
    let mut child = start("read job; echo \"$job\"; read more || echo closed");
    assert!(matches!(child.hear(Duration::from_secs(5)), Heard::Line(line) if line == "the job"));
    assert!(matches!(child.hear(Duration::from_millis(50)), Heard::Silence));
    drop(child._life_line.take());
    assert!(matches!(child.hear(Duration::from_secs(5)), Heard::Line(line) if line == "closed"));
}

#[test]
fn the_end_is_told_and_what_was_started_ends_with_it() {
    for (script, expected) in [
        ("exit 0", None),
        ("exit 3", Some(("exit code 3", false))),
        ("kill -KILL $$", Some((KILLED, true))),
        ("kill -SEGV $$", Some(("signal 11", false))),
    ] {
        let end = start(script).wait();
        match (&end, expected) {
            (None, None) => {}
            (Some(end), Some((how, killed))) => assert!(end.how.starts_with(how) && end.killed == killed, "{end:?}"),
            other => panic!("{script}: {other:?}"),
        }
    }
    // The leader has ended, and what it left behind holds a pipe of which we hear the end.
    let mut child = start("sleep 1000 & echo $!");
    let Heard::Line(pid) = child.hear(Duration::from_secs(5)) else { panic!("no line") };
    assert_eq!(child.wait(), None);
    let pid: i32 = pid.parse().unwrap();
    // SAFETY: signal 0 only asks whether the process is there.
    while unsafe { libc::kill(pid, 0) } == 0 && !is_zombie(pid) {
        thread::sleep(Duration::from_millis(1));
    }
    // Nothing is signalled once it was waited for: its number may be another's.
    assert!(child.status.is_some());
    child.end();
}

#[test]
fn this_program_is_told_the_device() {
    let command = this_program().unwrap();
    let told = command.get_envs().find(|(name, _)| *name == devices::VARIABLE).and_then(|(_, value)| value);
    assert_eq!(told.unwrap(), devices::chosen().name());
}

/// Where nobody waits for orphans they stay in the table.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
