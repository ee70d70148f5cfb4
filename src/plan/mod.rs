//! What fits, what is best, and what a little more would buy.

mod answer;
pub(crate) mod ask;
mod assessment;
mod defaults;
mod levers;
mod limit;
pub(crate) mod prediction_file;
pub(crate) mod quality;
pub(crate) mod risks;
pub(crate) mod search;
pub(crate) mod table;

pub(crate) use self::answer::*;
pub use self::ask::{Ask, Held};
pub use self::assessment::*;
pub(crate) use self::defaults::*;
pub(crate) use self::levers::{Lever, levers};
pub use self::limit::{Limit, LimitKind};
pub use self::search::plan;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod safety_tests;
