//! DoRA against the formula with `W + scale B A` really made, and against finite differences with the norm held.

use candle_core::{DType, Device};

use super::*;
use crate::checkpoint::stored::Stored;
use crate::ops::Backend;
use crate::ops::dropout::DropoutKey;
use crate::ops::testing::{self, dot, moved, values, worst};
use crate::spec::model::Dtype;
use crate::spec::run::Weights;
use crate::trainer::candle::nn::frozen::Frozen;
use crate::trainer::candle::nn::linear::LoraSettings;

const ROWS: usize = 6;
const IN: usize = 5;
const OUT: usize = 4;
const SCALE: f64 = 1.7;

fn random(shape: (usize, usize), seed: u64) -> Tensor {
    testing::random(shape, 1.0, seed)
}

fn row(width: usize, seed: u64) -> Tensor {
    random((1, width), seed).squeeze(0).unwrap()
}

/// A projection with an adapter whose magnitude is not the norm.
fn linear(weights: Weights, transposed: bool, dropout: f64) -> Linear {
    let shape = if transposed { (IN, OUT) } else { (OUT, IN) };
    let weight = Stored::Dense(random(shape, 1)).put(weights.format(Dtype::F32).unwrap(), &Device::Cpu).unwrap();
    let frozen = Frozen::new(Backend::Fused, weight, Some(row(OUT, 2)), transposed).unwrap();
    let mut linear = Linear::new(frozen, LoraSettings { scale: SCALE, dropout, use_dora: true });
    let magnitude = Some((row(OUT, 7) + 2.0).unwrap());
    linear.set_adapter(Adapter { a: random((3, IN), 3), b: random((OUT, 3), 4), magnitude }).unwrap();
    linear
}

fn at(first_row: usize) -> Use {
    Use { dropout: Some(DropoutKey { seed: 9, micro_step: 2, site: 5 }), first_row }
}

/// `W + scale B A`, `[out, in]`.
fn made(linear: &Linear) -> Tensor {
    let identity = Tensor::eye(IN, DType::F32, &Device::Cpu).unwrap();
    let w = linear.frozen.product(&identity).unwrap().t().unwrap();
    let Adapter { a, b, .. } = linear.adapter.as_ref().unwrap();
    (w + (b.matmul(a).unwrap() * SCALE).unwrap()).unwrap()
}

#[test]
fn it_is_the_formula_in_every_format_and_either_way_round() {
    let x = random((ROWS, IN), 5);
    for weights in [Weights::F32, Weights::Bf16, Weights::Int8] {
        for transposed in [false, true] {
            let linear = linear(weights, transposed, 0.0);
            let made = made(&linear);
            let norm = made.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            assert!(worst(&linear.norms.as_ref().unwrap().current, &norm) < 1e-5, "{weights:?} {transposed}");
            let factor = (linear.adapter.as_ref().unwrap().magnitude.as_ref().unwrap() / norm).unwrap();
            let turned = x.matmul(&made.t().unwrap()).unwrap().broadcast_mul(&factor).unwrap();
            let expected = turned.broadcast_add(&row(OUT, 2)).unwrap();
            assert!(worst(&linear.forward(&x, at(0)).unwrap(), &expected) < 1e-5, "{weights:?} {transposed}");
        }
    }
}

/// PEFT drops the input of the whole update and adds it to the base's output of the whole input.
#[test]
fn dropout_is_of_the_update_alone() {
    let (x, linear) = (random((ROWS, IN), 5), linear(Weights::F32, false, 0.4));
    let dropped = linear.dropped(&x, at(0)).unwrap();
    let base = |x: &Tensor| linear.frozen.product(x).unwrap();
    let factor = linear.dora().unwrap().factor(Backend::Fused).unwrap();
    let Adapter { a, b, .. } = linear.adapter.as_ref().unwrap();
    let low_rank = (dropped.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap() * SCALE).unwrap();
    let update = (base(&dropped).broadcast_mul(&(&factor - 1.0).unwrap()).unwrap()
        + low_rank.broadcast_mul(&factor).unwrap())
    .unwrap();
    let expected = linear.frozen.add_bias((base(&x) + update).unwrap()).unwrap();
    assert!(worst(&linear.forward(&x, at(0)).unwrap(), &expected) < 1e-5);
}

