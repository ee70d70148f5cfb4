//! What fits, what is best, and what a little more would buy.

mod answer;
pub(crate) mod ask;
mod assessment;
mod defaults;
mod levers;
pub mod risks;
pub mod search;

pub use self::answer::*;
pub use self::ask::{Ask, Held};
pub use self::assessment::*;
pub use self::defaults::*;
pub use self::levers::{Lever, levers};
pub use self::search::plan;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
