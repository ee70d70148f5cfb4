use super::*;

/// A row that nothing is missing from.
fn row() -> FieldRun {
    FieldRun {
        id: "FR1".into(),
        date: "2026-07".into(),
        framework: "mlx-lm".into(),
        chip: "M1 Max".into(),
        ram_gb: Some(32.0),
        model: "mlx-community/Qwen3-8B-4bit".into(),
        quant_bits: Some(4.0),
        fine_tune_type: "lora".into(),
        lora_rank: Some(8),
        lora_layers: Some(16),
        lora_targets: "all linear (7/layer)".into(),
        batch_size: Some(2),
        max_seq_len: Some(1024),
        avg_tokens_per_example_or_iter: Some(700.0),
        tokens_per_s: Some(100.0),
        peak_mem_gb: Some(9.0),
        outcome: Ending::Ok,
        ..FieldRun::default()
    }
}

#[test]
fn a_row_becomes_the_run_that_it_tells_of() {
    let case = Case::of(&row()).unwrap();
    let four = Format::Affine { bits: 4, group: 64, scales: Dtype::Bf16 };
    assert_eq!((case.run.model.as_str(), case.spec.storage.format), ("Qwen/Qwen3-8B", four));
    assert_eq!((case.run.recipe.lora.num_layers, case.run.execution.grad_checkpoint), (16, false));
    // Both bins of the M1 Max were sold with 32 GB, and the row does not say which it was.
    assert_eq!(case.machines.iter().map(|m| m.cores).collect::<Vec<_>>(), [24, 32]);
    assert_eq!(case.known, LengthKnowledge::Average(350));
    assert_eq!((case.lengths().max(), case.longest().max()), (350, 1024));
    assert_eq!(case.speed(&row()), Ok(100.0));
    let old = FieldRun { date: "2025-08".into(), lora_targets: String::new(), lora_layers: Some(36), ..row() };
    let lora = Case::of(&old).unwrap().run.recipe.lora;
    assert_eq!((lora.target_modules, lora.num_layers), (vec!["q_proj".into(), "v_proj".into()], -1));
    let named = FieldRun { lora_targets: "self_attn.q_proj,v,gate".into(), ..row() };
    assert_eq!(Case::of(&named).unwrap().run.recipe.lora.target_modules, ["q_proj", "v_proj", "gate_proj"]);
}

#[test]
fn the_longest_batch_is_known_where_rows_are_full_or_the_notes_say_it() {
    let known = |row: FieldRun| Case::of(&row).unwrap().known;
    let full = FieldRun { avg_tokens_per_example_or_iter: Some(2048.0), ..row() };
    assert_eq!(known(full.clone()), LengthKnowledge::Fixed(1024));
    // Without a cap of its own a row can not be full.
    assert_eq!(known(FieldRun { max_seq_len: None, ..full }), LengthKnowledge::Average(1024));
    let notes = "full examples are 106-227 tokens (mean 134, v4 data)".to_owned();
    let stated = FieldRun { notes, it_per_s: Some(0.5), mask_prompt: Some(true), ..row() };
    let case = Case::of(&stated).unwrap();
    assert_eq!((case.known, case.known.longest()), (LengthKnowledge::Longest { mean: 134, longest: 227 }, true));
    // Two examples of 134 tokens, every other second: what was printed leaves the prompts out.
    assert_eq!(case.speed(&stated), Ok(134.0));
    assert_eq!(known(FieldRun { avg_tokens_per_example_or_iter: None, ..row() }), LengthKnowledge::Cap);
}

#[test]
fn every_rule_leaves_out_what_it_is_for() {
    let whole = |change: fn(&mut FieldRun)| {
        let mut row = row();
        change(&mut row);
        Case::of(&row).err()
    };
    for (rule, change) in [
        (Rule::Trainer, (|r| r.framework = "mlx-tune".into()) as fn(&mut FieldRun)),
        (Rule::Trainer, |r| r.framework = "mlx-lm trainer + fused CE kernel".into()),
        (Rule::Trainer, |r| r.framework = "PyTorch MPS".into()),
        (Rule::FineTuneType, |r| r.fine_tune_type = "dora".into()),
        (Rule::NoModel, |r| r.model = String::new()),
        (Rule::NoModel, |r| r.model = "1B (unspecified)".into()),
        (Rule::Architecture, |r| r.model = "mlx-community/Qwen3.5-9B-4bit".into()),
        (Rule::Architecture, |r| r.model = "LiquidAI/LFM2-2.6B-Exp (bf16)".into()),
        (Rule::Architecture, |r| r.model = "somebody/gemma-3n-E4B".into()),
        (Rule::UnknownModel, |r| r.model = "somebody/Tortoise-8B".into()),
        (Rule::UnknownModel, |r| r.model = "dolphin-of-Qwen3-8B".into()),
        (Rule::Version, |r| r.date = "2024-09-12".into()),
        (Rule::Format, |r| (r.quant_bits, r.model) = (None, "Qwen/Qwen3-8B".into())),
        (Rule::Format, |r| r.quant_bits = Some(1.58)),
        (Rule::Settings, |r| r.batch_size = None),
        (Rule::Settings, |r| r.lora_rank = None),
        (Rule::Settings, |r| r.lora_targets = "wqkv".into()),
    ] {
        assert_eq!(whole(change), Some(rule));
    }
    let case = Case::of(&row()).unwrap();
    let bare = Case { known: LengthKnowledge::Cap, machines: Vec::new(), ..case.clone() };
    let ended = |outcome| FieldRun { outcome, ..row() };
    assert_eq!(case.peak(&ended(Ending::Oom)), Err(Rule::LowerBound));
    assert_eq!(case.peak(&ended(Ending::Swap)), Ok(Bytes::from_decimal_gb(9.0)), "a paged run has a valid peak");
    assert_eq!(case.peak(&FieldRun { peak_mem_gb: None, ..row() }), Err(Rule::NoPeak));
    assert_eq!(bare.peak(&row()), Err(Rule::NoLength));
    assert_eq!(case.speed(&ended(Ending::Swap)), Err(Rule::Paged));
    assert_eq!(bare.speed(&row()), Err(Rule::NoMachine));
    assert_eq!(case.speed(&FieldRun { tokens_per_s: None, ..row() }), Err(Rule::NoSpeed));
    let masked = FieldRun { mask_prompt: Some(true), ..row() };
    assert_eq!(Case::of(&masked).unwrap().speed(&masked), Err(Rule::Masked));
    // An M3 was never sold with 18 GB.
    assert!(Case::of(&FieldRun { chip: "M3".into(), ram_gb: Some(18.0), ..row() }).unwrap().machines.is_empty());
}
