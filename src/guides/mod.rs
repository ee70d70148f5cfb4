//! Claims of popular guides held against predictions.

mod check;
mod claims;

pub(crate) use self::check::{Checked, Verdict, check};
pub(crate) use self::claims::{BUNDLED, Guide, read};
