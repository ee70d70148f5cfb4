//! What the base's matrices are held in: the formats, and which matrix of a checkpoint has which.

use serde::{Deserialize, Serialize};

/// Numbers that share a scale in [`Format::Int8`].
pub(crate) const INT8_GROUP: usize = 64;

/// Bits of a code that MLX quantises to in [`Format::Affine`].
pub(crate) const AFFINE_BITS: [usize; 5] = [2, 3, 4, 6, 8];
/// Numbers that share a scale and a bias in [`Format::Affine`].
pub(crate) const AFFINE_GROUPS: [usize; 3] = [32, 64, 128];

/// Number formats that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// Size of one number, bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Number format in which a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// IEEE single precision, 32 bits.
    F32,
    /// IEEE half precision, 16 bits.
    F16,
    /// bfloat16: 16 bits with the range of f32.
    Bf16,
    /// 8-bit integers with an f32 scale per `INT8_GROUP` numbers of a row.
    Int8,
    /// One of the block formats of GGUF.
    Gguf(Block),
    /// MLX's affine quantisation: `scale * code + bias`, with a scale and a bias per group of a row.
    Affine {
        /// Bits of a code: one of `AFFINE_BITS`.
        bits: u8,
        /// Numbers that share a scale and a bias: one of `AFFINE_GROUPS`.
        group: u8,
        /// Number format of scales and biases.
        scales: Dtype,
    },
}

/// Block formats of GGUF, by ggml's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Block {
    Q8_0,
    Q6K,
    Q5K,
    Q5_1,
    Q5_0,
    Q4K,
    Q4_1,
    Q4_0,
    Q3K,
    Q2K,
}

impl Block {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Q8_0,
        Self::Q6K,
        Self::Q5K,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4K,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q3K,
        Self::Q2K,
    ];

    /// Numbers in a block, and the bytes of one (ggml's own figures).
    fn size(self) -> (usize, u64) {
        match self {
            Self::Q8_0 => (32, 34),
            Self::Q5_1 => (32, 24),
            Self::Q5_0 => (32, 22),
            Self::Q4_1 => (32, 20),
            Self::Q4_0 => (32, 18),
            Self::Q6K => (256, 210),
            Self::Q5K => (256, 176),
            Self::Q4K => (256, 144),
            Self::Q3K => (256, 110),
            Self::Q2K => (256, 84),
        }
    }
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl Format {
    /// Numbers in a block, and the bytes of its codes.
    fn block(self) -> (usize, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Int8 => (1, 1),
            Self::Gguf(block) => block.size(),
            Self::Affine { bits, group, .. } => (usize::from(group), u64::from(bits) * u64::from(group) / 8),
        }
    }

    /// Bytes that each group of a row takes beside its codes, and the numbers of a group.
    fn scales(self) -> (u64, usize) {
        match self {
            Self::Int8 => (4, INT8_GROUP),
            Self::Affine { group, scales, .. } => (2 * scales.bytes(), usize::from(group)),
            _ => (0, 1),
        }
    }

    /// Bits of one parameter of a wide matrix, scales included.
    pub(crate) fn bits(self) -> f64 {
        let ((numbers, bytes), (scale, group)) = (self.block(), self.scales());
        8.0 * (bytes as f64 / numbers as f64 + scale as f64 / group as f64)
    }

    /// The format that a matrix with rows of this width really gets: blocks must divide a row. MLX leaves a matrix
    /// whose rows its groups do not divide as it was.
    pub(crate) fn for_columns(self, columns: usize) -> Self {
        let fits = |f: Self| columns.is_multiple_of(f.block().0);
        let small = Self::Gguf(Block::Q8_0);
        match self {
            f if fits(f) => f,
            Self::Affine { scales, .. } => scales.into(),
            Self::Gguf(Block::Q4K | Block::Q6K) if fits(small) => small,
            _ => Self::Bf16,
        }
    }

    /// Size of a `[rows, columns]` matrix in this format, bytes, scales included.
    pub(crate) fn matrix_bytes(self, rows: usize, columns: usize) -> u64 {
        let format = self.for_columns(columns);
        let ((numbers, bytes), (scale, group)) = (format.block(), format.scales());
        rows as u64 * ((columns / numbers) as u64 * bytes + scale * columns.div_ceil(group) as u64)
    }
}

