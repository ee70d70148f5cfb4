//! Matrices in GGUF's blocks, and their rows in f32 on all threads: candle's own lookup runs on one.

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};
use candle_core::quantized::{GgmlDType, GgmlType, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::ops::Backend;
use crate::spec::model::storage::Block;

/// The block format as candle names it.
pub(crate) fn ggml(block: Block) -> GgmlDType {
    match block {
        Block::Q8_0 => GgmlDType::Q8_0,
        Block::Q6K => GgmlDType::Q6K,
        Block::Q5K => GgmlDType::Q5K,
        Block::Q5_1 => GgmlDType::Q5_1,
        Block::Q5_0 => GgmlDType::Q5_0,
        Block::Q4K => GgmlDType::Q4K,
        Block::Q4_1 => GgmlDType::Q4_1,
        Block::Q4_0 => GgmlDType::Q4_0,
        Block::Q3K => GgmlDType::Q3K,
        Block::Q2K => GgmlDType::Q2K,
    }
}

/// The block format of candle's name, where matrices are held in it.
pub(crate) fn block(dtype: GgmlDType) -> Option<Block> {
    Block::ALL.into_iter().find(|b| ggml(*b) == dtype)
}

/// The rows of these indices, in f32.
pub(crate) fn rows(backend: Backend, matrix: &QTensor, ids: &Tensor) -> Result<Tensor> {
    match backend {
        Backend::Fused => decode(matrix, &ids.to_vec1()?),
        _ => matrix.embedding(ids),
    }
}

/// Dequantised rows: `count` of them from `first`, in f32.
pub(crate) fn panel(backend: Backend, matrix: &QTensor, first: usize, count: usize) -> Result<Tensor> {
    let ids = first as u32..(first + count) as u32;
    match backend {
        Backend::Fused => decode(matrix, &Vec::from_iter(ids)),
        _ => matrix.embedding(&Tensor::arange(ids.start, ids.end, &matrix.device())?),
    }
}

fn decode(matrix: &QTensor, ids: &[u32]) -> Result<Tensor> {
    let decode: fn(&QTensor, &[u32]) -> Result<Tensor> = match matrix.dtype() {
        GgmlDType::Q8_0 => decode_as::<BlockQ8_0>,
        GgmlDType::Q6K => decode_as::<BlockQ6K>,
        GgmlDType::Q5K => decode_as::<BlockQ5K>,
        GgmlDType::Q5_1 => decode_as::<BlockQ5_1>,
        GgmlDType::Q5_0 => decode_as::<BlockQ5_0>,
        GgmlDType::Q4K => decode_as::<BlockQ4K>,
        GgmlDType::Q4_1 => decode_as::<BlockQ4_1>,
        GgmlDType::Q4_0 => decode_as::<BlockQ4_0>,
        GgmlDType::Q3K => decode_as::<BlockQ3K>,
        GgmlDType::Q2K => decode_as::<BlockQ2K>,
        other => bail!("no matrix is held in {other:?}"),
    };
    decode(matrix, ids)
}

fn decode_as<B: GgmlType>(matrix: &QTensor, ids: &[u32]) -> Result<Tensor> {
    let (rows, columns) = matrix.shape().dims2()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        bail!("row {id} of a matrix of {rows}")
    }
    let bytes = matrix.data()?;
    // SAFETY: candle's blocks are plain numbers without padding, for which every byte is a value; what is not aligned
    // for them ends up before or behind, and is refused.
    let (before, blocks, behind) = unsafe { bytes.align_to::<B>() };
    if !before.is_empty() || !behind.is_empty() {
        bail!("blocks that are not aligned")
    }
    let row = columns / B::BLCK_SIZE;
    let mut out = vec![0f32; ids.len() * columns];
    out.par_chunks_mut(columns).zip(ids).for_each(|(out, id)| B::to_float(&blocks[*id as usize * row..][..row], out));
    Tensor::from_vec(out, (ids.len(), columns), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, worst};

    #[test]
    fn all_threads_decode_what_one_decodes() {
        for block in Block::ALL {
            let matrix = QTensor::quantize(&random((7, 512), 1.0, 3), ggml(block)).unwrap();
            assert_eq!(super::block(matrix.dtype()), Some(block));
            let all = matrix.dequantize(&Device::Cpu).unwrap();
            assert_eq!(
                worst(&panel(Backend::Fused, &matrix, 2, 4).unwrap(), &all.narrow(0, 2, 4).unwrap()),
                0.0,
                "{block:?}"
            );
            let ids = Tensor::new(&[6u32, 0, 6], &Device::Cpu).unwrap();
            assert_eq!(
                worst(&rows(Backend::Fused, &matrix, &ids).unwrap(), &all.index_select(&ids, 0).unwrap()),
                0.0,
                "{block:?}"
            );
            assert!(rows(Backend::Fused, &matrix, &Tensor::new(&[7u32], &Device::Cpu).unwrap()).is_err());
        }
        assert_eq!(super::block(GgmlDType::Q8K), None);
    }
}
