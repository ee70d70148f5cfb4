//! A projection with bias, adapter and dropout: gradients against finite differences, and chunks against the whole.

use super::*;
use crate::checkpoint::stored::Stored;
use crate::ops::Backend;
use crate::ops::testing::{self, dot, moved, values};
use crate::trainer::candle::nn::frozen::Frozen;

fn random(shape: (usize, usize), seed: u64) -> Tensor {
    testing::random(shape, 1.0, seed)
}

const ROWS: usize = 6;
const IN: usize = 5;
const OUT: usize = 4;

fn linear(transposed: bool) -> Linear {
    let weight = if transposed { random((IN, OUT), 1) } else { random((OUT, IN), 1) };
    let bias = random((1, OUT), 2).squeeze(0).unwrap();
    Linear {
        frozen: Frozen::new(Backend::Fused, Stored::Dense(weight), Some(bias), transposed).unwrap(),
        adapter: Some(Adapter { a: random((3, IN), 3), b: random((OUT, 3), 4), magnitude: None }),
        norms: None,
        lora: LoraSettings { scale: 1.7, dropout: 0.4, use_dora: false },
    }
}

/// Places for the gradients of its adapter.
fn zeros(linear: &Linear) -> Adapter {
    linear.adapter.as_ref().unwrap().map(Tensor::zeros_like).unwrap()
}

fn at(first_row: usize) -> Use {
    Use { dropout: Some(DropoutKey { seed: 9, micro_step: 2, site: 5 }), first_row }
}

#[test]
fn gradients_equal_finite_differences() {
    let (x, g) = (random((ROWS, IN), 5), random((ROWS, OUT), 6));
    for transposed in [false, true] {
        let linear = linear(transposed);
        let grad = zeros(&linear);
        let dx = linear.backward(&x, &g, at(0), (true, Some(&grad))).unwrap().unwrap();
        let value = |linear: &Linear, x: &Tensor| dot(&linear.forward(x, at(0)).unwrap(), &g);
        let check = |gradient: &Tensor, f: &dyn Fn(usize, f32) -> f64| {
            for (i, expected) in values(gradient).iter().enumerate() {
                let slope = (f(i, 0.05) - f(i, -0.05)) / 0.1;
                assert!((slope - f64::from(*expected)).abs() < 1e-3, "{i}: {slope} and {expected}");
            }
        };
        let with = |adapter: Adapter| Linear { adapter: Some(adapter), ..linear.clone() };
        let Adapter { a, b, .. } = linear.adapter.clone().unwrap();
        check(&dx, &|i, by| value(&linear, &moved(&x, i, by)));
        check(&grad.a, &|i, by| value(&with(Adapter { a: moved(&a, i, by), b: b.clone(), magnitude: None }), &x));
        check(&grad.b, &|i, by| value(&with(Adapter { a: a.clone(), b: moved(&b, i, by), magnitude: None }), &x));
    }
}

#[test]
fn chunks_of_rows_draw_the_same_dropout_and_gather_the_same_gradient() {
    let (x, g) = (random((ROWS, IN), 5), random((ROWS, OUT), 6));
    let linear = linear(false);
    let whole = linear.forward(&x, at(0)).unwrap();
    let (grad, parts) = (zeros(&linear), zeros(&linear));
    linear.backward(&x, &g, at(0), (false, Some(&grad))).unwrap();
    let mut rows = Vec::new();
    for (first, n) in [(0, 4), (4, 2)] {
        let cut = |t: &Tensor| t.narrow(0, first, n).unwrap();
        rows.extend(values(&linear.forward(&cut(&x), at(first)).unwrap()));
        linear.backward(&cut(&x), &cut(&g), at(first), (false, Some(&parts))).unwrap();
    }
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(&rows, &values(&whole)));
    assert!(close(&values(&grad.a), &values(&parts.a)) && close(&values(&grad.b), &values(&parts.b)));
    // Outside of training nothing is dropped, and the scale is alpha / rank.
    let plain = linear.forward(&x, Use { dropout: None, first_row: 0 }).unwrap();
    let Adapter { a, b, .. } = linear.adapter.clone().unwrap();
    let update = (x.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap() * 1.7).unwrap();
    let expected = (linear.frozen.forward(&x).unwrap() + update).unwrap();
    assert!(close(&values(&plain), &values(&expected)));
    assert!(!close(&values(&plain), &values(&whole)));
}
