//! Every kernel of the Metal back end, compiled as C++ and run here, against the CPU's kernels and finite differences.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};

use crate::memory::trace::{Event, recorded};
use crate::ops::attention::Shape;
use crate::ops::dropout::{Dropout, DropoutKey, Part};
use crate::ops::metal::{Arg, Queue, Size};
use crate::ops::testing::{kernel_names, kernels, random, values, worst};
use crate::ops::{Backend, Index, Losses, NormWeights, RopeTables};
use crate::spec::model::{Activation, Norm};
use crate::spec::run::engine::NORM_PARTS as PARTS;

fn queue() -> Queue {
    let Backend::Metal(queue) = kernels() else { panic!() };
    queue
}

fn close(a: &Tensor, b: &Tensor, what: &str) {
    // Beside the larger numbers it is their rounding that counts.
    let largest = values(b).into_iter().fold(1f32, |m, x| m.max(x.abs()));
    assert!(worst(a, b) <= 1e-5 * largest, "{what}: {} of {largest}", worst(a, b));
}

fn own(t: &Tensor) -> Tensor {
    t.force_contiguous().unwrap()
}

fn vector(width: usize, seed: u64) -> Tensor {
    random((1, width), 1.5, seed).squeeze(0).unwrap()
}

/// Widths with one SIMD group and with several, none of them a multiple of anything.
const WIDTHS: [usize; 4] = [3, 37, 131, 1031];

#[test]
fn norms() {
    for (width, layer) in WIDTHS.into_iter().flat_map(|w| [(w, false), (w, true)]) {
        let (x, g) = (random((5, width), 2.0, 1), random((5, width), 2.0, 2));
        let (w, b) = (vector(width, 3), vector(width, 4));
        let norm = Norm { layer_norm: layer, eps: 1e-3, offset: 0.5 };
        let [ours, cpu] = [kernels(), Backend::Fused]
            .map(|b2| NormWeights::new(&norm, &w, layer.then_some(&b), (&Device::Cpu, b2)).unwrap());
        close(&ours.forward(&x).unwrap(), &cpu.forward(&x).unwrap(), "forward");
        close(&ours.backward(&x, &g).unwrap(), &cpu.backward(&x, &g).unwrap(), "backward");
    }
}

#[test]
fn activations() {
    // From where everything is cut off to where nothing is.
    let x = random((7, 301), 12.0, 1);
    let (up, g) = (random((7, 301), 2.0, 2), random((7, 301), 2.0, 3));
    for a in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let both = [kernels(), Backend::Fused];
        let [ours, cpu] = both.map(|b| b.act(a, &x).unwrap());
        close(&ours, &cpu, "act");
        let [ours, cpu] = both.map(|b| b.act_bwd(a, &x, own(&g)).unwrap());
        close(&ours, &cpu, "act backward");
        let [ours, cpu] = both.map(|b| b.gated(a, &x, &up).unwrap());
        close(&ours, &cpu, "gated");
        let [ours, cpu] = both.map(|b| b.gated_bwd(a, &x, own(&up), own(&g)).unwrap());
        close(&ours.0, &cpu.0, "gate's gradient");
        close(&ours.1, &cpu.1, "up's gradient");
    }
    let far = Tensor::new(&[[-1e4f32, -90.0, 90.0, 1e4]], &Device::Cpu).unwrap();
    assert!(values(&kernels().act(Activation::Silu, &far).unwrap()).iter().all(|y| y.is_finite()));
}

#[test]
fn rope() {
    let (head_dim, heads) = (10, 3);
    let x = random((5, heads * head_dim), 2.0, 1);
    for backward in [false, true] {
        let [ours, cpu] = [kernels(), Backend::Fused].map(|b| {
            let place = (&Device::Cpu, b);
            let positions = Index::new(vec![0, 1, 2, 0, 7], place).unwrap();
            // Four pairs of five are rotated.
            let tables = RopeTables::new(&[1.0, 0.3, 0.1, 0.01], 1.1, 8, place).unwrap();
            tables.apply(own(&x), head_dim, &positions, backward).unwrap()
        });
        close(&ours, &cpu, "rope");
    }
}

