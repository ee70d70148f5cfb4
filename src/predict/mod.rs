//! Cost and calibration together: what will happen, with an interval and where it came from.

pub mod calibration;
pub(crate) mod coefficients;
pub(crate) mod coverage;
mod observation;
mod prediction;
mod request;

pub(crate) use self::observation::*;
pub use self::prediction::*;
pub use self::request::*;