/// Formats in which a checkpoint stores its matrices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Format of every matrix that `others` does not name.
    pub format: Format,
    /// Matrices stored in another format than `format`.
    pub others: Vec<Other>,
    /// GPT-2's projections lie `[out, in]` as everyone's do (MLX, GGUF), and not `[in, out]` as transformers has them.
    pub out_in: bool,
}

/// A matrix whose format differs from that of the rest of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Name of the tensor in the checkpoint, as transformers writes it.
    pub name: String,
    /// Shape of the matrix, `[rows, columns]`.
    pub shape: [usize; 2],
    /// Format of this matrix.
    pub format: Format,
}

impl Storage {
    /// A checkpoint with every matrix in one format.
    pub(crate) fn uniform(format: Format) -> Self {
        Self { format, others: Vec::new(), out_in: false }
    }

    /// From each matrix's own format: the commonest, by numbers held, is the rule and the rest are named.
    pub(crate) fn of(matrices: Vec<Other>, out_in: bool) -> Self {
        let numbers = |f: Format| matrices.iter().filter(|m| m.format == f).map(|m| m.shape[0] * m.shape[1]).sum();
        let commonest = matrices.iter().map(|m| m.format).max_by_key(|f| -> usize { numbers(*f) });
        let format = commonest.unwrap_or(Format::F32);
        let others = matrices.into_iter().filter(|m| m.format != format.for_columns(m.shape[1])).collect();
        Self { format, others, out_in }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_count_their_scales_and_their_leftovers() {
        // Qwen2.5's 1536 columns; 100 columns divide into no block, 96 only into the small ones.
        let (q4k, q4_0) = (Format::Gguf(Block::Q4K), Format::Gguf(Block::Q4_0));
        assert_eq!(Format::Int8.matrix_bytes(10, 1536), 10 * (1536 + 4 * 24));
        assert_eq!(Format::Int8.matrix_bytes(10, 100), 10 * (100 + 4 * 2));
        assert_eq!(q4_0.matrix_bytes(10, 1536), 10 * 48 * 18);
        assert_eq!(q4k.matrix_bytes(10, 1536), 10 * 6 * 144);
        assert_eq!(q4k.matrix_bytes(10, 96), 10 * 3 * 34);
        assert_eq!(q4k.matrix_bytes(10, 100), 10 * 200);
        let affine = |bits, group, scales| Format::Affine { bits, group, scales };
        assert_eq!(affine(4, 64, Dtype::Bf16).matrix_bytes(10, 1536), 10 * (768 + 4 * 24));
        assert_eq!(affine(3, 32, Dtype::F32).matrix_bytes(10, 96), 10 * (36 + 8 * 3));
        assert_eq!(affine(4, 64, Dtype::F16).matrix_bytes(10, 96), 10 * 192);
        let formats = [Format::Int8, Format::Gguf(Block::Q8_0), Format::Gguf(Block::Q6K), q4k];
        assert_eq!(formats.map(Format::bits), [8.5, 8.5, 6.5625, 4.5]);
        assert_eq!([affine(4, 64, Dtype::F16), affine(8, 32, Dtype::F32)].map(Format::bits), [4.5, 10.0]);
    }

    #[test]
    fn the_commonest_format_is_the_rule() {
        let four = Format::Affine { bits: 4, group: 64, scales: Dtype::F16 };
        let eight = Format::Affine { bits: 8, group: 64, scales: Dtype::F16 };
        let matrix = |name: &str, shape, format| Other { name: name.into(), shape, format };
        let matrices = vec![
            matrix("a", [100, 64], eight),
            matrix("b", [300, 64], four),
            matrix("c", [10, 100], Format::F16),
            matrix("d", [300, 64], four),
        ];
        let storage = Storage::of(matrices.clone(), false);
        // What groups cannot divide is no exception.
        assert_eq!(storage, Storage { format: four, others: vec![matrices[0].clone()], out_in: false });
    }
}
