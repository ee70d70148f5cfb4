//! What the words of a model's name say: of its shape, of its tuning, and of the format it was converted to.

use crate::spec::model::storage::{AFFINE_BITS, AFFINE_GROUPS, Block, Dtype};

/// A name in its words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// What tells the shape: family, version, size.
    pub(super) shape: Vec<String>,
    /// What tells how it was tuned, and nothing of its shape.
    pub(super) tuning: Vec<String>,
    /// The format that the copy was converted to.
    pub(super) format: Option<Said>,
}

/// A format as names tell of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// MLX's affine codes.
    Affine {
        /// Bits of a code.
        bits: u8,
        /// Numbers that share a scale.
        group: u8,
        /// Whether the name says that some matrices have more bits.
        mixed: bool,
    },
    /// Numbers that are not quantised.
    Dense(Dtype),
    /// A GGUF file, with the format of most of its matrices where the name tells.
    Gguf(Option<Block>),
    /// Another format, by the name it is known under, and its bits.
    Other(&'static str, u8),
}

/// Words that tell of tuning.
const TUNING: [&str; 7] = ["instruct", "it", "chat", "base", "pt", "thinking", "hf"];

/// Words of conversions that tell nothing of the format.
const IDLE: [&str; 8] = ["mlx", "unsloth", "text", "qat", "imatrix", "i1", "dynamic", "quantized"];

/// Words for MLX's conversions that give some matrices more bits than the name says.
const MIXED: [&str; 3] = ["optiq", "mixed", "ud"];

/// Formats that are not MLX's affine codes nor GGUF's, with the bits of a weight where the word alone tells.
const OTHERS: [(&str, &str, Option<u8>); 18] = [
    ("bnb", "bitsandbytes", None),
    ("nf4", "bitsandbytes", Some(4)),
    ("gptq", "GPTQ", None),
    ("awq", "AWQ", None),
    ("hqq", "HQQ", None),
    ("exl2", "EXL2", None),
    ("exl3", "EXL3", None),
    ("autoround", "AutoRound", None),
    ("w4a16", "compressed-tensors", Some(4)),
    ("w8a16", "compressed-tensors", Some(8)),
    ("w8a8", "compressed-tensors", Some(8)),
    ("int4", "compressed-tensors", Some(4)),
    ("int8", "compressed-tensors", Some(8)),
    ("fp8", "FP8", Some(8)),
    ("mxfp8", "MXFP8", Some(8)),
    ("mxfp4", "MXFP4", Some(4)),
    ("nvfp4", "NVFP4", Some(4)),
    ("fp4", "FP4", Some(4)),
];

/// The name of a model without what stands around it: an address, a remark in brackets, the owner.
pub(super) fn short(name: &str) -> &str {
    let name = name.split('(').next().unwrap_or(name).trim().trim_end_matches('/');
    name.rsplit('/').next().unwrap_or(name)
}

impl Words {
    /// Takes a name apart.
    pub(super) fn of(name: &str) -> Self {
        let lower = short(name).to_lowercase().replace("-bit", "bit");
        let mut found = Found::default();
        let mut words = Self::default();
        let mut dated = false;
        for word in lower.split(['-', ':', ' ']).filter(|w| !w.is_empty()) {
            // `DWQ-0508`: when it was made.
            let date = std::mem::replace(&mut dated, word == "dwq") && word.bytes().all(|b| b.is_ascii_digit());
            if date || found.takes(word) {
                continue;
            }
            for part in word.split('_').filter(|p| !p.is_empty()) {
                if TUNING.contains(&part) {
                    words.tuning.push(part.into());
                } else if !found.takes(part) {
                    split_digits(part, &mut words.shape);
                }
            }
        }
        if words.shape.first().is_some_and(|w| w == "meta") && words.shape.get(1).is_some_and(|w| w == "llama") {
            words.shape.remove(0);
        }
        words.format = found.said();
        words
    }
}

