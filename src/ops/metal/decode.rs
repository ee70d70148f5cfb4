//! Launches that decode rows of a storage format to f32.

use candle_core::{DType, Result, Tensor, bail};

use crate::ops::metal::{Arg, Queue, Size, bytes, words};
use crate::spec::model::storage::{Block, Format, INT8_GROUP};

/// Which rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) enum Pick<'a> {
    /// So many from the first on.
    From(usize, usize),
    /// Those of these indices, u32.
    Ids(&'a Tensor),
}

impl Pick<'_> {
    fn count(&self) -> usize {
        match self {
            Self::From(_, count) => *count,
            Self::Ids(ids) => ids.elem_count(),
        }
    }
}

/// The tensors of a matrix of `columns` columns in a storage format.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Numbers, codes, or the bytes of blocks.
    pub data: &'a Tensor,
    /// Scales and biases, where the format has them apart.
    pub scales: Option<(&'a Tensor, &'a Tensor)>,
    /// The format.
    pub format: Format,
    /// Numbers of a row.
    pub columns: usize,
}

/// How a kernel names a 16-bit format, or f32.
fn kind(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 0,
        DType::BF16 => 1,
        _ => 2,
    }
}

fn blocks(block: Block) -> &'static str {
    match block {
        Block::Q8_0 => "q8_0_rows",
        Block::Q6K => "q6_k_rows",
        Block::Q5K => "q5_k_rows",
        Block::Q5_1 => "q5_1_rows",
        Block::Q5_0 => "q5_0_rows",
        Block::Q4K => "q4_k_rows",
        Block::Q4_1 => "q4_1_rows",
        Block::Q4_0 => "q4_0_rows",
        Block::Q3K => "q3_k_rows",
        Block::Q2K => "q2_k_rows",
    }
}

impl Queue {
    /// Rows of a matrix in f32.
    pub(crate) fn decode(self, rows: &Rows<'_>, pick: Pick<'_>) -> Result<Tensor> {
        let (data, columns) = (rows.data, rows.columns);
        if let (Format::F32, Pick::From(first, count)) = (rows.format, pick) {
            return data.narrow(0, first, count);
        }
        let to = self.empty((pick.count(), columns), data.device())?;
        let (first, ids, by_ids) = match pick {
            Pick::From(first, _) => (first, None, 0u32),
            Pick::Ids(ids) => (0, Some(ids), 1),
        };
        let read = rows.format.matrix_bytes(pick.count(), columns) + bytes(&to);
        let size = Size::matrix(pick.count(), columns);
        // Where rows are not picked by indices, something must stand in their place.
        let ids = Arg::Table(ids.unwrap_or(data));
        let words = |kind: u32, bits: usize, group: usize| [columns as u32, first as u32, by_ids, kind, bits as u32, group as u32];
        match (rows.format, rows.scales) {
            (Format::F32, _) => {
                let args = &[Arg::Table(data), ids, Arg::Part(&to)];
                self.launch("gather", args, words![columns, 0u32], size, read)?;
            }
            (Format::F16 | Format::Bf16, _) => {
                let dtype = if rows.format == Format::F16 { DType::F16 } else { DType::BF16 };
                self.launch("widen", &[Arg::Table(data), ids, Arg::Part(&to)], &words(kind(dtype), 16, 1), size, read)?;
            }
            (Format::Int8, Some((scales, _))) => {
                let args = &[Arg::Table(data), Arg::Table(scales), ids, Arg::Part(&to)];
                self.launch("int8_rows", args, &words(0, 8, INT8_GROUP), size, read)?;
            }
            (Format::Affine { bits, group, .. }, Some((scales, biases))) => {
                let args = &[Arg::Table(data), Arg::Table(scales), Arg::Table(biases), ids, Arg::Part(&to)];
                let words = words(kind(scales.dtype()), bits.into(), group.into());
                self.launch("affine_rows", args, &words, size, read)?;
            }
            (Format::Gguf(block), _) => {
                self.launch(blocks(block), &[Arg::Table(data), ids, Arg::Part(&to)], &words(0, 0, 0), size, read)?;
            }
            _ => bail!("a matrix in {:?} without its scales", rows.format),
        }
        Ok(to)
    }
}
