//! A GGUF file: its architecture, and its tensors read one at a time by transformers' names.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Seek};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, json};
use tokenizers::Tokenizer;

use crate::checkpoint::finite::{NOT_FINITE, all_finite_ggml};
use crate::checkpoint::gguf_metadata::{describe, number};
use crate::checkpoint::stored::{Stored, from_bytes};
use crate::checkpoint::{ggml, gguf_header};
use crate::error::{Error, Result};
use crate::memory::bounded::{self, Bounds};
use crate::ops::Backend;
use crate::spec::model::ModelSpec;
use crate::spec::model::storage::{Format, Other, Storage};

/// Format, shape and place of a tensor in a GGUF file.
#[derive(Debug)]
struct Info {
    dtype: GgmlDType,
    /// As candle has it: the other way round than in the file, so rows first.
    shape: Vec<usize>,
    start: u64,
    /// Heads whose rows llama.cpp stores in another order.
    heads: Option<usize>,
}

/// An open GGUF file with its table of contents.
pub struct GgufFile {
    file: File,
    content: Content,
    /// Architecture of the model in the file.
    pub spec: ModelSpec,
    /// The config.json that says the same, in transformers' words.
    pub(crate) config: Map<String, serde_json::Value>,
    /// Tensors of the file, by transformers' names.
    tensors: HashMap<String, Info>,
}

/// Bytes that stand for a token or a merge of a tokenizer.
const BYTES_OF_ENTRY: usize = 16;

/// ggml's formats beyond those that candle reads, by their numbers, for messages.
const UNREAD: [(u32, &str); 13] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

const READ: &str = "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, Q3_K and Q2_K are supported";