/// `qwen2.5` as `qwen` and `2.5`, so that `qwen-2.5` is the same; `7b` and `a3b` are one word.
fn split_digits(word: &str, into: &mut Vec<String>) {
    let letters = word.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (head, tail) = word.split_at(letters);
    let digits = tail.bytes().next().is_some_and(|b| b.is_ascii_digit());
    if letters > 1 && digits {
        into.extend([head.to_owned(), tail.to_owned()]);
    } else {
        into.push(word.to_owned());
    }
}

/// What the words of a conversion have told so far.
#[derive(Default)]
struct Found {
    bits: Option<u8>,
    group: Option<u8>,
    dense: Option<Dtype>,
    other: Option<(&'static str, Option<u8>)>,
    block: Option<Option<Block>>,
    gguf: bool,
    mixed: bool,
}

impl Found {
    /// Whether a word is one of a conversion, which is kept.
    fn takes(&mut self, word: &str) -> bool {
        let number = |text: Option<&str>| text.and_then(|n| n.parse::<usize>().ok());
        if IDLE.contains(&word) || word == "dwq" {
            return true;
        }
        if MIXED.contains(&word) {
            self.mixed = true;
        } else if word == "gguf" {
            self.gguf = true;
        } else if let Some(dtype) = dtype(word) {
            self.dense = Some(dtype);
        } else if let Some((_, name, bits)) = OTHERS.iter().find(|(w, ..)| *w == word) {
            // `bnb-4bit`, `GPTQ-Int4`: the method names the format, the other word its bits.
            match &mut self.other {
                Some((_, known)) => *known = known.or(*bits),
                None => self.other = Some((name, *bits)),
            }
        } else if let Some(bits) = number(word.strip_suffix("bit")).filter(|b| (2..=8).contains(b)) {
            self.bits = Some(bits as u8);
        } else if let Some(group) = group(word) {
            self.group = Some(group);
        } else if let Some(block) = block(word) {
            self.block = Some(block);
            self.bits = self.bits.or(word.bytes().find(u8::is_ascii_digit).map(|b| b - b'0'));
        } else {
            return false;
        }
        true
    }

