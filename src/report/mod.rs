//! Values to pictures and pages. Pure: what comes out is text, and the same values give the same bytes.

pub mod brief;
pub mod compare;
pub mod page;
pub mod plot;
