//! Claims of popular guides held against predictions.

mod check;
mod claims;

pub use self::check::{Checked, Verdict, check};
pub use self::claims::{BUNDLED, Figure, Guide, Guides, read};
