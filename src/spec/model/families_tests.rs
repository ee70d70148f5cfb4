use super::*;
use crate::spec::model::architecture::RopeScaling;
use crate::spec::model::config;

fn config(extra: &str) -> String {
    format!(
        r#"{{"hidden_size":64,"intermediate_size":176,"num_hidden_layers":4,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":101,"max_position_embeddings":512{extra}}}"#
    )
}

#[test]
fn both_spellings_describe_the_same_model() {
    let old = ModelSpec::from_config(&config(r#","model_type":"llama","torch_dtype":"bfloat16","rope_theta":500000.0,"rope_scaling":{"type":"linear","factor":4.0}"#)).unwrap();
    let new = ModelSpec::from_config(&config(
        r#","model_type":"llama","dtype":"bfloat16","rope_parameters":{"rope_type":"linear","factor":4.0,"rope_theta":500000.0}"#,
    ))
    .unwrap();
    assert_eq!(old, new);
    assert_eq!(old.dtype, Dtype::Bf16);
    let Positions::Rope { global, .. } = &old.positions else { panic!("llama has rope") };
    assert_eq!((global.theta, &global.scaling), (500_000.0, &Some(RopeScaling::Linear { factor: 4.0 })));
}

#[test]
fn windows_follow_the_family_and_its_layer_types() {
    let windows = |extra: &str| ModelSpec::from_config(&config(extra)).unwrap().attention.windows;
    assert_eq!(windows(r#","model_type":"mistral","sliding_window":8"#), vec![Some(8); 4]);
    assert_eq!(windows(r#","model_type":"mistral","sliding_window":null"#), vec![None; 4]);
    assert_eq!(windows(r#","model_type":"gemma2","sliding_window":8"#), [Some(8), None, Some(8), None]);
    assert_eq!(
        windows(r#","model_type":"gemma3_text","sliding_window":8,"sliding_window_pattern":3"#),
        [Some(8), Some(8), None, Some(8)]
    );
    let typed = r#","model_type":"gemma3_text","sliding_window":8,"layer_types":["full_attention","sliding_attention","full_attention","full_attention"]"#;
    assert_eq!(windows(typed), [None, Some(8), None, None]);
    assert_eq!(windows(r#","model_type":"qwen2","sliding_window":8,"use_sliding_window":false"#), vec![None; 4]);
    assert_eq!(
        windows(r#","model_type":"qwen2","sliding_window":8,"use_sliding_window":true,"max_window_layers":3"#),
        [None, None, None, Some(8)]
    );
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let refuse = |extra: &str| ModelSpec::from_config(&config(extra)).unwrap_err().to_string();
    assert!(refuse(r#","model_type":"t5""#).contains("unknown architecture `t5`"));
    assert!(refuse(r#","model_type":"mixtral","num_local_experts":8"#).contains("mixture of experts"));
    assert!(refuse(r#","model_type":"qwen3_next""#).contains("hybrid"));
    assert!(
        refuse(r#","model_type":"llama","rope_scaling":{"rope_type":"dynamic","factor":2.0}"#).contains("is dynamic")
    );
    assert!(refuse(r#","model_type":"llama","head_dim":0"#).contains("`head_dim` is 0"));
    assert!(refuse("").contains("no `model_type`"));
    assert!(ModelSpec::from_config("{").is_err());
    assert!(
        ModelSpec::from_config(r#"{"model_type":"llama","hidden_size":"big"}"#)
            .unwrap_err()
            .to_string()
            .contains("whole number")
    );
}

/// A config of four layers with some of its keys replaced.
fn with(changes: &str) -> Result<ModelSpec> {
    let mut map = config::parse(&config(r#","model_type":"llama""#)).unwrap();
    map.extend(config::parse(changes).unwrap());
    ModelSpec::from_map(&map)
}

#[test]
fn sizes_are_held_before_they_are_used() {
    for (changes, said) in [
        (
            r#"{"num_hidden_layers":1000000000000}"#,
            "`num_hidden_layers` in `config.json` is 1000000000000, but must be at most 2048",
        ),
        (r#"{"num_hidden_layers":9223372036854775808}"#, "at most 2048"),
        (
            r#"{"num_hidden_layers":null,"n_layer":64000}"#,
            "`n_layer` in `config.json` is 64000, but must be at most 2048",
        ),
        (r#"{"num_hidden_layers":0}"#, "`num_hidden_layers` is 0, but must be at least 1"),
        (r#"{"num_hidden_layers":4.0}"#, "a whole number"),
        (r#"{"num_hidden_layers":-1}"#, "a whole number"),
        (r#"{"hidden_size":18446744073709551615}"#, "`hidden_size` in `config.json` is 18446744073709551615"),
        (r#"{"head_dim":10000000000}"#, "`head_dim` in `config.json` is 10000000000, but must be at most 16384"),
        (r#"{"head_dim":15}"#, "`head_dim` is 15, but must be even"),
        (r#"{"vocab_size":16777217}"#, "`vocab_size` in `config.json` is 16777217"),
        (r#"{"max_position_embeddings":4294967296}"#, "`max_position_embeddings` in `config.json`"),
        (
            r#"{"num_hidden_layers":2048,"hidden_size":1048576,"intermediate_size":4194304,"head_dim":16384,"num_attention_heads":16384}"#,
            "`number of parameters` is",
        ),
        (r#"{"model_type":"phi3","partial_rotary_factor":1e30}"#, "`partial_rotary_factor` in `config.json` is 1000"),
        (r#"{"model_type":"phi3","partial_rotary_factor":0}"#, "`partial_rotary_factor` in `config.json` is 0"),
        (r#"{"partial_rotary_factor":0.5}"#, "must be 1: this family rotates whole heads"),
        (r#"{"rms_norm_eps":-1e-6}"#, "a number from 0 to 1"),
        (r#"{"model_type":"gemma2","attn_logit_softcapping":0}"#, "`attn_logit_softcapping` in `config.json` is 0"),
        (r#"{"model_type":"gemma2","query_pre_attn_scalar":-4}"#, "`query_pre_attn_scalar` in `config.json` is -4"),
    ] {
        let error = with(changes).unwrap_err().to_string();
        assert!(error.contains(said), "{changes}: {error}");
    }
    let long = format!("{}{}", " ".repeat(1 << 20), config(""));
    assert!(ModelSpec::from_config(&long).unwrap_err().to_string().contains("at most 1048576 are allowed"));
}

#[test]
fn keys_that_change_the_result_are_obeyed_or_refused_by_name() {
    let long = |n: usize| vec!["1.0"; n].join(",");
    let longrope = |short: &str, more: &str| {
        format!(
            r#"{{"rope_scaling":{{"rope_type":"longrope","short_factor":[{short}],"long_factor":[{}]{more}}}}}"#,
            long(8)
        )
    };
    for (changes, said) in [
        (r#"{"model_type":5}"#.to_owned(), "`model_type` in `config.json` is 5, but must be a text"),
        (r#"{"hidden_act":5}"#.into(), "`hidden_act` in `config.json` is 5, but must be a text"),
        (r#"{"hidden_act":"relu6"}"#.into(), "`hidden_act` in `config.json` is relu6"),
        (r#"{"dtype":"float8_e4m3fn"}"#.into(), "float32, bfloat16 or float16"),
        (r#"{"torch_dtype":16}"#.into(), "`torch_dtype` in `config.json` is 16, but must be a text"),
        (r#"{"tie_word_embeddings":"no"}"#.into(), "true or false"),
        (r#"{"rope_theta":"10000"}"#.into(), r#"`rope_theta` in `config.json` is "10000", but must be a number"#),
        (r#"{"rope_theta":0}"#.into(), "a number above 0"),
        (r#"{"rope_parameters":{"rope_theta":"1e6"}}"#.into(), r#"`rope_parameters.rope_theta` in `config.json` is "1e6""#),
        (r#"{"rope_parameters":{"rope_type":3}}"#.into(), "`rope_parameters.rope_type` in `config.json` is 3, but must be a text"),
        (r#"{"rope_scaling":{"type":3}}"#.into(), "`rope_scaling.type` in `config.json` is 3"),
        (r#"{"rope_scaling":"linear"}"#.into(), "must be a table"),
        (r#"{"rope_scaling":{"type":"linear","factor":"4"}}"#.into(), "`rope_scaling.factor` in `config.json`"),
        (r#"{"rope_scaling":{"type":"linear"}}"#.into(), "`rope_scaling.factor` in `config.json` is absent"),
        (r#"{"rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_type":"default"}}"#.into(), "the same as `rope_parameters`"),
        (r#"{"rope_scaling":{"type":"yarn","factor":4,"truncate":"no"}}"#.into(), "`rope_scaling.truncate` in `config.json`"),
        (r#"{"rope_scaling":{"type":"llama3","factor":4,"low_freq_factor":2,"high_freq_factor":2}}"#.into(), "above low_freq_factor (2)"),
        (r#"{"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":1e30}}"#.into(), "a whole number between 1 and"),
        (r#"{"rope_parameters":{"full_attention":{}}}"#.into(), "absent from the rope parameters of this family"),
        (r#"{"rope_scaling":{"type":"longrope"}}"#.into(), "`rope_scaling.short_factor` in `config.json` is absent, but must be a list of 8 numbers"),
        (longrope(&long(7), ""), "is 7 long, but must be a list of 8 numbers above 0"),
        (longrope(&format!("{},0", long(7)), ""), "a list of 8 numbers above 0"),
        (longrope(&format!("{},true", long(7)), ""), "a list of 8 numbers above 0"),
        (longrope(&long(8), r#","original_max_position_embeddings":1"#), "at least 2 with longrope"),
        (r#"{"layer_types":["full_attention"]}"#.into(), "as long as num_hidden_layers (4)"),
        (r#"{"layer_types":"full_attention"}"#.into(), "must be a list"),
        (r#"{"layer_types":["full_attention","full_attention","full","full_attention"]}"#.into(), r#"`layer_types[2]` in `config.json` is "full""#),
        (r#"{"layer_types":["full_attention","full_attention","full_attention",1]}"#.into(), "`layer_types[3]` in `config.json` is 1"),
        (
            r#"{"model_type":"qwen2","layer_types":["sliding_attention","full_attention","full_attention","full_attention"]}"#.into(),
            "no window is set",
        ),
        (
            r#"{"model_type":"mistral","sliding_window":8,"layer_types":["sliding_attention","full_attention","full_attention","full_attention"]}"#.into(),
            "transformers does not read it for `mistral`",
        ),
        (r#"{"model_type":"mistral","sliding_window":0}"#.into(), "`sliding_window` in `config.json` is 0, but must be at least 1"),
        (r#"{"model_type":"gpt2","scale_attn_weights":false}"#.into(), "`scale_attn_weights` in `config.json` is false, but must be true"),
        (r#"{"model_type":"gpt2","scale_attn_by_inverse_layer_idx":true}"#.into(), "`scale_attn_by_inverse_layer_idx` in `config.json` is true"),
    ] {
        let error = with(&changes).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(said), "{changes}: {error}");
    }
    with(&longrope(&long(8), "")).unwrap();
    with(r#"{"model_type":"gpt2","scale_attn_weights":true,"scale_attn_by_inverse_layer_idx":false}"#).unwrap();
    with(r#"{"layer_types":["full_attention","full_attention","full_attention","full_attention"]}"#).unwrap();
    with(r#"{"model_type":"phi3","partial_rotary_factor":0.75,"torch_dtype":"torch.float16"}"#).unwrap();
}

#[test]
fn mixtures_are_read_and_not_trained_here() {
    let moe = |extra: &str| {
        ModelSpec::from_config(&config(&format!(
            r#","model_type":"qwen3_moe","num_experts":16,"num_experts_per_tok":2,"moe_intermediate_size":48,"head_dim":16{extra}"#
        )))
    };
    let spec = moe("").unwrap();
    assert_eq!(spec.experts, Some(Experts { num_experts: 16, num_experts_per_tok: 2, gpt_oss: false }));
    assert_eq!((spec.intermediate_size, spec.attention.qk_norm), (48, true));
    let refused = spec.trained_here().unwrap_err().to_string();
    assert!(refused.contains("`qwen3_moe`") && refused.contains("mlx-lm"), "{refused}");
    assert!(moe(r#","decoder_sparse_step":2"#).unwrap_err().to_string().contains("decoder_sparse_step"));
    assert!(moe(r#","mlp_only_layers":[0]"#).unwrap_err().to_string().contains("mlp_only_layers"));
    let oss =
        r#","model_type":"gpt_oss","num_local_experts":8,"num_experts_per_tok":4,"head_dim":16,"sliding_window":128"#;
    let spec = ModelSpec::from_config(&config(oss)).unwrap();
    assert_eq!(spec.attention.windows, [Some(128), None, Some(128), None]);
    assert!(spec.attention.qkv_bias && spec.attention.o_bias && !spec.tie_word_embeddings);
}

#[test]
fn odd_shapes_are_caught() {
    let text = config(r#","model_type":"llama""#).replace(r#""num_key_value_heads":2"#, r#""num_key_value_heads":3"#);
    assert!(ModelSpec::from_config(&text).unwrap_err().to_string().contains("divisor"));
}
