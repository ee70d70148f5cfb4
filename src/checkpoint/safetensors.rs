//! A safetensors file read a tensor at a time, without mapping it: a mapped file counts as this process's memory on
//! Linux until it is let go, and would double what loading takes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use crate::checkpoint::finite::{NOT_FINITE, all_finite};

/// The file starts with the header's length in this many bytes, little-endian.
const LENGTH_BYTES: u64 = 8;
/// A header larger than this is no header: real ones have about 100 bytes a tensor.
const LARGEST_HEADER: u64 = 16 << 20;

/// Format, shape and place of a tensor in a safetensors file.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Info {
    /// Number format of the tensor.
    pub dtype: safetensors::Dtype,
    /// Shape of the tensor, outermost dimension first.
    pub shape: Vec<usize>,
    /// First byte and the one after the last, counted from the end of the header.
    pub data_offsets: (u64, u64),
}

/// The header: what it holds beside its tensors is passed by, so it takes no more memory than they do.
struct Header(HashMap<String, Info>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a table of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
        let mut tensors = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info = map.next_value().map_err(|e| M::Error::custom(format!("its entry of `{name}`: {e}")))?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(M::Error::custom(format!("it has two entries of `{name}`")));
            }
        }
        Ok(Header(tensors))
    }
}

/// The file on disk, or in the binary.
enum Source {
    Disk(File),
    Static(&'static [u8]),
}

/// An open file with its table of contents.
pub struct CheckpointFile {
    /// Its name, with the folders between the model's folder and it.
    pub name: String,
    source: Source,
    data_start: u64,
    tensors: HashMap<String, Info>,
}

impl Source {
    fn read(&self, start: u64, bytes: u64) -> Result<Cow<'static, [u8]>, String> {
        match self {
            Self::Disk(file) => {
                let mut buffer = vec![0u8; bytes as usize];
                file.read_exact_at(&mut buffer, start).map_err(|e| e.to_string())?;
                Ok(buffer.into())
            }
            Self::Static(all) => {
                let part = all.get(start as usize..(start + bytes) as usize);
                part.map(Cow::Borrowed).ok_or_else(|| "it ends early".to_owned())
            }
        }
    }
}

