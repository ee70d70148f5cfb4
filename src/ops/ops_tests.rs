//! Every operation: the fused kernel against candle's composition, and the gradient against finite differences.

use candle_core::{DType, Device, Tensor};

use super::activation::{composed_act, composed_slope};
use super::cross_entropy::cross_entropy_composed;
use super::*;
use crate::ops::testing::{self, dot, moved, values, worst};
use crate::spec::model::{Activation, Norm};

fn random(rows: usize, width: usize, seed: u64) -> Tensor {
    testing::random((rows, width), 2.0, seed)
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32, what: &str) {
    let worst = worst(a, b);
    assert!(worst <= tolerance, "{what}: worst difference {worst}");
}

/// Compares `gradient` with the central difference of `sum(f(x) * g)`, element by element.
fn check_gradient(x: &Tensor, g: &Tensor, gradient: &Tensor, f: impl Fn(&Tensor) -> Tensor, what: &str) {
    let h = 1e-2f32;
    for (i, grad) in values(gradient).into_iter().enumerate() {
        let value = |by: f32| dot(&f(&moved(x, i, by)), g);
        // The four-point stencil: its error is of fourth order, so a step well above f32's noise will do.
        let slope = (8.0 * (value(h) - value(-h)) - (value(2.0 * h) - value(-2.0 * h))) / (12.0 * f64::from(h));
        assert!((slope - f64::from(grad)).abs() < 2e-3 * (1.0 + slope.abs()), "{what}[{i}]: {slope} and {grad}");
    }
}

#[test]
fn norms() {
    let (x, g) = (random(5, 11, 1), random(5, 11, 2));
    let (w, b) = (random(1, 11, 3).squeeze(0).unwrap(), random(1, 11, 4).squeeze(0).unwrap());
    for (offset, bias) in [(0.0, None), (1.0, None), (0.0, Some(&b))] {
        let norm = Norm { layer_norm: bias.is_some(), eps: 1e-3, offset };
        let norm = NormWeights::new(&norm, &w, bias, (&Device::Cpu, Backend::Fused)).unwrap();
        close(&norm.forward(&x).unwrap(), &norm.forward_composed(&x).unwrap(), 1e-5, "forward");
        let dx = norm.backward(&x, &g).unwrap();
        close(&dx, &norm.backward_composed(&x, &g).unwrap(), 1e-5, "backward");
        check_gradient(&x, &g, &dx, |x| norm.forward(x).unwrap(), "norm");
    }
}

#[test]
fn activations() {
    let (x, up, g) = (random(3, 7, 1), random(3, 7, 2), random(3, 7, 3));
    for a in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        close(&Backend::Fused.act(a, &x).unwrap(), &composed_act(a, &x).unwrap(), 1e-5, "act");
        let own = |t: &Tensor| t.force_contiguous().unwrap(); // what is used up, others hold
        let dx = Backend::Fused.act_bwd(a, &x, own(&g)).unwrap();
        close(&dx, &(composed_slope(a, &x).unwrap() * &g).unwrap(), 1e-5, "act_bwd");
        check_gradient(&x, &g, &dx, |x| Backend::Fused.act(a, x).unwrap(), "act");
        let (dgate, dup) = Backend::Fused.gated_bwd(a, &x, own(&up), own(&g)).unwrap();
        check_gradient(&x, &g, &dgate, |x| Backend::Fused.gated(a, x, &up).unwrap(), "gate");
        check_gradient(&up, &g, &dup, |up| Backend::Fused.gated(a, &x, up).unwrap(), "up");
    }
}

#[test]
fn rope_rotates_back() {
    let (head_dim, heads, dims) = (6, 3, 4);
    let x = random(5, heads * head_dim, 1);
    let positions = Index::new(vec![0, 1, 2, 0, 7], (&Device::Cpu, Backend::Fused)).unwrap();
    let own = |t: &Tensor| t.force_contiguous().unwrap();
    let tables = RopeTables::new(&[1.0, 0.3], 1.1, 8, (&Device::Cpu, Backend::Fused)).unwrap();
    assert_eq!(tables.half * 2, dims);
    let y = tables.apply(own(&x), head_dim, &positions, false).unwrap();
    close(&y, &tables.apply_composed(&x, head_dim, positions.tensor(), 1.0).unwrap(), 1e-6, "rope");
    assert!(values(&y) != values(&x));
    let g = random(5, heads * head_dim, 2);
    let dx = tables.apply(own(&g), head_dim, &positions, true).unwrap();
    close(&dx, &tables.apply_composed(&g, head_dim, positions.tensor(), -1.0).unwrap(), 1e-6, "rope backward");
    check_gradient(&x, &g, &dx, |x| tables.apply(own(x), head_dim, &positions, false).unwrap(), "rope");
}

#[test]
fn cross_entropy_and_its_gradient() {
    let z = random(4, 9, 1);
    let place = (&Device::Cpu, Backend::Fused);
    let targets = Index::new(vec![3, 0, 8, 3], place).unwrap();
    for softcap in [None, Some(1.7)] {
        let loss_of = |z: &Tensor| {
            let mut losses = Losses::new(4, place).unwrap();
            let g = losses.add(z.copy().unwrap(), &targets, softcap, Some(0.25)).unwrap();
            (losses.total().unwrap(), g)
        };
        let (loss, g) = loss_of(&z);
        let (loss2, g2) = cross_entropy_composed(&z, targets.tensor(), softcap, 0.25).unwrap();
        assert!((loss - loss2).abs() < 1e-5);
        close(&g, &g2, 1e-6, "gradient");
        let one = Tensor::new(&[[1f32]], &Device::Cpu).unwrap();
        let scaled = |z: &Tensor| Tensor::new(&[[(loss_of(z).0 * 0.25) as f32]], &Device::Cpu).unwrap();
        check_gradient(&z, &one, &g, scaled, "cross-entropy");
    }
}

#[test]
fn rows_are_placed_where_their_targets_are() {
    let out = Tensor::zeros((6, 2), DType::F32, &Device::Cpu).unwrap();
    let part = random(4, 2, 1);
    let rows = Index::new(vec![0, 1, 3, 5], (&Device::Cpu, Backend::Fused)).unwrap();
    Backend::Fused.place_rows(&out, &part, &rows).unwrap();
    let (out, part) = (out.to_vec2::<f32>().unwrap(), part.to_vec2::<f32>().unwrap());
    assert_eq!([&out[0], &out[1], &out[3], &out[5]], [&part[0], &part[1], &part[2], &part[3]]);
    assert_eq!([&out[2], &out[4]], [&vec![0.0, 0.0], &vec![0.0, 0.0]]);
}
