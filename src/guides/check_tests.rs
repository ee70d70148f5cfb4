use super::*;

#[test]
fn a_claim_is_judged_by_where_it_lies() {
    use Verdict::*;
    let amount = |claimed| Verdict::of_amount(claimed, 2.0, 8.0, 12.0);
    assert_eq!([1.9, 2.0, 8.0, 12.0, 12.1].map(amount), [Impossible, Optimistic, Right, Right, Pessimistic]);
    let rate = |claimed| Verdict::of_rate(claimed, 8.0, 12.0, 20.0);
    assert_eq!([20.1, 12.1, 12.0, 8.0, 7.9].map(rate), [Impossible, Optimistic, Right, Right, Pessimistic]);
}

fn one(claim: &str) -> Checked {
    let text = format!("[[guide]]\nkey = \"g\"\nname = \"a guide\"\n[[claim]]\nguide = \"g\"\n{claim}");
    check(&read(&text, "guides.toml".as_ref()).unwrap()).unwrap().remove(0)
}

#[test]
fn logits_alone_can_make_a_claim_impossible() {
    let of = |gb: f64| {
        one(&format!(
            "model = \"Qwen2.5-1.5B-Instruct\"\nmachine = \"M2\"\nram_gib = 8\nweights = \"bf16\"\nrank = 32\nbatch_size = 4\nsays = {{ memory_gb = {gb} }}"
        ))
    };
    // 3.1 GB of weights, and 4 x 2048 rows of 151,936 logits.
    let checked = of(5.2);
    assert_eq!(checked.verdict, Verdict::Impossible);
    assert!(checked.why.contains("logits"), "{}", checked.why);
    assert!(checked.ours.unwrap().decimal_gb() < 8.0, "{:?}", checked.ours);
    assert_eq!(of(200.0).verdict, Verdict::Pessimistic);
}

#[test]
fn generation_is_bounded_by_bandwidth_and_weights_by_counting() {
    let base = "model = \"Llama-3.1-8B-Instruct\"\nmachine = \"M2 Pro\"\nram_gib = 32\nweights = \"4bit\"\n";
    let generated = |n: u32| one(&format!("{base}says = {{ generated_per_s = {n} }}")).verdict;
    // 200 GB/s over 4.9 GB: 41 times at most, 15 to 34 in practice.
    assert_eq!(
        [75, 38, 25, 10].map(generated),
        [Verdict::Impossible, Verdict::Optimistic, Verdict::Right, Verdict::Pessimistic]
    );
    // 8.03e9 parameters of 4.5 bits are 4.5 GB.
    let weights = |gb: f64| one(&format!("{base}says = {{ weights_gb = {gb} }}")).verdict;
    assert_eq!([4.5, 3.0, 8.0].map(weights), [Verdict::Right, Verdict::Optimistic, Verdict::Pessimistic]);
}

#[test]
fn the_smallest_mac_is_sought_among_those_sold() {
    let base = "model = \"Llama-3.1-70B-Instruct\"\nmachine = \"M2 Ultra\"\nram_gib = 192\n";
    let wide = one(&format!("{base}weights = \"bf16\"\nsays = {{ minimum_ram_gb = 128 }}"));
    // 141 GB of weights are in no Mac of 128.
    assert_eq!(wide.verdict, Verdict::Impossible);
    let fits =
        one(&format!("{base}weights = \"bf16\"\nrank = 64\nbatch_size = 4\nseq = 4096\nsays = {{ fits = true }}"));
    assert_eq!(fits.verdict, Verdict::Impossible);
}

#[test]
fn what_is_not_understood_is_named() {
    let wrong = |text: &str| read(text, "guides.toml".as_ref()).unwrap_err().to_string();
    assert!(wrong("[[guide]]\nkey = 1").contains("guides.toml"));
    let claim = "guide = []\n[[claim]]\nguide = \"x\"\nmodel = \"m\"\nmachine = \"M1\"\nram_gib = 8\nweights = \"bf16\"\nsays = { hours = 3 }";
    assert!(wrong(claim).contains("`x`"), "{}", wrong(claim));
}

#[test]
fn a_claim_is_checked_as_a_run_is() {
    let base = [
        ("guide", "\"g\""),
        ("model", "\"Qwen2.5-1.5B-Instruct\""),
        ("machine", "\"M2\""),
        ("ram_gib", "8"),
        ("weights", "\"bf16\""),
        ("says", "{ memory_gb = 5.2 }"),
    ];
    for (field, value, said) in [
        ("batch_size", "0", "`batch_size` is 0"),
        ("batch_size", "9223372036854775807", "`batch_size` is 9223372036854775807"),
        ("batch_size", "1048576", "`batch_size` is 1048576, but must be at most 2048"),
        ("seq", "0", "`seq` is 0"),
        ("seq", "1000000000", "`seq` is 1000000000"),
        ("seq", "1000000", "`seq` is 1000000, but must be at most 32768"),
        ("rank", "0", "`rank` is 0"),
        ("rank", "9000000", "`rank` is 9000000"),
        ("ram_gib", "nan", "`ram_gib` is NaN"),
        ("ram_gib", "-8", "`ram_gib` is -8"),
        ("ram_gib", "1e300", "`ram_gib` is 1"),
        ("ram_gib", "9", "`ram_gib` is 9.0 GiB"),
        ("gpu_cores", "9000", "`gpu_cores` is 9000"),
        ("model", "\"Qwen2.5-1.5B-Instuct\"", "unknown model `Qwen2.5-1.5B-Instuct`"),
        ("machine", "\"M99\"", "unknown machine `M99`"),
        ("guide", "\"x\"", "`guide` is `x`"),
        ("says", "{ memory_gb = nan }", "`memory_gb` is NaN"),
        ("says", "{ memory_gb = -1.0 }", "`memory_gb` is -1"),
        ("says", "{ tokens_per_s = inf }", "`tokens_per_s` is inf"),
        ("says", "{ hours = 0.0 }", "`hours` is 0"),
        ("says", "{ weights_gb = 1e300 }", "`weights_gb` is 1"),
        ("says", "{ minimum_ram_gb = -inf }", "`minimum_ram_gb` is -inf"),
        ("says", "{ generated_per_s = nan }", "`generated_per_s` is NaN"),
    ] {
        let kept = base.iter().filter(|(key, _)| *key != field).map(|(key, value)| format!("{key} = {value}\n"));
        let good: String = base.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let bad = format!("{field} = {value}\n{}", kept.collect::<String>());
        let text = format!("[[guide]]\nkey = \"g\"\nname = \"n\"\n[[claim]]\n{good}[[claim]]\n{bad}");
        let error = read(&text, "guides.toml".as_ref()).unwrap_err().to_string();
        assert!(error.starts_with("`guides.toml`, line 11: claim 2 ("), "{field} = {value}: {error}");
        assert!(error.contains(said), "{field} = {value}: {error}");
    }
}
