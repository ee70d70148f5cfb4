//! A tokenizer.json, read as transformers reads it; what it asks for is done within bounds.

use std::time::Duration;

use tokenizers::Tokenizer;

use crate::checkpoint::text::message::Encoded;
use crate::memory;
use crate::memory::bounded::{self, Bounds};
use crate::units::Bytes;

/// Largest tokenizer.json, bytes: twice the largest that is published.
const LARGEST: usize = 64 << 20;
/// Memory for reading it: some, and so much for each byte of the file, up to a limit. BPE takes 12 bytes for each, and
/// Unigram, which makes a tree of its vocabulary, 60.
const BYTES_READING: usize = 64 << 20;
const BYTES_PER_BYTE: usize = 128;
const BYTES_AT_MOST: usize = 2 << 30;
/// Tokens that one byte of text may become: Unicode's own longest decomposition gives 18 bytes of one character of 3.
const TOKENS_PER_BYTE: usize = 16;
/// Tokens that may stand around any text.
const TOKENS_AROUND: usize = 1024;

/// Reads a tokenizer.json. What it says of truncation and padding is left out, as transformers does: both are remains of
/// somebody's use of the file, and not the tokenizer's.
pub(super) fn parse(json: String) -> Result<Tokenizer, String> {
    if json.len() > LARGEST {
        let (large, most) = (Bytes(json.len() as u64), Bytes(LARGEST as u64));
        return Err(format!("tokenizer.json is {large}, and at most {most} are allowed"));
    }
    let bounds = Bounds {
        memory: (BYTES_READING + BYTES_PER_BYTE * json.len()).min(BYTES_AT_MOST),
        time: Duration::from_secs(10 + json.len() as u64 / 1_000_000),
    };
    let parsed = bounded::run("tokenizer.json", bounds, move || {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    });
    memory::hand_back_freed_memory();
    let tokenizer: Result<Tokenizer, String> = parsed.map_err(|stopped| stopped.to_string())?;
    tokenizer.map_err(|message| format!("tokenizer.json: {}", bounded::shortened(&message)))
}

/// Tokens of a text; `special` adds what the tokenizer puts around a text (such as a first BOS).
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, prompt_bytes: usize, special: bool) -> Result<Encoded, String> {
    let encoding = tokenizer.encode(text, special).map_err(|e| bounded::shortened(&e.to_string()))?;
    let tokens = encoding.get_ids().to_vec();
    if tokens.len() > TOKENS_PER_BYTE * text.len() + TOKENS_AROUND {
        return Err(format!("it makes {} tokens of a text of {} bytes", tokens.len(), text.len()));
    }
    // A token that straddles the end of the prompt is learned: it holds the completion's first letters.
    let prompt = encoding.get_offsets().iter().take_while(|(_, end)| *end <= prompt_bytes).count();
    Ok(Encoded { tokens, prompt: if prompt_bytes == 0 { 0 } else { prompt } })
}

/// Text of tokens, special ones left out.
pub(super) fn decode(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String, String> {
    tokenizer.decode(tokens, true).map_err(|e| bounded::shortened(&e.to_string()))
}
