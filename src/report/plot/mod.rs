//! Charts as SVG.

mod axes;
mod intervals;
mod ledger;
mod loss;
mod scatter;

pub(crate) use self::axes::*;
pub(crate) use self::intervals::*;
pub(crate) use self::ledger::*;
pub(crate) use self::loss::*;
pub(crate) use self::scatter::*;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
