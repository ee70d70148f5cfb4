//! What a run should cost, from shapes alone. No fitted number lives here.

pub mod candle;
pub mod ledger;
pub mod timeline;
