//! Headroom: what is the best LoRA run this Mac can finish, and will it really fit?

pub mod cli;
pub mod commands;
pub mod cost;
pub mod error;
pub mod measure;
pub mod plan;
pub mod predict;
pub mod report;
pub mod spec;
pub mod stats;
pub mod store;
pub mod trainer;
pub mod units;
