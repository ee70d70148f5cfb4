//! Laws that hold whatever the reference says.

use super::*;

#[test]
pub(crate) fn micro_batches_and_chunks_do_not_change_what_is_learned() {
    let run = |execution: &str| first_step(&adapted("qwen2", execution));
    let (loss, grads) = run("weights = \"f32\"\nbatch_size = 1\nloss_chunk = 3\nattention_chunk = 2\nmlp_chunk = 4");
    let (whole_loss, whole) = run("weights = \"f32\"\nbatch_size = 4\nloss_chunk = 512\nattention_chunk = 256");
    assert!((loss - whole_loss).abs() < 1e-5, "{loss} {whole_loss}");
    for (a, b) in grads.iter().zip(&whole) {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        for (a, b) in [(&a.a, &b.a), (&a.b, &b.b)] {
            let worst = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-5, "{worst}");
        }
    }
}

/// Sum of the cross-entropies and its gradients, of micro-batches one after the other.
pub(crate) fn losses_and_grads(fixture: &Fixture, batches: &[MicroBatch], scale: f64) -> (f64, Grads) {
    let mut buffers = fixture.decoder.buffers().unwrap();
    let of = |batch| fixture.decoder.loss_and_grads(batch, scale, (3, 4), &mut buffers).unwrap();
    (batches.iter().map(of).sum(), buffers.grads)
}

/// Packing changes nothing for an example: it stands at its own positions and sees only itself.
#[test]
pub(crate) fn a_packed_row_is_its_examples_one_by_one() {
    for family in all() {
        let mut fixture = adapted(family, ODD);
        fixture.run.recipe.packing = true;
        let packed = Batches::new(&fixture.rows, &fixture.run, false).step(0);
        let examples: Vec<&Example> = {
            let rows = batches::rows(&fixture.rows, &fixture.run);
            rows[..4].iter().flatten().map(|&i| &fixture.rows[i]).collect()
        };
        assert!(packed.iter().map(|b| b.examples.len()).sum::<usize>() == examples.len() && examples.len() > 4);
        let alone: Vec<MicroBatch> = examples.iter().map(|e| pack(&[e], &fixture.run, false)).collect();
        let (loss, grads) = losses_and_grads(&fixture, &packed, 0.01);
        let (expected_loss, expected) = losses_and_grads(&fixture, &alone, 0.01);
        assert!((loss / expected_loss - 1.0).abs() < 1e-6, "{family}: {loss} {expected_loss}");
        for (a, b) in grads.iter().flatten().zip(expected.iter().flatten()) {
            for (a, b) in a.tensors().zip(b.tensors()) {
                let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let error = norm(&(a - b).unwrap()) / norm(b);
                assert!(error < 1e-4, "{family}: {error}");
            }
        }
    }
}

/// In every family, with dropout drawn, every tensor that learns has a gradient that is not zero, and along it the
/// loss rises as the gradient says. DoRA's A and B have the norm held, so there it is the magnitude that is tried.
#[test]
pub(crate) fn the_loss_rises_along_every_gradient() {
    let kinds = [
        "lora = { rank = 4, alpha = 6, dropout = 0.3 }",
        "lora = { rank = 4, alpha = 6, dropout = 0.3, use_dora = true }",
    ];
    for (family, kind) in FAMILIES.into_iter().flat_map(|family| kinds.map(|kind| (family, kind))) {
        let dora = kind.contains("use_dora");
        let mut fixture = opened(family, Some(kind), ODD);
        let start = adapted(family, ODD);
        for i in 0..start.decoder.sites.len() {
            fixture.decoder.set_adapter(i, start.decoder.adapter(i).unwrap().clone()).unwrap();
        }
        let batch = [pack(&[&fixture.rows[1], &fixture.rows[2]], &fixture.run, false)];
        let scale = 1.0 / batch[0].targets.len() as f64;
        let (_, grads) = losses_and_grads(&fixture, &batch, scale);
        let old: Vec<Adapter> =
            (0..fixture.decoder.sites.len()).map(|i| fixture.decoder.adapter(i).unwrap().clone()).collect();
        let grads: Vec<&Adapter> = (0..old.len()).map(|i| grads[fixture.decoder.place(i)].as_ref().unwrap()).collect();
        let square = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        for (grad, site) in grads.iter().zip(&fixture.decoder.sites) {
            assert_eq!(grad.tensors().count(), if dora { 3 } else { 2 });
            assert!(grad.tensors().all(|t| square(t) > 1e-12), "{family} {}: a gradient of nothing", site.path);
        }
        for part in if dora { 2..3 } else { 0..2 } {
            let length = grads.iter().map(|g| square(g.tensors().nth(part).unwrap())).sum::<f64>().sqrt();
            let mut loss_at = |by: f64| {
                for (i, (old, grad)) in old.iter().zip(&grads).enumerate() {
                    let mut parts = grad.tensors().enumerate();
                    let new = old.map(|p| {
                        let (at, g) = parts.next().unwrap();
                        if at == part { p + (g * (by / length))? } else { Ok(p.clone()) }
                    });
                    fixture.decoder.set_adapter(i, new.unwrap()).unwrap();
                }
                scale * losses_and_grads(&fixture, &batch, scale).0
            };
            let (h, slope) = (0.02, |a: f64, b: f64, h: f64| (a - b) / (2.0 * h));
            // Two steps, extrapolated, so that curvature falls out.
            let near = slope(loss_at(h), loss_at(-h), h);
            let far = slope(loss_at(2.0 * h), loss_at(-2.0 * h), 2.0 * h);
            let rise = (4.0 * near - far) / 3.0;
            assert!((rise / length - 1.0).abs() < 0.02, "{family} {kind} part {part}: {rise}, gradient {length}");
        }
    }
}