/// Places for the gradients of its adapter.
fn zeros(linear: &Linear) -> Adapter {
    linear.adapter.as_ref().unwrap().map(Tensor::zeros_like).unwrap()
}

#[test]
fn gradients_equal_finite_differences_with_the_norm_held() {
    let (x, g) = (random((ROWS, IN), 5), random((ROWS, OUT), 6));
    for (transposed, dropout) in [(false, 0.0), (true, 0.0), (false, 0.4), (true, 0.4)] {
        let linear = linear(Weights::F32, transposed, dropout);
        let grad = zeros(&linear);
        let dx = linear.backward(&x, &g, at(0), (true, Some(&grad))).unwrap().unwrap();
        let value = |linear: &Linear, x: &Tensor| dot(&linear.forward(x, at(0)).unwrap(), &g);
        let check = |what: &str, gradient: &Tensor, f: &dyn Fn(usize, f32) -> f64| {
            for (i, expected) in values(gradient).iter().enumerate() {
                let slope = (f(i, 0.05) - f(i, -0.05)) / 0.1;
                let off = (slope - f64::from(*expected)).abs();
                assert!(off < 1e-3, "{what} {i} (dropout {dropout}): {slope} and {expected}");
            }
        };
        check("x", &dx, &|i, by| value(&linear, &moved(&x, i, by)));
        // The adapter is changed behind the norm's back.
        let old = linear.adapter.clone().unwrap();
        for part in 0..3 {
            let gradient = grad.tensors().nth(part).unwrap();
            check(["a", "b", "magnitude"][part], gradient, &|i, by| {
                let mut at = 0..;
                let one = |t: &Tensor| Ok::<_, ()>(if at.next() == Some(part) { moved(t, i, by) } else { t.clone() });
                value(&Linear { adapter: Some(old.map(one).unwrap()), ..linear.clone() }, &x)
            });
        }
    }
}

#[test]
fn chunks_of_rows_give_the_same() {
    let (x, g) = (random((ROWS, IN), 5), random((ROWS, OUT), 6));
    let linear = linear(Weights::Bf16, false, 0.4);
    let (grad, parts) = (zeros(&linear), zeros(&linear));
    let whole = linear.backward(&x, &g, at(0), (true, Some(&grad))).unwrap().unwrap();
    let mut rows = Vec::new();
    for (first, n) in [(0, 4), (4, 2)] {
        let cut = |t: &Tensor| t.narrow(0, first, n).unwrap();
        let dx = linear.backward(&cut(&x), &cut(&g), at(first), (true, Some(&parts))).unwrap().unwrap();
        rows.push(dx);
    }
    assert!(worst(&Tensor::cat(&rows, 0).unwrap(), &whole) < 1e-5);
    for (a, b) in grad.tensors().zip(parts.tensors()) {
        assert!(worst(a, b) < 1e-5);
    }
}

#[test]
fn a_fresh_magnitude_changes_nothing_and_a_row_of_zeros_stays_one() {
    let x = random((ROWS, IN), 5);
    let mut data = values(&random((OUT, IN), 1));
    data[IN..2 * IN].fill(0.0);
    let weight = Stored::Dense(Tensor::from_vec(data, (OUT, IN), &Device::Cpu).unwrap());
    let frozen = Frozen::new(Backend::Fused, weight, Some(row(OUT, 2)), false).unwrap();
    let mut linear = Linear::new(frozen, LoraSettings { scale: SCALE, dropout: 0.0, use_dora: true });
    let b = Tensor::zeros((OUT, 3), DType::F32, &Device::Cpu).unwrap();
    linear.set_adapter(Adapter { a: random((3, IN), 3), b, magnitude: None }).unwrap();
    assert!(worst(&linear.forward(&x, at(0)).unwrap(), &linear.frozen.forward(&x).unwrap()) < 1e-6);
    let grad = zeros(&linear);
    linear.backward(&x, &random((ROWS, OUT), 6), at(0), (true, Some(&grad))).unwrap();
    assert!(grad.tensors().flat_map(values).all(f32::is_finite));
}
