//! An independent twin: the same small network trained by candle's autograd and candle-nn's layers, loss and optimizer.

use candle_core::{DType, Device, Module};
use candle_nn::{AdamW, Init, ParamsAdamW, VarMap};

use super::*;
use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::stored::Stored;
use crate::ops::testing::{random, worst};
use crate::ops::{Backend, Index, Losses};
use crate::spec::model::Activation;
use crate::trainer::candle::nn::frozen::Frozen;
use crate::trainer::candle::nn::linear::{Linear, LoraSettings, Use};

const RATE: f64 = 0.02;
const DECAY: f64 = 0.1;
const SCALE: f64 = 1.5;
const RANK: usize = 3;
/// Widths of the input, of what lies between the two projections, and of the output.
const WIDTHS: [usize; 3] = [7, 10, 9];
const TARGETS: [u32; 12] = [0, 8, 3, 3, 5, 1, 7, 2, 2, 6, 4, 0];
const STEPS: usize = 40;

/// Weight, bias, A and B of projection `i`.
fn projection(i: usize) -> [Tensor; 4] {
    let (input, output, seed) = (WIDTHS[i], WIDTHS[i + 1], 10 * i as u64);
    let bias = random((1, output), 0.5, seed + 2).squeeze(0).unwrap();
    [
        random((output, input), 0.7, seed + 1),
        bias,
        random((RANK, input), 0.5, seed + 3),
        random((output, RANK), 0.5, seed + 4),
    ]
}

fn input() -> Tensor {
    random((TARGETS.len(), WIDTHS[0]), 1.0, 99)
}

/// The losses of the steps, and A and B of both projections after them.
type Trained = (Vec<f64>, Vec<Tensor>);

fn ours() -> Trained {
    let lora = LoraSettings { scale: SCALE, dropout: 0.0, use_dora: false };
    let mut layers = [0, 1].map(|i| {
        let [weight, bias, a, b] = projection(i);
        let mut linear =
            Linear::new(Frozen::new(Backend::Fused, Stored::Dense(weight), Some(bias), false).unwrap(), lora);
        linear.set_adapter(Adapter { a, b, magnitude: None }).unwrap();
        linear
    });
    let rule = run::Optimizer::Adamw;
    let fused = Backend::Fused;
    let states =
        layers.iter().map(|l| l.adapter.as_ref().unwrap().tensors().map(|p| State::new(p, rule, fused).unwrap()));
    let states = states.map(Iterator::collect).collect();
    let mut optimizer = Optimizer { steps: 0, states, weight_decay: DECAY, backend: fused, books: None };
    let zeros = |l: &Linear| l.adapter.as_ref().unwrap().map(Tensor::zeros_like).unwrap();
    let (x, at, mut losses) = (input(), Use { dropout: None, first_row: 0 }, Vec::new());
    for _ in 0..STEPS {
        let hidden = layers[0].forward(&x, at).unwrap();
        let active = Backend::Fused.act(Activation::Silu, &hidden).unwrap();
        let logits = layers[1].forward(&active, at).unwrap();
        let place = (&Device::Cpu, Backend::Fused);
        let (targets, mut sum) =
            (Index::new(TARGETS.to_vec(), place).unwrap(), Losses::new(TARGETS.len(), place).unwrap());
        let g = sum.add(logits, &targets, None, Some(1.0 / TARGETS.len() as f64)).unwrap();
        losses.push(sum.total().unwrap() / TARGETS.len() as f64);
        let grads = [zeros(&layers[0]), zeros(&layers[1])];
        let g = layers[1].backward(&active, &g, at, (true, Some(&grads[1]))).unwrap().unwrap();
        let g = Backend::Fused.act_bwd(Activation::Silu, &hidden, g).unwrap();
        layers[0].backward(&x, &g, at, (false, Some(&grads[0]))).unwrap();
        optimizer.steps += 1;
        for ((layer, grad), states) in layers.iter_mut().zip(&grads).zip(&optimizer.states) {
            for ((p, g), state) in layer.adapter.as_ref().unwrap().tensors().zip(grad.tensors()).zip(states) {
                optimizer.update(p, g, state, (1.0, RATE)).unwrap();
            }
        }
    }
    (losses, layers.iter().flat_map(|l| l.adapter.as_ref().unwrap().tensors().cloned()).collect())
}

#[allow(clippy::disallowed_methods)] // candle's own backward pass is what ours is held against
fn theirs() -> Trained {
    let mut vars = VarMap::new();
    let layers = [0, 1].map(|i| {
        let [weight, bias, a, b] = projection(i);
        let mut learned = |name: &str, value: &Tensor| {
            let name = format!("{i}.{name}");
            let made = vars.get(value.shape(), &name, Init::Const(0.0), DType::F32, &Device::Cpu).unwrap();
            vars.set_one(&name, value).unwrap();
            candle_nn::Linear::new(made, None)
        };
        let (a, b) = (learned("a", &a), learned("b", &b));
        (candle_nn::Linear::new(weight, Some(bias)), a, b)
    });
    let settings = ParamsAdamW { lr: RATE, beta1: BETA1, beta2: BETA2, eps: EPS, weight_decay: DECAY };
    let mut optimizer = <AdamW as candle_nn::Optimizer>::new(vars.all_vars(), settings).unwrap();
    let forward = |(base, a, b): &(candle_nn::Linear, candle_nn::Linear, candle_nn::Linear), x: &Tensor| {
        base.forward(x)? + (b.forward(&a.forward(x)?)? * SCALE)?
    };
    let (x, targets, mut losses) = (input(), Tensor::new(&TARGETS, &Device::Cpu).unwrap(), Vec::new());
    for _ in 0..STEPS {
        let logits = forward(&layers[1], &forward(&layers[0], &x).unwrap().silu().unwrap()).unwrap();
        let loss = candle_nn::loss::cross_entropy(&logits, &targets).unwrap();
        losses.push(f64::from(loss.to_scalar::<f32>().unwrap()));
        candle_nn::Optimizer::backward_step(&mut optimizer, &loss).unwrap();
    }
    (losses, layers.iter().flat_map(|(_, a, b)| [a.weight().clone(), b.weight().clone()]).collect())
}

#[test]
fn candle_s_autograd_learns_the_same() {
    let ((losses, learned), (expected, twins)) = (ours(), theirs());
    for (step, (loss, expected)) in losses.iter().zip(&expected).enumerate() {
        assert!((loss - expected).abs() < 1e-5, "step {step}: loss {loss}, of candle {expected}");
    }
    assert!(losses.len() == STEPS && losses[STEPS - 1] < 0.5 * losses[0], "{losses:?}");
    for (i, (ours, theirs)) in learned.iter().zip(&twins).enumerate() {
        assert!(worst(ours, theirs) < 1e-4, "tensor {i} differs by {}", worst(ours, theirs));
    }
    assert_eq!((learned.len(), twins.len()), (4, 4));
}
