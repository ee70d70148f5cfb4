//! Files changed at random are answered or refused.

use super::*;

/// Calls of a kind, by what became of them.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) calls: BTreeMap<&'static str, usize>,
    pub(crate) faults: Vec<String>,
}

pub(crate) fn try_kind(kind: &Kind) -> Figures {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    fs::create_dir_all(&kept).unwrap();
    let (next, figures) = (Mutex::new(0..inputs()), Mutex::new(Figures::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let world = (kind.world)();
                for call in kind.calls {
                    let ran = world.run(call);
                    assert!(matches!(ran.code, 0 | 1), "{}, unchanged: {}", kind.name, ran.brief());
                    ["o", "r"].iter().for_each(|name| world.remove(name));
                }
                loop {
                    let Some(input) = next.lock().unwrap().next() else { break };
                    let mut rng = ChaCha8Rng::seed_from_u64((SEED << 32) | input as u64);
                    let (file, bytes) = (kind.change)(&world, &mut rng);
                    for call in kind.calls {
                        ["o", "r"].iter().for_each(|name| world.remove(name));
                        world.put(&file, &bytes);
                        let ran = world.run(call);
                        let mut figures = figures.lock().unwrap();
                        let fate = fault(&ran);
                        let column = fate.unwrap_or(if ran.code == 2 { "refused" } else { "answered" });
                        *figures.calls.entry(column).or_default() += 1;
                        if let Some(fate) = fate {
                            let name = format!("{}-{input}", kind.name.replace(' ', "-"));
                            fs::write(kept.join(&name), &bytes).unwrap();
                            figures.faults.push(format!("{fate}: {name} in `{}`: {}", call.join(" "), ran.brief()));
                        }
                    }
                }
            });
        }
    });
    figures.into_inner().unwrap()
}

#[test]
pub(crate) fn changed_files_are_answered_or_refused() {
    let columns = ["answered", "refused", "silent", "panic", "abort", "hang"];
    println!("\n{:24} {:>7} {}", "", "inputs", columns.map(|c| format!("{c:>9}")).concat());
    let mut faults = Vec::new();
    let mut sums = [0; 6];
    for kind in &KINDS {
        let figures = try_kind(kind);
        let row = columns.map(|c| figures.calls.get(c).copied().unwrap_or(0));
        sums.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        println!("{:24} {:>7} {}", kind.name, inputs(), row.map(|n| format!("{n:>9}")).concat());
        // A change that is always refused, or never, would try nothing.
        assert!(row[1] > 0, "{}: nothing was refused", kind.name);
        faults.extend(figures.faults);
    }
    println!("{:24} {:>7} {}", "all", KINDS.len() * inputs(), sums.map(|n| format!("{n:>9}")).concat());
    let shown: Vec<String> =
        faults.iter().take(60).map(|f| format!("  {}", f.chars().take(300).collect::<String>())).collect();
    assert!(faults.is_empty(), "{} calls did not hold:\n{}", faults.len(), shown.join("\n"));
}
