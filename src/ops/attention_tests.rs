use candle_core::Device;

use super::*;
use crate::ops::testing::{self, values, worst};

fn random(rows: usize, width: usize, seed: u64) -> Tensor {
    testing::random((rows, width), 1.5, seed)
}

fn shapes() -> Vec<Shape> {
    let base = Shape {
        backend: Backend::Fused,
        heads: 4,
        kv_heads: 2,
        head_dim: 3,
        scale: 0.7,
        softcap: None,
        window: None,
        chunk: 4,
    };
    vec![
        base.clone(),
        Shape { kv_heads: 1, window: Some(3), ..base.clone() },
        Shape { kv_heads: 4, softcap: Some(1.3), chunk: 100, ..base.clone() },
        Shape { softcap: Some(0.9), window: Some(5), chunk: 3, ..base },
    ]
}

/// The definition, row by row.
fn naive(shape: &Shape, q: &Tensor, k: &Tensor, v: &Tensor, examples: &[Range<usize>]) -> Vec<f32> {
    let rows = |t: &Tensor| t.to_vec2::<f32>().unwrap();
    let (q, k, v) = (rows(q), rows(k), rows(v));
    let mut out = Vec::new();
    for e in examples {
        for t in e.clone() {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads) * shape.head_dim;
                let at = h * shape.head_dim;
                let from = shape.window.map_or(e.start, |w| (t + 1).saturating_sub(w).max(e.start));
                let s: Vec<f32> = (from..=t)
                    .map(|s| {
                        let dot: f32 = (0..shape.head_dim).map(|i| q[t][at + i] * k[s][kv + i]).sum();
                        let z = dot * shape.scale as f32;
                        shape.softcap.map_or(z, |c| c as f32 * (z / c as f32).tanh())
                    })
                    .collect();
                let sum: f32 = s.iter().map(|s| s.exp()).sum();
                for i in 0..shape.head_dim {
                    out.push((from..=t).zip(&s).map(|(j, s)| s.exp() / sum * v[j][kv + i]).sum());
                }
            }
        }
    }
    out
}

#[test]
fn both_forms_equal_the_definition() {
    let examples = [0..7, 7..8, 8..19];
    for shape in shapes() {
        let q = random(19, shape.q_width(), 1);
        let (k, v) = (random(19, shape.kv_width(), 2), random(19, shape.kv_width(), 3));
        let o = shape.forward(&q, &k, &v, &examples).unwrap();
        let expected = naive(&shape, &q, &k, &v, &examples);
        let error = values(&o).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-5, "{shape:?}: {error}");
        assert!(worst(&o, &shape.forward_composed(&q, &k, &v, &examples).unwrap()) < 1e-5, "{shape:?}");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let examples = [0..5, 5..12];
    for shape in shapes() {
        let x = [random(12, shape.q_width(), 1), random(12, shape.kv_width(), 2), random(12, shape.kv_width(), 3)];
        let g = random(12, shape.q_width(), 4);
        let (dq, dk, dv) = shape.backward((&x[0], &x[1], &x[2]), &g, &examples).unwrap();
        let composed = shape.backward_composed((&x[0], &x[1], &x[2]), &g, &examples).unwrap();
        for (a, b) in [(&dq, &composed.0), (&dk, &composed.1), (&dv, &composed.2)] {
            assert!(worst(a, b) < 1e-5, "{shape:?}");
        }
        let value = |x: &[Tensor; 3]| -> f64 {
            let o = shape.forward(&x[0], &x[1], &x[2], &examples).unwrap();
            values(&o).iter().zip(values(&g)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
        };
        for (which, gradient) in [&dq, &dk, &dv].into_iter().enumerate() {
            let gradient = values(gradient);
            for i in (0..gradient.len()).step_by(5) {
                let moved = |by: f32| {
                    let mut y = x.clone();
                    let mut data = values(&x[which]);
                    data[i] += by;
                    y[which] = Tensor::from_vec(data, x[which].shape(), &Device::Cpu).unwrap();
                    value(&y)
                };
                let slope = (moved(0.02) - moved(-0.02)) / 0.04;
                assert!((slope - f64::from(gradient[i])).abs() < 3e-3, "{which}[{i}] {slope} {}", gradient[i]);
            }
        }
    }
}
