//! NaN and infinity among stored numbers, found in their bytes before anything is computed with them.

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use rayon::prelude::*;

/// Bytes that one task looks at; a whole number of numbers of every width.
const PART: usize = 1 << 18;

/// What is said of a tensor that has some.
pub(crate) const NOT_FINITE: &str = "it contains NaN or infinity";

/// Whether all are finite; a number is not where all bits of its exponent are set. Formats other than f32, f16 and bf16
/// have no such numbers.
pub(crate) fn all_finite(bytes: &[u8], dtype: DType) -> bool {
    match dtype {
        DType::F32 => bytes.par_chunks(PART).all(|part| words32(part, 0x7f80_0000)),
        DType::F16 => bytes.par_chunks(PART).all(|part| words16(part, 0x7c00)),
        DType::BF16 => bytes.par_chunks(PART).all(|part| words16(part, 0x7f80)),
        _ => true,
    }
}

/// No early end inside a part: a plain loop of ors is one that the compiler makes wide.
fn words32(part: &[u8], exponent: u32) -> bool {
    let wrong = |b: &[u8]| u32::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & exponent == exponent);
    part.chunks_exact(4).fold(0, |any, b| any | wrong(b)) == 0
}

fn words16(part: &[u8], exponent: u16) -> bool {
    let wrong = |b: &[u8]| u16::from(u16::from_le_bytes([b[0], b[1]]) & exponent == exponent);
    part.chunks_exact(2).fold(0, |any, b| any | wrong(b)) == 0
}

/// The same of a tensor in one of ggml's formats. In a block, codes are whole numbers: only its scales can be wrong.
pub(crate) fn all_finite_ggml(bytes: &[u8], dtype: GgmlDType) -> bool {
    let scales: &[usize] = match dtype {
        GgmlDType::F32 => return all_finite(bytes, DType::F32),
        GgmlDType::F16 => return all_finite(bytes, DType::F16),
        GgmlDType::BF16 => return all_finite(bytes, DType::BF16),
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q8_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        // Not read or written here.
        GgmlDType::Q8K => &[],
    };
    let size = dtype.type_size();
    let blocks = (PART / size).max(1) * size;
    bytes
        .par_chunks(blocks)
        .all(|part| part.chunks_exact(size).all(|block| scales.iter().all(|at| words16(&block[*at..at + 2], 0x7c00))))
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn one_number_that_is_none_is_found_wherever_it_is() {
        for (dtype, width) in [(DType::F32, 4), (DType::F16, 2), (DType::BF16, 2)] {
            for count in [1, 7, PART / width, PART / width + 3] {
                for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 60_000.0] {
                    for at in [0, count / 2, count - 1] {
                        let mut numbers = vec![-1.5f32; count];
                        numbers[at] = wrong;
                        let t = Tensor::from_vec(numbers, count, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                        let path = tempfile::NamedTempFile::new().unwrap();
                        candle_core::safetensors::save(&[("t", t)].into(), path.path()).unwrap();
                        let bytes = std::fs::read(path.path()).unwrap();
                        let numbers = &bytes[bytes.len() - count * width..];
                        assert_eq!(
                            all_finite(numbers, dtype),
                            wrong.is_finite(),
                            "{dtype:?} {wrong} at {at} of {count}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_whose_scale_is_none_is_found() {
        use GgmlDType::*;
        for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, F16, BF16, F32] {
            let encode = |last: f32| {
                let mut numbers: Vec<f32> = (0..512).map(|i| (i as f32).sin()).collect();
                numbers[511] = last;
                let t = Tensor::from_vec(numbers, (1, 512), &Device::Cpu).unwrap();
                QTensor::quantize(&t, dtype).unwrap().data().unwrap().into_owned()
            };
            assert!(all_finite_ggml(&encode(0.5), dtype), "{dtype:?}");
            // Beyond what the scale, an f16, can hold.
            let holds = matches!(dtype, F32 | BF16);
            assert_eq!(all_finite_ggml(&encode(3e8), dtype), holds, "{dtype:?}");
        }
    }
}