#[test]
fn attention() {
    let base = Shape {
        backend: Backend::Fused,
        heads: 6,
        kv_heads: 2,
        head_dim: 5,
        scale: 0.7,
        softcap: None,
        window: None,
        chunk: 7,
    };
    let examples = [0..1, 1..20, 20..53];
    let [q, g] = [1, 2].map(|seed| random((53, 30), 1.5, seed));
    let [k, v] = [3, 4].map(|seed| random((53, 10), 1.5, seed));
    for cpu in [
        base.clone(),
        Shape { softcap: Some(1.3), chunk: 100, ..base.clone() },
        Shape { window: Some(4), softcap: Some(0.8), ..base.clone() },
        Shape { window: Some(9), chunk: 3, ..base },
    ] {
        let ours = Shape { backend: kernels(), ..cpu.clone() };
        close(&ours.forward(&q, &k, &v, &examples).unwrap(), &cpu.forward(&q, &k, &v, &examples).unwrap(), "forward");
        let [(a, b, c), (d, e, f)] = [&ours, &cpu].map(|s| s.backward((&q, &k, &v), &g, &examples).unwrap());
        [(a, d, "dq"), (b, e, "dk"), (c, f, "dv")].iter().for_each(|(a, b, what)| close(a, b, what));
        let last = q.narrow(0, 40, 13).unwrap();
        close(&ours.forward_last(&last, &k, &v).unwrap(), &cpu.forward_last(&last, &k, &v).unwrap(), "last rows");
    }
}

#[test]
fn cross_entropy() {
    let targets = vec![3, 0, 1030, 7, 3];
    let z = random((5, 1031), 9.0, 1);
    for softcap in [None, Some(4.0)] {
        let [(ours, g), (cpu, expected)] = [kernels(), Backend::Fused].map(|b| {
            let place = (&Device::Cpu, b);
            let index = Index::new(targets.clone(), place).unwrap();
            let mut losses = Losses::new(5, place).unwrap();
            // In two parts, of which the first is of three rows.
            let cut = |from, n| own(&z.narrow(0, from, n).unwrap());
            let first = losses.add(cut(0, 3), &index.part(0..3).unwrap(), softcap, Some(0.3)).unwrap();
            let second = losses.add(cut(3, 2), &index.part(3..5).unwrap(), softcap, Some(0.3)).unwrap();
            (losses.total().unwrap(), Tensor::cat(&[first, second], 0).unwrap())
        });
        assert!((ours - cpu).abs() < 1e-5 * cpu, "{ours} {cpu}");
        close(&g, &expected, "gradient");
        let place = (&Device::Cpu, kernels());
        let mut losses = Losses::new(5, place).unwrap();
        losses.add(own(&z), &Index::new(targets.clone(), place).unwrap(), softcap, None).unwrap();
        assert!((losses.total().unwrap() - cpu).abs() < 1e-5 * cpu);
    }
}

#[test]
fn dropout_drops_what_the_cpu_drops() {
    let key = DropoutKey { seed: 7 | 5 << 40, micro_step: 2, site: 3 };
    let dropout = Dropout { key, p: 0.4, first_row: 9 };
    let x = random((37, 53), 1.0, 4);
    for part in [Part::Kept, Part::Rest] {
        let [ours, cpu] = [kernels(), Backend::Fused].map(|b| b.part(&x, &dropout, part).unwrap());
        assert_eq!(worst(&ours, &cpu), 0.0);
        assert_eq!(worst(&kernels().drop_part(own(&x), &dropout, part).unwrap(), &cpu), 0.0);
    }
}