impl GgufFile {
    /// Opens a GGUF file and reads its metadata.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::Weights { path: path.into(), reason };
        let reading = |source| Error::Read { path: path.into(), source };
        // Opening a pipe would wait for its other end.
        if !path.metadata().map_err(reading)?.is_file() {
            return Err(wrong("it is not a regular file".into()));
        }
        let file = File::open(path).map_err(reading)?;
        let length = file.metadata().map_err(reading)?.len();
        gguf_header::check(BufReader::new(&file)).map_err(wrong)?;
        (&file).rewind().map_err(reading)?;
        let content = Content::read(&mut BufReader::new(&file)).map_err(|e| wrong(unreadable(&e.to_string())))?;
        if let Some(parts) = number(&content, "split.count").filter(|n| *n > 1.0) {
            return Err(wrong(format!("it is one of {parts} parts: join them with `llama-gguf-split --merge`")));
        }
        let (spec, config) = describe(&content, &file).map_err(wrong)??;
        let mut opened = Self { spec, config, file, content, tensors: HashMap::new() };
        for tensor in opened.spec.tensors() {
            let Some(stored) = opened.spec.gguf_name(&tensor.name) else { continue };
            let Some(info) = opened.content.tensor_infos.get(&stored) else { continue };
            if info.shape.dims() != tensor.shape {
                let (is, say) = (info.shape.dims(), &tensor.shape);
                return Err(wrong(format!("`{stored}` is {is:?}, but its metadata say {say:?}")));
            }
            let heads = opened.spec.gguf_interleaved_heads(&tensor.name);
            let start = opened.content.tensor_data_offset.saturating_add(info.offset);
            let info = Info { dtype: info.ggml_dtype, shape: info.shape.dims().to_vec(), start, heads };
            let end = info.bytes().map_err(|e| wrong(format!("`{stored}` {e}")))?.checked_add(start);
            if end.is_none_or(|end| end > length) {
                return Err(wrong(format!(
                    "`{stored}` ends beyond the file's {length} bytes; is the download complete?"
                )));
            }
            opened.tensors.insert(tensor.name, info);
        }
        let matrices = opened.tensors.iter().filter_map(|(name, info)| {
            let &[rows, columns] = info.shape.as_slice() else { return None };
            Some(Other { name: name.clone(), shape: [rows, columns], format: format(info.dtype)? })
        });
        let mut matrices: Vec<Other> = matrices.collect();
        matrices.sort_by(|a, b| a.name.cmp(&b.name));
        opened.spec.storage = Storage::of(matrices, true);
        Ok(opened)
    }

    /// The format of a tensor that must have this shape, if it is here.
    pub(crate) fn format(&self, name: &str, shape: &[usize]) -> Option<Result<Format, String>> {
        let info = self.tensors.get(name)?;
        if info.shape != shape {
            return Some(Err(format!("is {:?} and not {shape:?}", info.shape)));
        }
        Some(format(info.dtype).ok_or_else(|| format!("is stored as {:?}; {READ}", info.dtype)))
    }

    /// A matrix as it is stored, if it is here.
    pub(crate) fn matrix(&self, name: &str, device: &Device) -> Option<Result<Stored, String>> {
        let info = self.tensors.get(name)?;
        let load = || match plain(info.dtype) {
            Some(dtype) => self.plain(info, dtype, device).map(Stored::Dense),
            None => {
                let &[rows, columns] = info.shape.as_slice() else { return Err("it is not a matrix".into()) };
                let blocks = from_bytes(self.read(info)?, info.dtype, (rows, columns), device);
                blocks.map(Stored::Blocks).map_err(|e| e.to_string())
            }
        };
        Some(load())
    }

    /// Loads a vector (norm or bias), if the file has it.
    pub(crate) fn vector(&self, name: &str, device: &Device) -> Option<Result<Tensor, String>> {
        let info = self.tensors.get(name)?;
        Some(
            plain(info.dtype)
                .ok_or_else(|| format!("it is in {:?}", info.dtype))
                .and_then(|d| self.plain(info, d, device)),
        )
    }

    /// Some rows (first dimension) of a tensor in f32, if it is here.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Option<Result<Tensor, String>> {
        let info = self.tensors.get(name)?;
        let load = || {
            let all = info.shape[0];
            // Rows of heads are turned a head at a time.
            let unit = info.heads.map_or(1, |heads| all / heads);
            let whole = rows.start / unit * unit..rows.end.next_multiple_of(unit).min(all);
            let row = info.bytes()? / all as u64;
            let mut bytes = vec![0u8; (row * whole.len() as u64) as usize];
            let start = info.start + row * whole.start as u64;
            self.file.read_exact_at(&mut bytes, start).map_err(|e| e.to_string())?;
            if !all_finite_ggml(&bytes, info.dtype) {
                return Err(NOT_FINITE.into());
            }
            let bytes = if unit == 1 { bytes } else { uninterleaved(&bytes, whole.len(), whole.len() / unit) };
            let shape = [&[whole.len()], &info.shape[1..]].concat();
            let tensor = match plain(info.dtype) {
                Some(dtype) => Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu)
                    .and_then(|t| t.to_dtype(DType::F32))
                    .map_err(|e| e.to_string())?,
                None => {
                    let &[count, columns] = shape.as_slice() else { return Err("it is not a matrix".into()) };
                    let blocks = from_bytes(bytes, info.dtype, (count, columns), &Device::Cpu);
                    let panel = blocks.and_then(|b| Stored::Blocks(b).panel(Backend::Fused, 0, count));
                    panel.map_err(|e| e.to_string())?
                }
            };
            tensor
                .narrow(0, rows.start - whole.start, rows.len())
                .and_then(|t| t.contiguous())
                .map_err(|e| e.to_string())
        };
        Some(load())
    }

    fn plain(&self, info: &Info, dtype: DType, device: &Device) -> Result<Tensor, String> {
        Tensor::from_raw_buffer(&self.read(info)?, dtype, &info.shape, device).map_err(|e| e.to_string())
    }

    /// The bytes of a tensor, rows in transformers' order.
    fn read(&self, info: &Info) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0u8; info.bytes()? as usize];
        self.file.read_exact_at(&mut bytes, info.start).map_err(|e| e.to_string())?;
        if !all_finite_ggml(&bytes, info.dtype) {
            return Err(NOT_FINITE.into());
        }
        match info.heads {
            Some(heads) => Ok(uninterleaved(&bytes, info.shape[0], heads)),
            None => Ok(bytes),
        }
    }

    /// tokenizer.json rebuilt from the metadata, where the kind of tokenizer is one that is rebuilt rightly.
    pub(crate) fn tokenizer(&self) -> Result<String, String> {
        let beside = "put the model's tokenizer.json beside the file";
        let kind = self.text("tokenizer.ggml.model").unwrap_or("absent");
        let pre = self.text("tokenizer.ggml.pre").unwrap_or("absent");
        // candle knows Llama 3's way of splitting under another name.
        let known = match pre {
            "llama-bpe" => "smaug-bpe",
            "qwen2" | "gpt-2" => pre,
            _ => return Err(format!("a GGUF tokenizer of kind {kind}, {pre}, is not supported: {beside}")),
        };
        if kind != "gpt2" {
            return Err(format!("a GGUF tokenizer of kind {kind} is not supported: {beside}"));
        }
        let tokens =
            ["tokens", "merges", "token_type", "add_bos_token", "add_eos_token", "bos_token_id", "eos_token_id"];
        let metadata =
            ["tokenizer.ggml.model".to_owned()].into_iter().chain(tokens.map(|t| format!("tokenizer.ggml.{t}")));
        let mut metadata: HashMap<String, Value> =
            metadata.filter_map(|key| self.content.metadata.get(&key).map(|v| (key, v.clone()))).collect();
        metadata.insert("tokenizer.ggml.pre".into(), Value::String(known.into()));
        merges_fit(&metadata).map_err(|reason| format!("{reason}: {beside}"))?;
        let entries: usize = metadata.values().map(|v| v.to_vec().map_or(1, Vec::len)).sum();
        let content = Content { metadata, tensor_infos: HashMap::new(), ..self.content };
        let rebuilt = bounded::run("its tokenizer", Bounds::of(BYTES_OF_ENTRY * entries), move || {
            let tokenizer = Tokenizer::from_gguf(&content).map_err(|e| format!("{e}: {beside}"))?;
            tokenizer.to_string(false).map_err(|e| e.to_string())
        });
        rebuilt.map_err(|stopped| format!("{stopped}: {beside}"))?
    }

    /// tokenizer_config.json, as far as the metadata know it: the template and the tokens around a text.
    pub(crate) fn tokenizer_config(&self) -> String {
        let tokens = self.content.metadata.get("tokenizer.ggml.tokens").and_then(|t| t.to_vec().ok());
        let token = |key: &str| {
            let id = number(&self.content, &format!("tokenizer.ggml.{key}_token_id"))? as usize;
            tokens?.get(id)?.to_string().ok()
        };
        json!({
            "chat_template": self.text("tokenizer.chat_template"),
            "bos_token": token("bos"),
            "eos_token": token("eos"),
        })
        .to_string()
    }

    /// What the metadata say of the tokenizer, by llama.cpp's keys in their order.
    pub(crate) fn tokenizer_metadata(&self) -> Vec<(&str, &Value)> {
        let own = self.content.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer."));
        let mut all: Vec<(&str, &Value)> = own.map(|(key, value)| (key.as_str(), value)).collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.content.metadata.get(key)?.to_string().ok().map(String::as_str)
    }
}

