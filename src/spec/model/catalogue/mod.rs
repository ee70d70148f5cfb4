//! The models known by name, with their architectures compiled in, so that planning needs no download.

mod entries;
mod find;
mod names;

pub use self::entries::{Entry, all};
pub(crate) use self::entries::{SAME_SIZE, representatives};
pub use self::find::find;
pub(crate) use self::find::{Relation, Understood, refused, understand};
pub(crate) use self::names::Said;
