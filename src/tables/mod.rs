//! Every table that is joined, grouped or written for others to read. polars owns them; plain columns go in and come out.

mod errors;
mod frame;
mod joined;

pub(crate) use self::errors::{ErrorGroup, ErrorRow, by_engine_and_chip};
pub(crate) use self::frame::parquet;
pub(crate) use self::joined::{Claimed, Measured, PlannerErrors, against_planners};