impl CheckpointFile {
    /// Opens a file on disk; what is wrong with it is said without its name.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        // Opening a pipe would wait for its other end.
        if !path.metadata().map_err(|e| e.to_string())?.is_file() {
            return Err("it is not a regular file".into());
        }
        let file = File::open(path).map_err(|e| e.to_string())?;
        let length = file.metadata().map_err(|e| e.to_string())?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::read(name, Source::Disk(file), length)
    }

    /// Opens a file that is embedded in the binary.
    pub(crate) fn embedded(bytes: &'static [u8]) -> Result<Self, String> {
        Self::read("model.safetensors".into(), Source::Static(bytes), bytes.len() as u64)
    }

    fn read(name: String, source: Source, length: u64) -> Result<Self, String> {
        let incomplete = || format!("the file is truncated at {length} bytes; is the download complete?");
        if length < LENGTH_BYTES {
            return Err(incomplete());
        }
        let mut header_length = [0u8; LENGTH_BYTES as usize];
        header_length.copy_from_slice(&source.read(0, LENGTH_BYTES)?);
        let header_length = u64::from_le_bytes(header_length);
        if header_length > LARGEST_HEADER {
            return Err(format!(
                "it is not a safetensors file: its header would have {header_length} bytes, and at most {LARGEST_HEADER} are allowed"
            ));
        }
        let data_start = LENGTH_BYTES + header_length;
        if data_start > length {
            return Err(incomplete());
        }
        let header = source.read(LENGTH_BYTES, header_length)?;
        let Header(tensors) = serde_json::from_slice(&header).map_err(|e| format!("its header cannot be read: {e}"))?;
        for (name, info) in &tensors {
            let (start, end) = info.data_offsets;
            if end > length - data_start {
                return Err(incomplete());
            }
            let numbers: Option<usize> = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            let bits = numbers.and_then(|n| n.checked_mul(info.dtype.bitsize()));
            if start > end || bits != Some((end - start) as usize * 8) {
                return Err(format!(
                    "its entry of `{name}` has {} bytes for {:?}",
                    end.saturating_sub(start),
                    info.shape
                ));
            }
        }
        let opened = Self { name, source, data_start, tensors };
        opened.refuse_overlaps()?;
        Ok(opened)
    }

    /// Two tensors with bytes in common could not be changed or moved one without the other; no writer makes them.
    fn refuse_overlaps(&self) -> Result<(), String> {
        let order = self.in_order();
        let filled: Vec<_> = order.iter().filter(|(_, info)| info.data_offsets.0 < info.data_offsets.1).collect();
        match filled.windows(2).find(|pair| pair[1].1.data_offsets.0 < pair[0].1.data_offsets.1) {
            Some(pair) => Err(format!("its tensors `{}` and `{}` overlap", pair[0].0, pair[1].0)),
            None => Ok(()),
        }
    }

    /// Shape of a tensor, if it is here.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// What a tensor is and where, if it is here.
    pub(crate) fn place(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name)
    }

    /// The bytes of the header: everything before the first tensor.
    pub(crate) fn head(&self) -> Result<Cow<'static, [u8]>, String> {
        self.source.read(0, self.data_start)
    }

    /// The tensors in the order of their bytes.
    pub(crate) fn in_order(&self) -> Vec<(&str, &Info)> {
        let mut all: Vec<(&str, &Info)> = self.tensors.iter().map(|(name, info)| (name.as_str(), info)).collect();
        all.sort_by_key(|(_, info)| info.data_offsets);
        all
    }

    /// Bytes as they are, `start` counted from the end of the header.
    pub(crate) fn bytes(&self, start: u64, length: u64) -> Result<Cow<'static, [u8]>, String> {
        self.source.read(self.data_start + start, length)
    }

    /// Some rows (first dimension) of a tensor, in the format it is stored in, if it is here.
    pub(crate) fn load_rows(&self, name: &str, rows: Range<usize>, device: &Device) -> Option<Result<Tensor, String>> {
        let info = self.tensors.get(name)?;
        let load = || {
            let dtype = DType::try_from(info.dtype).map_err(|e| e.to_string())?;
            let (start, end) = info.data_offsets;
            let [all, rest @ ..] = &info.shape[..] else { return Err("it is a single number".to_owned()) };
            let row = (end - start) / (*all as u64).max(1);
            let bytes = self.bytes(start + rows.start as u64 * row, rows.len() as u64 * row)?;
            tensor(&bytes, dtype, &[&[rows.len()], rest].concat(), device)
        };
        Some(load())
    }

    /// Number format of a tensor, if it is here.
    pub(crate) fn dtype(&self, name: &str) -> Option<safetensors::Dtype> {
        self.tensors.get(name).map(|info| info.dtype)
    }

    fn whole(&self, info: &Info) -> Result<Cow<'static, [u8]>, String> {
        let (start, end) = info.data_offsets;
        self.bytes(start, end - start)
    }

    /// A tensor in the format it is stored in, if it is here.
    pub(crate) fn load(&self, name: &str, device: &Device) -> Option<Result<Tensor, String>> {
        let info = self.tensors.get(name)?;
        let load = || {
            let dtype = DType::try_from(info.dtype).map_err(|e| e.to_string())?;
            tensor(&self.whole(info)?, dtype, &info.shape, device)
        };
        Some(load())
    }

    /// The bytes of some rows of a matrix of u32 words, `[rows, 4 * words]`, u8, if it is here.
    pub(crate) fn load_words(&self, name: &str, rows: Range<usize>, device: &Device) -> Option<Result<Tensor, String>> {
        let info = self.tensors.get(name)?;
        let load = || {
            let (start, end) = info.data_offsets;
            let row = (end - start) / (info.shape.first().copied().unwrap_or(1) as u64).max(1);
            let bytes = self.bytes(start + rows.start as u64 * row, rows.len() as u64 * row)?.into_owned();
            Tensor::from_vec(bytes, (rows.len(), row as usize), device).map_err(|e| e.to_string())
        };
        Some(load())
    }
}

