//! The `headroom` command.

use std::process::ExitCode;

use headroom::memory::{self, Counting};

/// Counts what is allocated, for `allocated_peak_bytes` and for the bounds on what a stranger's tokenizer may take.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    memory::keep_freed_memory();
    headroom::ops::device::compute_here();
    headroom::commands::main()
}
