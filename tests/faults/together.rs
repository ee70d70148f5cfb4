//! Two processes at a time, and interrupts.

use super::*;

// ---- twice ----

/// Stops the first command at an operation, does the second meanwhile, and lets the first go on. Where the second waits
/// for the first, both go on together.
pub(crate) fn interleaved(world: &World, first: &[&str], second: &[&str], at: usize) -> (Ran, Ran) {
    let mut one = world.command(first, Some(&Fault::new(at, "stop"))).spawn().unwrap();
    disk::wait_until_stopped(&mut one);
    let mut two = world.command(second, None).spawn().unwrap();
    let mut waited = 0;
    while two.try_wait().unwrap().is_none() && waited < 750 {
        std::thread::sleep(std::time::Duration::from_millis(2));
        waited += 1;
    }
    disk::signal(&one, libc::SIGCONT);
    let two = world.end(two);
    (world.end(one), two)
}

pub(crate) fn one_of_two(ran: &(Ran, Ran)) -> Result<usize, String> {
    match (ran.0.code, ran.1.code) {
        (0, 2) => Ok(0),
        (2, 0) => Ok(1),
        _ => Err(format!("first: {}; second: {}", ran.0.brief(), ran.1.brief())),
    }
}

#[test]
pub(crate) fn a_folder_holds_one_run() {
    let mut table = Table::default();
    let whole = Whole::of(run_file(8, "", ""));
    let stops = moments(whole.operations.len(), 16);
    table.try_all(
        "two launches at once",
        &stops,
        || whole.world(),
        |world, at| {
            fresh(world);
            let ran = interleaved(world, &LAUNCH, &LAUNCH, *at);
            one_of_two(&ran)?;
            whole.held(world, "runs/run")
        },
    );

    // `a/run.toml` and `b/run.toml` have one default folder.
    let seeds = [5, 6].map(|seed| {
        let text = run_file(8, "", "").replace("seed = 5", &format!("seed = {seed}"));
        (text.replace("\"data/", "\"../data/").replace("./model", "../model"), Whole::of(text))
    });
    let two = || {
        let world = with_model();
        world.put("a/run.toml", &seeds[0].0);
        world.put("b/run.toml", &seeds[1].0);
        world
    };
    table.try_all("two runs of one name at once", &stops, two, |world, at| {
        fresh(world);
        let launch = |file| ["launch", file, "--save-every", "3"];
        let ran = interleaved(world, &launch("a/run.toml"), &launch("b/run.toml"), *at);
        let winner = one_of_two(&ran)?;
        let run = String::from_utf8(world.bytes("runs/run/run.toml")).unwrap();
        if !run.contains(&format!("seed = {}", 5 + winner)) {
            return Err("run.toml is of the run that was refused".into());
        }
        seeds[winner].1.held(world, "runs/run")
    });

    let (_, resumed) = Cut::new().world.count(&RESUME);
    let stops = moments(resumed.len(), 12);
    table.try_all("two --resume at once", &stops, Cut::new, |cut, at| {
        cut.restore();
        let ran = interleaved(&cut.world, &RESUME, &RESUME, *at);
        // Both may answer 0, where one found what the other had finished; the lines say whether both trained.
        if ![ran.0.code, ran.1.code].contains(&0) || ran.0.crashed() || ran.1.crashed() {
            one_of_two(&ran)?;
        }
        cut.whole.held(&cut.world, "runs/run")
    });

    let training: Vec<usize> = (1..=8).map(|step| whole.after_line(step)).collect();
    table.try_all(
        "--resume beside a run",
        &training[..],
        || whole.world(),
        |world, at| {
            fresh(world);
            let ran = interleaved(world, &LAUNCH, &RESUME, *at);
            if one_of_two(&ran)? != 0 {
                return Err("the run was refused, and the resume went on".into());
            }
            whole.held(world, "runs/run")
        },
    );
    table.hold();
}

