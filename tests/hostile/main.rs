//! Files from strangers: whatever is in them, `headroom` answers or says what is wrong. It does not crash, hang or take
//! all memory. A few inputs of each kind are tried; as many as wanted by
//! `HEADROOM_HOSTILE=1000 cargo test --release --test hostile -- --nocapture`, which prints a table of what became of
//! them. Inputs that did not hold are kept under `target/tmp/hostile`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of tests are tests too

mod kinds;
mod made;
mod random;
mod texts;

#[allow(unused_imports)] // some hold tests alone
use self::kinds::*;
#[allow(unused_imports)] // some hold tests alone
use self::made::*;
#[allow(unused_imports)] // some hold tests alone
use self::random::*;
#[allow(unused_imports)] // some hold tests alone
use self::texts::*;

#[path = "../disk/mod.rs"]
mod disk;
#[path = "../mutate/mod.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use disk::{Ran, Table, World, copy_tree, run_file, with_model};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Inputs of each kind, where nothing else is asked for.
const FEW: usize = 24;
/// Of all draws.
const SEED: u64 = 11;

fn inputs() -> usize {
    std::env::var("HEADROOM_HOSTILE").ok().and_then(|n| n.parse().ok()).unwrap_or(FEW)
}

/// Where a command has 4 GiB, ten seconds of a processor and a little more by the clock.
fn bounded(mut world: World) -> World {
    world.memory = Some(4 << 30);
    world.processor = Some(10);
    world.patience = Duration::from_secs(30);
    world
}

/// What became of a call that should have been answered or refused.
fn fault(ran: &Ran) -> Option<&'static str> {
    match ran.code {
        0 | 1 if ran.said.contains("panicked at") => Some("panic"),
        2 if ran.said.contains("panicked at") => Some("panic"),
        0 | 1 => None,
        2 if ran.said.contains("error:") => None,
        2 => Some("silent"),
        101 => Some("panic"),
        // Over its time, by the processor or by the clock.
        -1 | 152 | 137 => Some("hang"),
        _ => Some("abort"),
    }
}

/// One kind of file: where it is, how it is changed, and the commands that read it.
struct Kind {
    name: &'static str,
    world: fn() -> World,
    change: fn(&World, &mut ChaCha8Rng) -> (String, Vec<u8>),
    calls: &'static [&'static [&'static str]],
}

fn text(world: &World, name: &str) -> String {
    String::from_utf8(world.bytes(name)).unwrap()
}

/// What a file held before it was changed for the first time.
fn base(world: &World, name: &str) -> Vec<u8> {
    let kept = format!("kept/{name}");
    if !world.at(&kept).exists() {
        let bytes = world.bytes(name);
        world.put(&kept, bytes);
    }
    world.bytes(&kept)
}

fn base_json(world: &World, name: &str) -> Value {
    serde_json::from_slice(&base(world, name)).unwrap()
}

fn base_toml(world: &World, name: &str) -> Value {
    let table: toml::Table = toml::from_str(std::str::from_utf8(&base(world, name)).unwrap()).unwrap();
    serde_json::to_value(table).unwrap()
}
