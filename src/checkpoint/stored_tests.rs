use super::*;
use crate::ops::testing::{self, worst};
use crate::spec::model::Dtype;
use crate::spec::run::Weights;

fn matrix(rows: usize, columns: usize) -> Tensor {
    testing::random((rows, columns), 1.0, 3)
}

fn put(matrix: &Tensor, weights: Weights) -> Stored {
    Stored::Dense(matrix.clone()).put(weights.format(Dtype::F32).unwrap(), &Device::Cpu).unwrap()
}

#[test]
fn formats_hold_the_values_to_their_precision() {
    let w = matrix(5, 512);
    // Half a step of the widest group or block, for numbers within one; Q6_K and Q4_K measured.
    let tolerances = [
        (Weights::F32, 0.0),
        (Weights::F16, 5e-4),
        (Weights::Bf16, 4e-3),
        (Weights::Int8, 0.5 / 127.0 + 1e-6),
        (Weights::Q8_0, 0.5 / 127.0 + 1e-3),
        (Weights::Q6K, 0.035),
        (Weights::Q4_0, 0.14),
        (Weights::Q4K, 0.12),
    ];
    for (format, tolerance) in tolerances {
        let stored = put(&w, format);
        let all = stored.panel(Backend::Fused, 0, 5).unwrap();
        let error = worst(&all, &w);
        assert!(error <= tolerance, "{format:?}: {error}");
        assert!(format == Weights::F32 || error > tolerance / 50.0, "{format:?} is too good: {error}");
        assert_eq!(
            worst(&stored.panel(Backend::Fused, 1, 3).unwrap(), &all.narrow(0, 1, 3).unwrap()),
            0.0,
            "{format:?}"
        );
        let ids = Tensor::new(&[4u32, 0, 4], &Device::Cpu).unwrap();
        assert_eq!(
            worst(&stored.rows(Backend::Fused, &ids).unwrap(), &all.index_select(&ids, 0).unwrap()),
            0.0,
            "{format:?}"
        );
    }
}

#[test]
fn halves_widen_as_candle_widens_them() {
    let (f16, bf16) = ([0x0001u16, 0x7bff, 0x7c00, 0xfc00, 0x8000], [0x0001u16, 0x7f7f, 0x7f80, 0xff80, 0x8000]);
    let of = |edges: [u16; 5], dtype| {
        let bits = edges.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<_>>();
        let edges = Tensor::from_raw_buffer(&bits, dtype, &[5], &Device::Cpu).unwrap();
        // More numbers than one task takes, and not a whole number of tasks.
        Tensor::cat(&[matrix(1, 40_001).flatten_all().unwrap().to_dtype(dtype).unwrap(), edges], 0).unwrap()
    };
    for t in [of(f16, DType::F16), of(bf16, DType::BF16)] {
        let (ours, theirs) = (widened(Backend::Fused, &t).unwrap(), t.to_dtype(DType::F32).unwrap());
        assert_eq!(testing::values(&ours), testing::values(&theirs));
        let part = t.narrow(0, 39_999, 4).unwrap();
        assert_eq!(
            testing::values(&widened(Backend::Fused, &part).unwrap()),
            testing::values(&theirs.narrow(0, 39_999, 4).unwrap())
        );
    }
}

#[test]
fn int8_takes_any_width_and_both_decoders_agree() {
    for columns in [1, 63, 64, 100] {
        let w = matrix(3, columns);
        let Stored::Int8 { codes, scales } = put(&w, Weights::Int8) else { panic!() };
        let decoded = int8::decode_cpu(&codes, &scales).unwrap();
        assert_eq!(worst(&decoded, &int8::decode_composed(&codes, &scales).unwrap()), 0.0);
        assert!(worst(&decoded, &w) <= 0.5 / 127.0 + 1e-6);
    }
    let zero = Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap();
    let stored = put(&zero, Weights::Int8);
    assert_eq!(worst(&stored.panel(Backend::Fused, 0, 2).unwrap(), &zero), 0.0);
}

#[test]
fn blocks_that_do_not_divide_a_row_give_way() {
    let stored = put(&matrix(3, 100), Weights::Q4K);
    assert!(matches!(stored, Stored::Dense(t) if t.dtype() == DType::BF16));
    let stored = put(&matrix(3, 96), Weights::Q4K);
    assert!(matches!(stored, Stored::Blocks(q) if q.dtype() == GgmlDType::Q8_0));
}

#[test]
fn numbers_that_a_format_cannot_hold_are_refused() {
    let mut numbers = vec![0.5f32; 512];
    numbers[300] = 3e8;
    let w = Stored::Dense(Tensor::from_vec(numbers, (2, 256), &Device::Cpu).unwrap());
    for weights in [Weights::F16, Weights::Q8_0, Weights::Q6K, Weights::Q4K, Weights::Q4_0] {
        let error = w.put(weights.format(Dtype::F32).unwrap(), &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{weights:?}: {error}");
    }
    for weights in [Weights::F32, Weights::Bf16, Weights::Int8] {
        w.put(weights.format(Dtype::F32).unwrap(), &Device::Cpu).unwrap();
    }
}

#[test]
fn one_format_becomes_another_by_its_own_values() {
    let w = matrix(5, 512);
    for from in [Weights::F16, Weights::Int8, Weights::Q4_0, Weights::Q6K] {
        let stored = put(&w, from);
        assert_eq!(stored.format(), from.format(Dtype::F32));
        let values = stored.panel(Backend::Fused, 0, 5).unwrap();
        for to in [
            Weights::F32,
            Weights::Bf16,
            Weights::FourBit,
            Weights::EightBit,
            Weights::Int8,
            Weights::Q8_0,
            Weights::Q4K,
        ] {
            let (again, direct) = (stored.put(to.format(Dtype::F32).unwrap(), &Device::Cpu).unwrap(), put(&values, to));
            assert_eq!(again.format(), to.format(Dtype::F32));
            assert_eq!(
                worst(&again.panel(Backend::Fused, 0, 5).unwrap(), &direct.panel(Backend::Fused, 0, 5).unwrap()),
                0.0,
                "{from:?} to {to:?}"
            );
        }
    }
}
