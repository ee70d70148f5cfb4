//! Cases in a table, tried in order.

use super::*;

/// What was tried and what held, by row.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, usize, usize, Vec<String>)>,
}

impl Table {
    /// Tries every case, two at a time, each in a world of its own thread.
    pub fn try_all<T: Sync + std::fmt::Debug, W: Send>(
        &mut self,
        row: &str,
        cases: &[T],
        world: impl Fn() -> W + Sync,
        attempt: impl Fn(&W, &T) -> Result<(), String> + Sync,
    ) {
        let next = Mutex::new(cases.iter());
        let faults = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..2.min(cases.len()) {
                scope.spawn(|| {
                    let world = world();
                    loop {
                        let Some(case) = next.lock().unwrap().next() else { break };
                        // One that cannot even be tried is told like the others.
                        let tried = catch_unwind(AssertUnwindSafe(|| attempt(&world, case)));
                        if let Err(why) = tried.unwrap_or_else(|_| Err("the attempt itself failed, see above".into())) {
                            faults.lock().unwrap().push(format!("{row}, {case:?}: {why}"));
                        }
                    }
                });
            }
        });
        let faults = faults.into_inner().unwrap();
        self.rows.push((row.into(), cases.len(), cases.len() - faults.len(), faults));
    }

    /// Adds a case that was tried elsewhere.
    pub fn add(&mut self, row: &str, result: Result<(), String>) {
        let place = self.rows.iter().position(|r| r.0 == row).unwrap_or_else(|| {
            self.rows.push((row.into(), 0, 0, Vec::new()));
            self.rows.len() - 1
        });
        let found = &mut self.rows[place];
        found.1 += 1;
        match result {
            Ok(()) => found.2 += 1,
            Err(why) => found.3.push(format!("{row}: {why}")),
        }
    }

    /// Prints the table, and fails with what did not hold.
    #[track_caller]
    pub fn hold(self) {
        println!("\n{:56} {:>6} {:>6}", "", "tried", "held");
        for (row, tried, held, _) in &self.rows {
            println!("{row:56} {tried:6} {held:6}");
        }
        let faults: Vec<&String> = self.rows.iter().flat_map(|r| &r.3).collect();
        let shown: Vec<String> = faults.iter().take(if all() { 200 } else { 12 }).map(|f| format!("  {f}")).collect();
        assert!(faults.is_empty(), "{} did not hold:\n{}", faults.len(), shown.join("\n"));
    }
}

/// Whether a process is stopped (`T`), waited for with patience; false where it ended instead.
pub fn wait_until_stopped(child: &mut Child) -> bool {
    let stat = format!("/proc/{}/stat", child.id());
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let text = fs::read_to_string(&stat).unwrap_or_default();
        match text.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
            Some('T') => return true,
            Some('Z') | None => return false,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

pub fn signal(child: &Child, number: i32) {
    // SAFETY: a plain system call on a child that was not waited for yet.
    unsafe { libc::kill(child.id() as i32, number) };
}

/// The tiny model and its rows, as somebody has them: `model/`, `data/train.jsonl`, `data/valid.jsonl`.
pub fn with_model() -> World {
    let world = World::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf_folder");
    copy_tree(&fixture, &world.at("model"));
    fs::remove_file(world.at("model/train.jsonl")).unwrap();
    fs::remove_file(world.at("model/rendered.json")).unwrap();
    let rows = fs::read_to_string(fixture.join("train.jsonl")).unwrap();
    world.put("data/train.jsonl", &rows);
    world.put("data/valid.jsonl", rows.lines().take(4).map(|l| format!("{l}\n")).collect::<String>());
    world
}

/// A run of that model.
pub fn run_file(steps: usize, more: &str, lora: &str) -> String {
    format!(
        "model = \"./model\"\nseed = 5\n[data]\ntrain = \"data/train.jsonl\"\nvalid = \"data/valid.jsonl\"\n\
         [recipe]\nmax_seq_length = 48\neffective_batch_size = 4\nsteps = {steps}\nlearning_rate = 5e-3\n\
         warmup_steps = 2\n{more}\n[recipe.lora]\nrank = 3\nalpha = 5\ndropout = 0.1\n{lora}\n[execution]\nbatch_size = 2\n"
    )
}