#[test]
fn sums_and_places() {
    let (b, f) = (kernels(), Backend::Fused);
    let (x, y, row) = (random((7, 33), 1.0, 1), random((7, 33), 1.0, 2), vector(33, 3));
    close(&b.add(own(&x), &y).unwrap(), &(&x + &y).unwrap(), "add");
    close(&b.add(own(&x), &row).unwrap(), &x.broadcast_add(&row).unwrap(), "add a row");
    close(&b.scaled(own(&x), 1.7).unwrap(), &(&x * 1.7).unwrap(), "scale");
    assert_eq!(worst(&b.columns(&x, 5, 9).unwrap(), &x.narrow(1, 5, 9).unwrap()), 0.0);
    assert_eq!(worst(&b.beside(&[&x, &y]).unwrap(), &f.beside(&[&x, &y]).unwrap()), 0.0);
    assert_eq!(worst(&b.turned(&x).unwrap(), &own(&x.t().unwrap())), 0.0);
    assert_eq!(worst(&b.copied(&x).unwrap(), &x), 0.0);
    assert_eq!(values(&b.zeros((2, 3), &Device::Cpu).unwrap()), [0.0; 6]);
    let rows = Index::new(vec![6, 0, 3], (&Device::Cpu, b)).unwrap();
    assert_eq!(worst(&b.take_rows(&x, &rows).unwrap(), &x.index_select(rows.tensor(), 0).unwrap()), 0.0);
    let (w, h, u) = (random((33, 4), 1.0, 4), random((7, 4), 1.0, 5), random((4, 33), 1.0, 6));
    close(&b.add_product(own(&x), &h, &u, 0.4).unwrap(), &f.add_product(own(&x), &h, &u, 0.4).unwrap(), "product");
    let turned = random((33, 4), 1.0, 6).t().unwrap();
    let [ours, cpu] = [b, f].map(|b| b.add_product(own(&x), &h, &turned, 0.4).unwrap());
    close(&ours, &cpu, "product with a transposed matrix");
    // More columns than the kernel for few is for.
    let (wide, tall) = (random((7, 150), 1.0, 7), random((150, 33), 1.0, 8));
    let [ours, cpu] = [b, f].map(|b| b.add_product(own(&x), &wide, &tall, 0.4).unwrap());
    close(&ours, &cpu, "product of many columns");
    close(&b.product(&x, &w, 0.7).unwrap(), &f.product(&x, &w, 0.7).unwrap(), "scaled product");
    let [ours, cpu] = [b, f].map(|b| {
        let out = own(&y);
        b.place_rows(&out, &x.narrow(0, 0, 3).unwrap(), &rows).unwrap();
        b.place_sum(&out, 4, own(&x.narrow(0, 0, 2).unwrap()), &y.narrow(0, 1, 2).unwrap()).unwrap();
        b.product_into_columns(&out, 11, &h, &u.narrow(1, 0, 6).unwrap().force_contiguous().unwrap()).unwrap();
        out
    });
    close(&ours, &cpu, "places");
    let q = queue();
    let y2 = own(&y);
    q.scale_columns(&y2, &row).unwrap();
    close(&y2, &y.broadcast_mul(&row).unwrap(), "columns");
    close(&q.column_dots(&x, &y).unwrap(), &(&x * &y).unwrap().sum(0).unwrap(), "column dots");
    let dots = q.empty(7, &Device::Cpu).unwrap();
    q.row_dots(&x, &y, &dots).unwrap();
    close(&dots, &(&x * &y).unwrap().sum(1).unwrap(), "row dots");
    q.lengths(&vector(7, 8).sqr().unwrap(), &dots, 1e-3).unwrap();
    let expected = (vector(7, 8).sqr().unwrap() + (&x * &y).unwrap().sum(1).unwrap()).unwrap();
    close(&dots, &expected.maximum(1e-3).unwrap().sqrt().unwrap(), "lengths");
    close(&q.quotient(&row, &vector(33, 9)).unwrap(), &(&row / &vector(33, 9)).unwrap(), "quotient");
}

#[test]
fn optimizers_update_as_the_cpu_does() {
    use crate::spec::run::Optimizer as Rule;
    use crate::trainer::candle::optim::{Optimizer, State};
    let q = queue();
    for (rule, rows, width) in [
        (Rule::Adamw, 5, 67),
        // More than one block, the last of them not full; and enough numbers to be quantised.
        (Rule::Adamw8bit, 61, 77),
        (Rule::Adafactor, 61, 77),
        (Rule::Adafactor, 77, 3),
    ] {
        let [ours, cpu, composed] = [kernels(), Backend::Fused, Backend::Composed].map(|b| {
            let p = own(&random((rows, width), 1.0, 1));
            let state = State::new(&p, rule, b).unwrap();
            let books = crate::trainer::candle::optim::adamw_8bit::books(q, &Device::Cpu).unwrap();
            let mut optimizer =
                Optimizer { steps: 0, states: vec![], weight_decay: 0.1, backend: b, books: Some(books) };
            for step in 0..5 {
                optimizer.steps += 1;
                let g = random((rows, width), 0.5 + step as f32, 10 + step as u64);
                optimizer.update(&p, &g, &state, (0.7, 0.03)).unwrap();
            }
            p
        });
        close(&ours, &cpu, &format!("{rule:?}"));
        close(&composed, &cpu, &format!("{rule:?}, composed"));
    }
    let [ours, cpu] = [kernels(), Backend::Fused].map(|b| {
        let p = vector(301, 1);
        let state = State::new(&p, Rule::Adafactor, b).unwrap();
        let optimizer = Optimizer { steps: 1, states: vec![], weight_decay: 0.1, backend: b, books: None };
        optimizer.update(&p, &vector(301, 2), &state, (0.7, 0.03)).unwrap();
        p
    });
    close(&ours, &cpu, "a vector");
    let (x, parts) = (random((13, 77), 1.0, 1), q.empty(PARTS, &Device::Cpu).unwrap());
    q.squares(&x, &parts).unwrap();
    close(&parts.sum_all().unwrap(), &x.sqr().unwrap().sum_all().unwrap(), "squares");
}

