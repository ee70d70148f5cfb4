//! The Metal back end: small kernels of our own (`*.metal`), matrix products of candle, and memory of candle's pool.
//!
//! The same sequence of launches can go to the GPU, to the kernels compiled by a C++ compiler (which proves their
//! arithmetic where there is no Mac), or nowhere: then only memory is taken and given back, which shows in a moment what
//! a step of any size would need. All of it is told to [`crate::memory::trace`].

mod attention;
mod decode;
#[cfg(target_os = "macos")]
mod gpu;
mod host;
mod launch;
mod layers;
mod optimizer;
pub(super) mod queue;

pub(crate) use self::decode::{Pick, Rows};
pub use self::host::HostKernels;
pub use self::launch::SOURCE;
#[cfg(test)]
pub(crate) use self::launch::{Arg, Size};
pub(crate) use self::optimizer::{AdamStep, FactorStep};
pub use self::queue::{Queue, allocated_peak};
