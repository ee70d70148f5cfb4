use super::*;
use crate::ops::testing::{random, values, worst};

/// Codes counted up from `start`, packed as MLX packs them, with random scales and biases.
fn matrix(bits: usize, group: usize, dtype: DType) -> (Affine, Vec<f32>) {
    let (rows, columns) = (3, 3 * group);
    let codes: Vec<u64> = (0..rows * columns).map(|i| (i * 37 + i / 7) as u64 % (1 << bits)).collect();
    let mut bytes = Vec::new();
    for row in codes.chunks(columns) {
        // 32 codes fill `bits` words of 32 bits: place each bit where it belongs.
        let mut stream = vec![0u8; columns * bits / 8];
        for (i, code) in row.iter().enumerate() {
            (0..bits)
                .filter(|b| code >> b & 1 == 1)
                .for_each(|b| stream[(i * bits + b) / 8] |= 1 << ((i * bits + b) % 8));
        }
        bytes.extend(stream);
    }
    let small = |seed| random((rows, 3), 0.1, seed).to_dtype(dtype).unwrap();
    let (scales, biases) = (small(1), small(2));
    let wide = |t: &Tensor| values(&t.to_dtype(DType::F32).unwrap());
    let (s, b) = (wide(&scales), wide(&biases));
    let expected = codes.iter().enumerate().map(|(i, c)| *c as f32 * s[i / group] + b[i / group]).collect();
    let codes = Tensor::from_vec(bytes, (rows, columns * bits / 8), &Device::Cpu).unwrap();
    (Affine::new(codes, scales, biases, columns).unwrap(), expected)
}

#[test]
fn both_decoders_give_scale_times_code_plus_bias() {
    for bits in [2, 3, 4, 6, 8] {
        for (group, dtype, scales) in
            [(32, DType::F32, Dtype::F32), (64, DType::F16, Dtype::F16), (128, DType::BF16, Dtype::Bf16)]
        {
            let (m, expected) = matrix(bits, group, dtype);
            assert_eq!(m.format(), Format::Affine { bits: bits as u8, group: group as u8, scales });
            let all = m.panel(Backend::Fused, 0, 3).unwrap();
            assert_eq!(values(&all), expected, "{bits} bits, groups of {group}");
            let composed = m.decode_composed(&m.codes, &m.scales, &m.biases).unwrap();
            assert_eq!(worst(&all, &composed), 0.0, "{bits} bits, groups of {group}");
            assert_eq!(worst(&m.panel(Backend::Fused, 1, 2).unwrap(), &all.narrow(0, 1, 2).unwrap()), 0.0);
            let ids = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
            assert_eq!(worst(&m.rows(Backend::Fused, &ids).unwrap(), &all.index_select(&ids, 0).unwrap()), 0.0);
        }
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (m, _) = matrix(4, 32, DType::F32);
    let new = |columns, scales: &Tensor| Affine::new(m.codes.clone(), scales.clone(), m.biases.clone(), columns);
    assert!(new(96, &m.scales).is_ok());
    assert!(new(100, &m.scales).is_err());
    assert!(new(96, &m.scales.narrow(0, 0, 2).unwrap()).is_err());
    assert!(new(96, &m.scales.to_dtype(DType::F16).unwrap()).is_err());
}

#[test]
fn numbers_are_quantised_as_mlx_does_it() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mlx/quantize.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let of = |key: &str| -> Vec<f32> {
            case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
        };
        let (numbers, whole) = (of("numbers"), |key: &str| case[key].as_u64().unwrap() as u8);
        let (bits, group) = (whole("bits"), whole("group_size"));
        let columns = numbers.len() / 2;
        let matrix = Tensor::from_vec(numbers, (2, columns), &Device::Cpu).unwrap();
        // A row at a time: spans lie one after the other.
        let spans = (0..2).map(|row| matrix.narrow(0, row, 1)?.contiguous());
        let made = Affine::of_rows(spans, (2, columns), (bits, group, Dtype::F32), &Device::Cpu).unwrap();
        let [codes, scales, biases] = made.parts();
        let what = format!("{bits} bits, groups of {group}");
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(scales), of("scales"), "{what}");
        assert_eq!(flat(biases), of("biases"), "{what}");
        assert_eq!(flat(codes), of("codes"), "{what}");
    }
}
