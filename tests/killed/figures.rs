//! The guard acts before the kernel.

use super::*;

/// The process that is guarded: this test, started again with these variables.
pub(crate) const GUARDED: [&str; 2] = ["GUARDED_THREADS", "GUARDED_LAST_WORDS"];

#[test]
#[ignore = "the process that the test below guards"]
pub(crate) fn a_guarded_process_fills_the_memory_where_it_is_told_to() {
    let [Ok(threads), Ok(path)] = GUARDED.map(std::env::var) else { return };
    let _guard = Guard::start(None, move |footprint| fs::write(path, footprint.0.to_string()).unwrap());
    fill(threads.parse().unwrap());
}

#[test]
#[ignore = "as root, with version 1 of the memory controller of control groups"]
pub(crate) fn the_guard_acts_before_the_kernel() {
    let place = Place::new(4);
    let mut first = Vec::new();
    for mib in [64u64, 100, 200, 400, 1000, 4000] {
        for threads in [1, 2, 4] {
            for round in 0..5 {
                let group = PathBuf::from(format!("/sys/fs/cgroup/memory/headroom-{}-{mib}", std::process::id()));
                fs::create_dir_all(&group).unwrap();
                fs::write(group.join("memory.limit_in_bytes"), (mib << 20).to_string()).unwrap();
                let name = format!("{mib}-{threads}-{round}");
                let script = format!(
                    "echo $$ > {}/tasks && exec {} --ignored --exact a_guarded_process_fills_the_memory_where_it_is_told_to",
                    group.display(),
                    std::env::current_exe().unwrap().display()
                );
                let mut command = Command::new("sh");
                let [a, b] = GUARDED;
                command.args(["-c", &script]).env(a, threads.to_string()).env(b, place.path(&name));
                let output = command.stdout(Stdio::null()).stderr(Stdio::null()).output().unwrap();
                let said = fs::read_to_string(place.path(&name)).ok();
                let guarded = output.status.code() == Some(1) && said.is_some();
                println!(
                    "{mib} MiB, {threads} threads: {}, {:?}",
                    output.status,
                    said.map(|s| s.parse::<u64>().unwrap() >> 20)
                );
                first.push(guarded);
                fs::remove_dir(&group).unwrap();
            }
        }
    }
    let guarded = first.iter().filter(|g| **g).count();
    println!("the guard was first in {guarded} of {}", first.len());
    // Memory that fills as fast as it can, on a busy machine, may now and then fill between two looks.
    assert!(20 * guarded >= 19 * first.len());
}
