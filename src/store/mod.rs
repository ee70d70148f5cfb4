//! The disk: whole files are replaced atomically, logs grow by whole lines, tables refuse what does
//! not belong in them.
//!
//! A process can die between any two instructions. So a whole file is written beside its place and
//! moved there, and a line of a log counts only once its newline is there: a torn last line is left
//! out when reading and cut off before the next append.

pub(crate) mod checksums;
mod csv;
mod disk;
mod files;
mod logs;
mod paths;
pub(crate) mod quote;
pub(crate) mod run_folder;
pub(crate) mod stream;
mod temporary;

pub(crate) use self::csv::*;
pub(crate) use self::disk::*;
pub(crate) use self::files::*;
pub(crate) use self::logs::*;
pub(crate) use self::paths::*;
pub(crate) use self::quote::*;
pub(crate) use self::run_folder::*;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod run_folder_tests;
