//! One file a verb: reads, calls, writes; no arithmetic.

pub(crate) mod accuracy;
pub(crate) mod auto;
pub(crate) mod calibrate;
pub(crate) mod doctor;
mod entry;
pub(crate) mod export;
mod fetch;
pub(crate) mod generate;
pub(crate) mod inputs;
pub(crate) mod interrupt;
pub(crate) mod launch;
pub(crate) mod output;
pub(crate) mod pages;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod report;
pub(crate) mod sweep;
pub(crate) mod trial;

pub use self::entry::main;
