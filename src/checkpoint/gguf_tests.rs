use super::*;

#[test]
fn rows_come_back_from_the_order_of_llama_cpp() {
    // Two heads of six rows of two bytes; llama.cpp: reshape(heads, 2, dim / 2, row).swapaxes(1, 2).
    let original: Vec<u8> = (0..24).collect();
    let mut stored = Vec::new();
    for head in original.chunks(12) {
        for j in 0..3 {
            for p in 0..2 {
                stored.extend_from_slice(&head[(p * 3 + j) * 2..][..2]);
            }
        }
    }
    assert_ne!(stored, original);
    assert_eq!(uninterleaved(&stored, 12, 2), original);
}

#[test]
fn merges_are_of_tokens_that_are_there() {
    let list = |all: &[&str]| Value::Array(all.iter().map(|s| Value::String((*s).into())).collect());
    let fit = |merges: &[&str]| {
        let keys = [("tokenizer.ggml.tokens", &["a", "b", "ab"][..]), ("tokenizer.ggml.merges", merges)];
        merges_fit(&keys.map(|(key, all)| (key.to_owned(), list(all))).into())
    };
    fit(&["a b"]).unwrap();
    for merge in ["a c", "c a", "b a", "ab ab", "ab"] {
        assert_eq!(fit(&["a b", merge]).unwrap_err(), format!("the vocabulary lacks the merge `{merge}`"));
    }
}

#[test]
fn formats_that_are_not_read_are_named() {
    assert!(unreadable("unknown dtype for tensor 23").contains("IQ4_XS"));
    assert!(unreadable("unknown dtype for tensor 99").contains("type 99"));
    assert!(unreadable("unknown magic 0x00000000").contains("is it a complete GGUF file"));
}