/// Whether each merge makes a token out of two tokens, which the tokenizer's library takes for granted.
fn merges_fit(metadata: &HashMap<String, Value>) -> Result<(), String> {
    let list = |key: &str| {
        let list = metadata.get(&format!("tokenizer.ggml.{key}")).and_then(|v| v.to_vec().ok());
        list.into_iter().flatten().filter_map(|v| v.to_string().ok()).map(String::as_str)
    };
    let tokens: HashSet<&str> = list("tokens").collect();
    let fits = |merge: &str| {
        let Some((a, b)) = merge.split_once(' ') else { return false };
        tokens.contains(a) && tokens.contains(b) && tokens.contains(format!("{a}{b}").as_str())
    };
    match list("merges").find(|merge| !fits(merge)) {
        Some(merge) => Err(format!("the vocabulary lacks the merge `{merge}`")),
        None => Ok(()),
    }
}

impl Info {
    fn bytes(&self) -> Result<u64, String> {
        let numbers = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let (block, size) = (self.dtype.block_size() as u64, self.dtype.type_size() as u64);
        let whole = self.shape.last().is_some_and(|columns| (*columns as u64).is_multiple_of(block));
        let bytes = numbers.filter(|_| whole).and_then(|n| (n / block).checked_mul(size));
        bytes.ok_or_else(|| format!("is {:?}, which blocks of {block} ({:?}) do not fill", self.shape, self.dtype))
    }
}

/// Rows of heads from llama.cpp's order, in which neighbours are rotated together, into transformers'.
fn uninterleaved(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row, half) = (bytes.len() / rows, rows / heads / 2);
    let mut out = vec![0u8; bytes.len()];
    for (head, out) in bytes.chunks(2 * half * row).zip(out.chunks_mut(2 * half * row)) {
        for (i, from) in head.chunks(row).enumerate() {
            let to = (i % 2) * half + i / 2;
            out[to * row..(to + 1) * row].copy_from_slice(from);
        }
    }
    out
}

fn plain(dtype: GgmlDType) -> Option<DType> {
    match dtype {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

fn format(dtype: GgmlDType) -> Option<Format> {
    match dtype {
        GgmlDType::F32 => Some(Format::F32),
        GgmlDType::F16 => Some(Format::F16),
        GgmlDType::BF16 => Some(Format::Bf16),
        blocks => ggml::block(blocks).map(Format::Gguf),
    }
}

/// candle's message with the format's name in the place of its number.
fn unreadable(message: &str) -> String {
    let code = message.split("unknown dtype for tensor ").nth(1);
    let code = code.and_then(|m| m.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    match code {
        Some(code) => {
            let name = UNREAD.iter().find(|(n, _)| *n == code).map_or_else(|| format!("type {code}"), |u| u.1.into());
            format!("it holds tensors in ggml's {name}; {READ}")
        }
        None => {
            format!("its header cannot be read ({}); is it a complete GGUF file?", message.lines().next().unwrap_or(""))
        }
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