/// A tensor of numbers that are all finite.
fn tensor(bytes: &[u8], dtype: DType, shape: &[usize], device: &Device) -> Result<Tensor, String> {
    if !all_finite(bytes, dtype) {
        return Err(NOT_FINITE.into());
    }
    Tensor::from_raw_buffer(bytes, dtype, shape, device).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..data).map(|i| i as u8));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<CheckpointFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        CheckpointFile::open(&path)
    }

    const HEADER: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]}}"#;

    #[test]
    fn tensors_are_read_where_the_header_says() {
        let opened = open(&file(HEADER, 12)).unwrap();
        assert_eq!((opened.shape("a"), opened.shape("b")), (Some(&[2, 1][..]), None));
        let a = opened.load("a", &Device::Cpu).unwrap().unwrap();
        let expected = [[f32::from_le_bytes([4, 5, 6, 7])], [f32::from_le_bytes([8, 9, 10, 11])]];
        assert_eq!(a.to_vec2::<f32>().unwrap(), expected);
    }

    #[test]
    fn damaged_files_are_refused() {
        let wrong = |bytes: &[u8]| open(bytes).err().unwrap();
        assert!(wrong(&file(HEADER, 11)).contains("download complete"));
        assert!(wrong(&file(HEADER, 12)[..40]).contains("download complete"));
        assert!(wrong(&[1, 2, 3]).contains("download complete"));
        assert!(wrong(&[0xff; 64]).contains("not a safetensors file"));
        assert!(wrong(&file("{", 0)).contains("header cannot be read"));
        assert!(wrong(&file(&HEADER.replace("[4,12]", "[4,11]"), 12)).contains("7 bytes for [2, 1]"));
        assert!(wrong(&file(&HEADER.replace("[4,12]", "[12,4]"), 12)).contains("bytes for [2, 1]"));
        assert!(wrong(&file(&HEADER.replace("F32", "F33"), 12)).contains("its entry of `a`"));
        let two = |name: &str, from: usize| {
            let entry = |name: &str, from: usize, to: usize| {
                format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{from},{to}]}}"#)
            };
            file(&format!("{{{},{}}}", entry("a", 0, 8), entry(name, from, from + 8)), 16)
        };
        assert!(open(&two("b", 8)).is_ok());
        assert!(wrong(&two("b", 4)).contains("its tensors `a` and `b` overlap"));
        assert!(wrong(&two("b", 0)).contains("overlap"));
        assert!(wrong(&two("a", 8)).contains("it has two entries of `a`"));
        let long = format!("{{{}}}", " ".repeat(16 << 20));
        assert!(wrong(&file(&long, 0)).contains("at most 16777216 are allowed"));
        // Memory that a header asks for stays in step with its bytes.
        let grown = format!(r#"{{"__metadata__":[{}0]}}"#, r#"{"":0},"#.repeat(100_000));
        assert!(open(&file(&grown, 0)).is_ok());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CheckpointFile::open(folder.path()).err().unwrap(), "it is not a regular file");
        assert_eq!(CheckpointFile::open(Path::new("/dev/zero")).err().unwrap(), "it is not a regular file");
    }

    #[test]
    fn numbers_that_are_none_are_found() {
        let mut bytes = file(HEADER, 12);
        let at = bytes.len() - 4;
        for wrong in [f32::NAN, f32::INFINITY] {
            bytes[at..].copy_from_slice(&wrong.to_le_bytes());
            let opened = open(&bytes).unwrap();
            assert!(opened.load("a", &Device::Cpu).unwrap().unwrap_err().contains(NOT_FINITE));
            assert!(opened.load_rows("a", 0..1, &Device::Cpu).unwrap().is_ok());
            assert!(opened.load_rows("a", 1..2, &Device::Cpu).unwrap().unwrap_err().contains(NOT_FINITE));
        }
    }
}