/// All formats that a matrix can be held in, of 512 columns, so that every block is whole.
#[test]
fn decoders_give_exactly_what_a_format_holds() {
    use crate::checkpoint::affine::Affine;
    use crate::checkpoint::stored::Stored;
    use crate::spec::model::storage::{AFFINE_BITS, AFFINE_GROUPS, Block, Format};
    let w = Stored::Dense(random((11, 512), 1.0, 3));
    let plain = [Format::F32, Format::F16, Format::Bf16, Format::Int8];
    let put = |format| w.put(format, &Device::Cpu).unwrap();
    let mut all: Vec<Stored> = plain.into_iter().map(put).collect();
    for block in Block::ALL {
        all.push(put(Format::Gguf(block)));
    }
    for (bits, group) in AFFINE_BITS.iter().flat_map(|b| AFFINE_GROUPS.iter().map(move |g| (*b, *g))) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let bytes: Vec<u8> = (0..11 * 512 * bits / 8).map(|i| (i * 37 + i / 5) as u8).collect();
            let codes = Tensor::from_vec(bytes, (11, 512 * bits / 8), &Device::Cpu).unwrap();
            let part = |seed| random((11, 512 / group), 0.1, seed).to_dtype(dtype).unwrap();
            all.push(Stored::Affine(Affine::new(codes, part(1), part(2), 512).unwrap()));
        }
    }
    // Groups that do not divide the row.
    all.push(Stored::Dense(random((3, 100), 1.0, 3)).put(Format::Int8, &Device::Cpu).unwrap());
    for stored in all {
        let (rows, _) = stored.dims().unwrap();
        let laid_out = stored.for_kernels(&Device::Cpu).unwrap();
        let what = format!("{:?}", stored.format());
        assert_eq!((laid_out.dims().unwrap(), laid_out.format()), (stored.dims().unwrap(), stored.format()));
        let [ours, cpu] =
            [(&laid_out, kernels()), (&stored, Backend::Fused)].map(|(s, b)| s.panel(b, 1, rows - 1).unwrap());
        assert_eq!(worst(&ours, &cpu), 0.0, "{what}");
        let ids = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
        let [ours, cpu] = [(&laid_out, kernels()), (&stored, Backend::Fused)].map(|(s, b)| s.rows(b, &ids).unwrap());
        assert_eq!(worst(&ours, &cpu), 0.0, "{what}, rows by their numbers");
    }
}

/// A kernel that no test launches would be believed and not proved.
#[test]
fn every_kernel_is_launched_by_these_tests() {
    let ((), events) = recorded(|| {
        norms();
        activations();
        rope();
        attention();
        cross_entropy();
        dropout_drops_what_the_cpu_drops();
        sums_and_places();
        optimizers_update_as_the_cpu_does();
        decoders_give_exactly_what_a_format_holds();
    });
    let launched: BTreeSet<&str> = events
        .iter()
        .filter_map(|event| match event {
            Event::Launch { kernel, .. } => Some(*kernel),
            _ => None,
        })
        .collect();
    let all = kernel_names();
    assert!(all.len() > 40);
    let missing: Vec<&String> = all.iter().filter(|name| !launched.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn products_that_metal_refuses_are_refused_here() {
    let (q, a, b) = (queue(), random((4, 6), 1.0, 1), random((6, 5), 1.0, 2));
    assert!(q.product(&a, &b).is_ok());
    assert!(q.product(&b.t().unwrap(), &a.t().unwrap()).is_ok());
    // Some columns of a wider matrix: its rows do not follow each other.
    assert!(q.product(&a.narrow(1, 0, 3).unwrap(), &b.narrow(0, 0, 3).unwrap()).is_err());
    assert!(q.product(&a, &b.narrow(1, 0, 2).unwrap()).is_err());
    assert!(q.product(&a.to_dtype(DType::F16).unwrap(), &b).is_err());
    // The same matrix for several of a batch, in four dimensions.
    let four =
        |t: &Tensor, batch: usize| t.unsqueeze(0).unwrap().unsqueeze(0).unwrap().repeat((1, batch, 1, 1)).unwrap();
    assert!(q.product(&four(&a, 2), &four(&b, 2)).is_err());
    assert!(q.launch("copy", &[Arg::In(&a.t().unwrap())], &[], Size::matrix(1, 1), 0).is_err());
    assert!(q.launch("no such kernel", &[Arg::In(&a)], &[], Size::matrix(1, 1), 0).is_err());
}