#[test]
pub(crate) fn adapters_on_the_last_layers_only_get_the_same_gradients() {
    let mut fixture = open("llama", ODD);
    fixture.run.recipe.lora.num_layers = 1;
    let source = ModelSource::Folder(fixture.folder.clone());
    let mut few =
        Decoder::load(&source.weights().unwrap(), &fixture.spec, &fixture.run, (&Device::Cpu, common::backend()))
            .unwrap();
    let all = adapted("llama", ODD);
    // The same adapters everywhere; the first layers' are part of the base of neither run, so compare at B = start.
    let offset = all.decoder.sites.len() - few.sites.len();
    for i in 0..few.sites.len() {
        few.set_adapter(i, all.decoder.adapter(offset + i).unwrap().clone()).unwrap();
    }
    let mut bare = adapted("llama", ODD);
    for i in 0..offset {
        let old = bare.decoder.adapter(i).unwrap().clone();
        bare.decoder.set_adapter(i, Adapter { b: old.b.zeros_like().unwrap(), ..old }).unwrap();
    }
    let batch = pack(&[&fixture.rows[0], &fixture.rows[1]], &fixture.run, false);
    let (mut own, mut others) = (few.buffers().unwrap(), bare.decoder.buffers().unwrap());
    let loss = few.loss_and_grads(&batch, 0.1, (0, 0), &mut own).unwrap();
    let expected_loss = bare.decoder.loss_and_grads(&batch, 0.1, (0, 0), &mut others).unwrap();
    let (grads, expected) = (own.grads, others.grads);
    assert_eq!(loss, expected_loss);
    assert!(grads[..offset].iter().all(Option::is_none));
    for (a, b) in grads.iter().zip(&expected).skip(offset) {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        assert_eq!(a.a.to_vec2::<f32>().unwrap(), b.a.to_vec2::<f32>().unwrap());
        assert_eq!(a.b.to_vec2::<f32>().unwrap(), b.b.to_vec2::<f32>().unwrap());
    }
}

/// The weights rounded to bf16 must give what the same run gives whose f32 weights were rounded before: the format is
/// storage only. GPT-2 keeps its matrices the other way round.
#[test]
pub(crate) fn a_half_precision_base_computes_in_f32() {
    for family in ["qwen2", "gpt2"] {
        let mut losses = Vec::new();
        for weights in ["bf16", "f16"] {
            let fixture = adapted(family, &format!("batch_size = 2\nweights = \"{weights}\""));
            losses.push(first_step(&fixture).0);
        }
        let full = first_step(&adapted(family, "batch_size = 2\nweights = \"f32\"")).0;
        let (bf16, f16) = ((losses[0] - full).abs() / full, (losses[1] - full).abs() / full);
        assert!(bf16 > 1e-7 && bf16 < 1e-2, "{family} bf16 {bf16}");
        assert!(f16 < 2e-3 && f16 < bf16, "{family} f16 {f16}");
    }
}

/// With adapters on a few projections only, each update must reach its own adapter.
#[test]
pub(crate) fn a_step_with_few_targets_moves_each_adapter_against_its_gradient() {
    let mut fixture = open("qwen2", ODD);
    fixture.run.recipe.lora.target_modules = vec!["v_proj".into(), "down_proj".into()];
    fixture.run.recipe.lora.num_layers = 2;
    let source = ModelSource::Folder(fixture.folder.clone());
    let mut decoder =
        Decoder::load(&source.weights().unwrap(), &fixture.spec, &fixture.run, (&Device::Cpu, common::backend()))
            .unwrap();
    assert_eq!(decoder.sites.len(), 4);
    let all = adapted("qwen2", ODD);
    for i in 0..decoder.sites.len() {
        let same = all.decoder.sites.iter().position(|s| s.path == decoder.sites[i].path).unwrap();
        decoder.set_adapter(i, all.decoder.adapter(same).unwrap().clone()).unwrap();
    }
    let batch = pack(&[&fixture.rows[0], &fixture.rows[1]], &fixture.run, false);
    let mut buffers = decoder.buffers().unwrap();
    let before = decoder.loss_and_grads(&batch, 0.1, (0, 0), &mut buffers).unwrap();
    let grads = buffers.grads;
    assert_eq!(grads.iter().flatten().count(), 4);
    let old: Vec<Adapter> = (0..4).map(|i| decoder.adapter(i).unwrap().map(Tensor::copy).unwrap()).collect();
    let signs: Vec<Tensor> = (0..4).map(|i| grads[decoder.place(i)].as_ref().unwrap().b.sign().unwrap()).collect();
    Optimizer::new(&decoder, &Recipe::default()).unwrap().step(&mut decoder, &grads, 1.0, 1e-3).unwrap();
    for i in 0..4 {
        // Adam's first step is the learning rate against the gradient's sign.
        let moved = ((&decoder.adapter(i).unwrap().b - &old[i].b).unwrap() / -1e-3).unwrap();
        let worst = (moved - &signs[i]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-2, "{}: {worst}", decoder.sites[i].path);
    }
    assert!(decoder.loss(&batch).unwrap() < before);
}