#[test]
pub(crate) fn a_table_that_two_begin_has_one_header() {
    let whole = Whole::of(run_file(2, "", ""));
    let of_the_table = |(i, o): (usize, &String)| o.contains("/results/").then_some(i + 1);
    let stops: Vec<usize> = whole.operations.iter().enumerate().filter_map(of_the_table).collect();
    assert!(stops.len() > 3);
    let mut table = Table::default();
    table.try_all(
        "two launches that begin a table",
        &stops,
        || whole.world(),
        |world, at| {
            fresh(world);
            let launch = |out| ["launch", "run.toml", "--out", out];
            let ran = interleaved(world, &launch("runs/a"), &launch("runs/b"), *at);
            if (ran.0.code, ran.1.code) != (0, 0) {
                return Err(format!("first: {}; second: {}", ran.0.brief(), ran.1.brief()));
            }
            match tables(world)? {
                2 => Ok(()),
                rows => Err(format!("{rows} rows")),
            }
        },
    );
    table.hold();
}

// ---- signalled ----

#[test]
pub(crate) fn an_interrupted_run_says_so_and_goes_on() {
    let whole = Whole::of(run_file(60, "", ""));
    let steps: Vec<usize> = if all() { (1..=40).collect() } else { vec![1, 4, 9] };
    let mut table = Table::default();
    for (name, number) in [("SIGINT", libc::SIGINT), ("SIGTERM", libc::SIGTERM), ("SIGHUP", libc::SIGHUP)] {
        let faults: Vec<Fault> =
            steps.iter().map(|&step| Fault::new(whole.after_line(step), &format!("signal-{number}"))).collect();
        table.try_all(
            name,
            &faults,
            || whole.world(),
            |world, fault| {
                fresh(world);
                let ran = world.run_with(&LAUNCH, fault);
                if ran.code != 128 + number {
                    return Err(format!("exit {} was wished: {}", 128 + number, ran.brief()));
                }
                if !ran.said.contains("--resume") {
                    return Err(format!("no way on is said: {}", ran.brief()));
                }
                go_on(world)?;
                whole.held(world, "runs/run")
            },
        );
    }
    // Before the first step too, and whatever the run is about to do.
    let early = whole.after_line(1);
    let faults: Vec<Fault> = moments(early, 6).into_iter().map(|n| Fault::new(n, "signal-2")).collect();
    table.try_all(
        "SIGINT before the first step",
        &faults,
        || whole.world(),
        |world, fault| {
            fresh(world);
            let ran = world.run_with(&LAUNCH, fault);
            if ran.code != 130 {
                return Err(format!("exit 130 was wished: {}", ran.brief()));
            }
            go_on(world)?;
            whole.held(world, "runs/run")
        },
    );
    let world = whole.world();
    let fault = Fault::new(whole.after_line(3), "signal-2");
    let ran = world.shell("$HEADROOM launch run.toml --save-every 3 && echo went on", &fault);
    let stopped = !ran.answer.contains("went on") && !world.at("runs/run/adapter").exists();
    table.add("launch && export", if stopped { Ok(()) } else { Err(ran.brief()) });
    table.hold();
}

/// A folder with a space in its name is typed with quotes.
#[test]
pub(crate) fn the_way_on_can_be_typed() {
    let whole = Whole::of(run_file(60, "", ""));
    let world = whole.world();
    let out = "runs/Bob's first run";
    let fault = Fault::new(whole.after_line(3), "signal-2");
    let ran = world.run_with(&["launch", "run.toml", "--save-every", "3", "--out", out], &fault);
    let hint = ran.said.lines().find(|l| l.contains("--resume")).unwrap_or_else(|| panic!("no hint: {}", ran.said));
    let start = hint.find("headroom launch").unwrap_or_else(|| panic!("no command: {hint}"));
    let typed = hint[start..].rsplit_once("--resume").unwrap().0;
    let line = format!("{} --resume", typed.replacen("headroom", "$HEADROOM", 1));
    let again = world.shell(&line, &Fault::new(0, "nothing"));
    assert_eq!(again.code, 0, "`{line}`: {}", again.said);
    assert!(Path::new(&world.at(out)).join("adapter").exists());
    whole.held(&world, out).unwrap();
}
