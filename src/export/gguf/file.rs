//! The GGUF container, version 3: metadata, a table of tensors, and their bytes.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use candle_core::quantized::GgmlDType;

/// Alignment of every tensor's first byte in the file, bytes.
const ALIGNMENT: u64 = 32;

/// Value of a metadata key, by its GGUF type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names are the documentation
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    Bools(Vec<bool>),
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        // Sizes of a model were checked to be below 2^24.
        Self::U32(n as u32)
    }
}

impl From<f64> for Value {
    fn from(x: f64) -> Self {
        Self::F32(x as f32)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

/// Keys with their values, in the order they are written.
pub(crate) type Metadata = Vec<(String, Value)>;

/// Entry of the table of tensors: a name, a shape and a format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Name of the tensor in llama.cpp.
    pub name: String,
    /// Shape of the tensor, outermost dimension first (the file has them the other way round).
    pub shape: Vec<usize>,
    /// Number format of the tensor.
    pub format: GgmlDType,
}

impl Entry {
    /// Size of the tensor's numbers, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() / self.format.block_size() * self.format.type_size()) as u64
    }

    /// Size of the tensor with the padding up to the next one, bytes.
    pub(crate) fn padded(&self) -> u64 {
        self.bytes().next_multiple_of(ALIGNMENT)
    }
}

/// Everything before the first tensor's bytes. Those follow in the table's order, each filled up with zeros.
pub(crate) fn head(metadata: &Metadata, table: &[Entry]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((table.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut out, key);
        out.extend(kind(value).to_le_bytes());
        put(&mut out, value);
    }
    let mut offset = 0u64;
    for entry in table {
        string(&mut out, &entry.name);
        out.extend((entry.shape.len() as u32).to_le_bytes());
        entry.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(type_id(entry.format).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += entry.padded();
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn kind(value: &Value) -> u32 {
    match value {
        Value::U32(_) => 4,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Strings(_) | Value::F32s(_) | Value::I32s(_) | Value::Bools(_) => 9,
    }
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let array = |out: &mut Vec<u8>, kind: u32, length: usize| {
        out.extend(kind.to_le_bytes());
        out.extend((length as u64).to_le_bytes());
    };
    match value {
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(text) => string(out, text),
        Value::Strings(all) => {
            array(out, 8, all.len());
            all.iter().for_each(|text| string(out, text));
        }
        Value::F32s(all) => {
            array(out, 6, all.len());
            all.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::I32s(all) => {
            array(out, 5, all.len());
            all.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::Bools(all) => {
            array(out, 7, all.len());
            all.iter().for_each(|b| out.push(u8::from(*b)));
        }
    }
}

/// The number by which ggml knows a format.
fn type_id(format: GgmlDType) -> u32 {
    match format {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q8_1 => 9,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::Q8K => 15,
        GgmlDType::BF16 => 30,
    }
}
