//! What a run should cost, from shapes alone. No fitted number lives here.

pub mod ledger;
pub mod params;
pub mod time;
pub mod work;
