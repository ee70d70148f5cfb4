//! What a run can be asked to hold the base weights in, whatever the model's files have.

use serde::{Deserialize, Serialize};

use crate::spec::model::storage::{Block, Dtype, Format};

/// Numbers that share a scale where a run asks for [`Weights::FourBit`] or [`Weights::EightBit`]: mlx-lm's default.
pub(crate) const MLX_GROUP: u8 = 64;

/// Number format in which a run holds the base weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// As the model's files hold them, each matrix in its own format.
    #[default]
    Stored,
    /// IEEE single precision, 32 bits.
    F32,
    /// IEEE half precision, 16 bits.
    F16,
    /// bfloat16: 16 bits with the range of f32.
    Bf16,
    /// MLX's 8 bits in groups of 64, as `mlx_lm.convert -q --q-bits 8` makes them.
    #[serde(rename = "8bit")]
    EightBit,
    /// MLX's 4 bits in groups of 64, as `mlx_lm.convert -q` makes them.
    #[serde(rename = "4bit")]
    FourBit,
    /// 8-bit integers with an f32 scale per group of a row.
    Int8,
    /// GGUF's Q8_0: 8 bits, with an f16 scale per 32 numbers.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGUF's Q6_K: 6 bits, with scales of scales per 256 numbers.
    #[serde(rename = "q6_k")]
    Q6K,
    /// GGUF's Q4_K: 4 bits, with scales of scales per 256 numbers.
    #[serde(rename = "q4_k")]
    Q4K,
    /// GGUF's Q4_0: 4 bits, with an f16 scale per 32 numbers.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl Weights {
    /// Every format a run file can ask for, in the order in which they are listed.
    pub(crate) const ALL: [Self; 11] = [
        Self::Stored,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::EightBit,
        Self::FourBit,
        Self::Int8,
        Self::Q8_0,
        Self::Q6K,
        Self::Q4K,
        Self::Q4_0,
    ];

    /// Those that mlx-lm has: what `mlx_lm.convert` writes.
    pub(crate) const OF_MLX: [Self; 6] =
        [Self::Stored, Self::F32, Self::F16, Self::Bf16, Self::EightBit, Self::FourBit];

    /// Name of the format as run files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::EightBit => "8bit",
            Self::FourBit => "4bit",
            Self::Int8 => "int8",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q4K => "q4_k",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The format that every matrix of a model in `dtype` is put into, whatever its files hold; `None` leaves each in
    /// its own. MLX keeps its scales in the model's own number format.
    pub fn format(self, dtype: Dtype) -> Option<Format> {
        let affine = |bits| Format::Affine { bits, group: MLX_GROUP, scales: dtype };
        Some(match self {
            Self::Stored => return None,
            Self::F32 => Format::F32,
            Self::F16 => Format::F16,
            Self::Bf16 => Format::Bf16,
            Self::EightBit => affine(8),
            Self::FourBit => affine(4),
            Self::Int8 => Format::Int8,
            Self::Q8_0 => Format::Gguf(Block::Q8_0),
            Self::Q6K => Format::Gguf(Block::Q6K),
            Self::Q4K => Format::Gguf(Block::Q4K),
            Self::Q4_0 => Format::Gguf(Block::Q4_0),
        })
    }

    /// The word for a format, where there is one that says it all; a run that holds the base in another keeps it as it is
    /// stored.
    pub(crate) fn of(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16 => Self::F16,
            Format::Bf16 => Self::Bf16,
            Format::Int8 => Self::Int8,
            Format::Gguf(_) | Format::Affine { .. } => Self::Stored,
        }
    }
}