    fn said(self) -> Option<Said> {
        if let Some((name, bits)) = self.other {
            return Some(Said::Other(name, bits.or(self.bits).unwrap_or(4)));
        }
        // `q8` alone is MLX's people's word for 8 bits, `Q4_K_M` is GGUF's.
        if self.gguf || matches!(self.block, Some(Some(_))) {
            return Some(Said::Gguf(self.block.flatten()));
        }
        match (self.bits, self.dense) {
            (Some(bits), _) if AFFINE_BITS.contains(&usize::from(bits)) => {
                Some(Said::Affine { bits, group: self.group.unwrap_or(64), mixed: self.mixed })
            }
            (Some(bits), _) => Some(Said::Other("MLX's affine codes", bits)),
            (None, dense) => dense.map(Said::Dense),
        }
    }
}

fn dtype(word: &str) -> Option<Dtype> {
    match word {
        "bf16" | "bfloat16" => Some(Dtype::Bf16),
        "fp16" | "f16" | "float16" => Some(Dtype::F16),
        "fp32" | "f32" | "float32" => Some(Dtype::F32),
        _ => None,
    }
}

/// The numbers of a group: `g32`, `gs64`, `128g`.
fn group(word: &str) -> Option<u8> {
    let digits = word.strip_prefix("gs").or_else(|| word.strip_prefix('g')).or_else(|| word.strip_suffix('g'))?;
    let group = digits.parse::<usize>().ok()?;
    AFFINE_GROUPS.contains(&group).then_some(group as u8)
}

/// A word for a quantisation: `q4_k_m` with its block format, `q8` or `iq4_xs` without one.
fn block(word: &str) -> Option<Option<Block>> {
    let rest = word.strip_prefix('i').unwrap_or(word).strip_prefix('q')?;
    let digit = rest.bytes().next().filter(|b| (b'2'..=b'8').contains(b))?;
    let ending = &rest[1..];
    if !(ending.is_empty() || ending.starts_with('_')) {
        return None;
    }
    let plain = !word.starts_with('i');
    Some(match (digit, ending.get(1..2)) {
        (b'2', Some("k")) if plain => Some(Block::Q2K),
        (b'3', Some("k")) if plain => Some(Block::Q3K),
        (b'4', Some("k")) if plain => Some(Block::Q4K),
        (b'4', Some("0")) => Some(Block::Q4_0),
        (b'4', Some("1")) => Some(Block::Q4_1),
        (b'5', Some("k")) => Some(Block::Q5K),
        (b'5', Some("0")) => Some(Block::Q5_0),
        (b'5', Some("1")) => Some(Block::Q5_1),
        (b'6', Some("k")) => Some(Block::Q6K),
        (b'8', Some("0")) => Some(Block::Q8_0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_shape_tuning_and_format_are_told_apart() {
        let affine = |bits, group| Some(Said::Affine { bits, group, mixed: false });
        for (name, shape, tuning, format) in [
            ("mlx-community/Qwen3-8B-4bit", "qwen 3 8b", "", affine(4, 64)),
            ("Qwen/Qwen3-8B-MLX-4bit", "qwen 3 8b", "", affine(4, 64)),
            ("mlx-community/Qwen3-4B-Instruct-2507-4bit-DWQ-2510", "qwen 3 4b 2507", "instruct", affine(4, 64)),
            ("mlx-community/gemma-3-27b-it-qat-4bit", "gemma 3 27b", "it", affine(4, 64)),
            ("alexgusevski/gemma-3-text-4b-it-q8-mlx", "gemma 3 4b", "it", affine(8, 64)),
            ("x/Llama-3.1-8B-6bit-g32", "llama 3.1 8b", "", affine(6, 32)),
            ("Llama-3.1-Nemotron-Nano-8B 4-bit", "llama 3.1 nemotron nano 8b", "", affine(4, 64)),
            ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama 3.1 8b", "instruct", None),
            ("NousResearch/Llama-2-7b-chat-hf", "llama 2 7b", "chat hf", None),
            (
                "mlx-community/Mistral-7B-Instruct-v0.3-bf16",
                "mistral 7b v0.3",
                "instruct",
                Some(Said::Dense(Dtype::Bf16)),
            ),
            ("unsloth/Llama-3.2-1B-bnb-4bit", "llama 3.2 1b", "", Some(Said::Other("bitsandbytes", 4))),
            ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "qwen 3 4b", "", Some(Said::Other("bitsandbytes", 4))),
            ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "qwen 2.5 7b", "instruct", Some(Said::Other("GPTQ", 8))),
            ("Qwen/Qwen3-8B-FP8", "qwen 3 8b", "", Some(Said::Other("FP8", 8))),
            ("mlx-community/Qwen3-4B-5bit", "qwen 3 4b", "", Some(Said::Other("MLX's affine codes", 5))),
            ("unsloth/Qwen3-8B-GGUF", "qwen 3 8b", "", Some(Said::Gguf(None))),
            ("bartowski/Llama-3.2-3B-Instruct-Q4_K_M", "llama 3.2 3b", "instruct", Some(Said::Gguf(Some(Block::Q4K)))),
            ("llama3.2:3b-instruct-q8_0", "llama 3.2 3b", "instruct", Some(Said::Gguf(Some(Block::Q8_0)))),
            ("qwen3:8b", "qwen 3 8b", "", None),
            ("Qwen3-30B-A3B", "qwen 3 30b a3b", "", None),
            ("Qwen2.5-3B (fp16)", "qwen 2.5 3b", "", None),
        ] {
            let words = Words::of(name);
            assert_eq!(
                (words.shape.join(" "), words.tuning.join(" "), words.format),
                (shape.into(), tuning.into(), format),
                "{name}"
            );
        }
        let mixed = Said::Affine { bits: 4, group: 64, mixed: true };
        assert_eq!(Words::of("mlx-community/gemma-4-e2b-it-OptiQ-4bit").format, Some(mixed));
        assert_eq!(Words::of(""), Words::default());
    }
}
