//! What a plan puts first.

use serde::{Deserialize, Serialize};

/// Order in which a plan gives way, after the sequence length that the data needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// The largest model, in the widest format that it fits in.
    #[default]
    Size,
    /// The widest format, that of the files: a smaller model before a quantised one.
    Quality,
    /// The largest model, in the format and rank in which it is done soonest.
    Speed,
}

impl Prefer {
    /// Every order, in which they are listed.
    pub(crate) const ALL: [Self; 3] = [Self::Size, Self::Quality, Self::Speed];

    /// Name as typed on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Quality => "quality",
            Self::Speed => "speed",
        }
    }

    /// Description in a few words, for help texts.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Size => "The largest model, in the widest format that fits",
            Self::Quality => "The format of the files: a smaller model before a quantised one",
            Self::Speed => "The largest model, in the format that is done soonest",
        }
    }
}
