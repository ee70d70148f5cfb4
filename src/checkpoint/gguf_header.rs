//! A look at the header of a GGUF file before candle reads it: candle takes 32 bytes for each value of an array, however
//! small it is in the file, and divides by the alignment that the file gives.

use std::io::{self, Read};

/// Tensors of a file; a large model has some thousands.
const MOST_TENSORS: u64 = 1 << 17;
/// Keys of the metadata; a model has some dozens.
const MOST_KEYS: u64 = 1 << 16;
/// Values of all arrays together: a vocabulary of 262,144 tokens has four of them and half a million merges.
const MOST_VALUES: u64 = 1 << 22;
/// Largest size of the metadata that is read, bytes.
const MOST_BYTES: u64 = 256 << 20;
/// Deepest nesting of arrays that is read; no file is known with any.
const DEEPEST: usize = 4;

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Why a header was not read to its end.
enum Stop {
    /// It cannot be read, or is none: candle's reader says how.
    Unreadable,
    /// It can be read and should not be.
    Refused(String),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Unreadable
    }
}

/// Refuses a header that would take much memory or has an alignment that is none.
pub(crate) fn check(reader: impl Read) -> Result<(), String> {
    match (Header { reader, wide: true, values: 0, bytes: 0 }).check() {
        Err(Stop::Refused(reason)) => Err(reason),
        Ok(()) | Err(Stop::Unreadable) => Ok(()),
    }
}

struct Header<R> {
    reader: R,
    /// Lengths have eight bytes and not four.
    wide: bool,
    values: u64,
    bytes: u64,
}

impl<R: Read> Header<R> {
    fn check(&mut self) -> Result<(), Stop> {
        let magic: [u8; 4] = self.take()?;
        if &magic != b"GGUF" {
            return Err(Stop::Unreadable);
        }
        self.wide = self.u32()? > 1;
        let (tensors, keys) = (self.length()?, self.length()?);
        most("tensors", tensors, MOST_TENSORS)?;
        most("keys", keys, MOST_KEYS)?;
        for _ in 0..keys {
            let key = self.key()?;
            let kind = self.u32()?;
            if key == b"general.alignment" {
                let alignment = if kind == U32 { self.u32()? } else { 0 };
                if !alignment.is_power_of_two() {
                    let reason = "its `general.alignment` is not a power of two in 32 bits".to_owned();
                    return Err(Stop::Refused(reason));
                }
            } else {
                self.value(kind, 0)?;
            }
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.take().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Result<u64, Stop> {
        if self.wide { self.take().map(u64::from_le_bytes) } else { self.u32().map(u64::from) }
    }

    /// A key, as far as it may be one that is looked for.
    fn key(&mut self) -> Result<Vec<u8>, Stop> {
        let length = self.length()?;
        let mut start = vec![0; length.min(64) as usize];
        self.reader.read_exact(&mut start)?;
        self.skip(length - start.len() as u64)?;
        Ok(start)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Stop> {
        self.bytes = self.bytes.saturating_add(bytes);
        most("bytes of metadata", self.bytes, MOST_BYTES)?;
        match io::copy(&mut self.reader.by_ref().take(bytes), &mut io::sink())? {
            read if read == bytes => Ok(()),
            _ => Err(Stop::Unreadable),
        }
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<(), Stop> {
        match (kind, size(kind)) {
            (_, Some(size)) => self.skip(size),
            (STRING, _) => {
                let length = self.length()?;
                self.skip(length)
            }
            (ARRAY, _) if depth == DEEPEST => Err(Stop::Refused("it has arrays in arrays in arrays".into())),
            (ARRAY, _) => self.array(depth),
            _ => Err(Stop::Unreadable),
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Stop> {
        let (kind, length) = (self.u32()?, self.length()?);
        self.values = self.values.saturating_add(length);
        most("values in arrays", self.values, MOST_VALUES)?;
        match size(kind) {
            Some(size) => self.skip(length * size),
            None => (0..length).try_for_each(|_| self.value(kind, depth + 1)),
        }
    }
}

fn most(what: &str, count: u64, most: u64) -> Result<(), Stop> {
    match count <= most {
        true => Ok(()),
        false => Err(Stop::Refused(format!("its header has {count} {what}, and at most {most} are allowed"))),
    }
}

/// Bytes of a value of a kind whose values are all of one size.
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(tensors: u64, keys: &[(&str, u32, &[u8])]) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(tensors.to_le_bytes());
        out.extend((keys.len() as u64).to_le_bytes());
        for (key, kind, value) in keys {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key.as_bytes());
            out.extend(kind.to_le_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    fn array(kind: u32, length: u64, data: usize) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &length.to_le_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn what_would_take_much_memory_is_refused() {
        let nested = |levels: usize| {
            let mut bytes = Vec::new();
            (0..levels).for_each(|_| bytes.extend(array(9, 1, 0)));
            bytes.extend(array(0, 1, 1));
            bytes
        };
        let alignment = |n: u32| header(1, &[("general.alignment", 4, &n.to_le_bytes())]);
        for (bytes, said) in [
            (alignment(0), "its `general.alignment` is not a power of two"),
            (alignment(48), "its `general.alignment` is not a power of two"),
            (header(1, &[("general.alignment", 10, &32u64.to_le_bytes())]), "in 32 bits"),
            (header(1 << 40, &[]), "1099511627776 tensors, and at most 131072 are allowed"),
            (header(1, &[("x", 9, &array(0, 50_000_000, 9))]), "50000000 values in arrays"),
            (
                header(1, &[("x", 9, &array(0, 4_000_000, 4_000_000)), ("y", 9, &array(7, 4_000_000, 0))]),
                "8000000 values",
            ),
            (header(1, &[("x", 9, &nested(4))]), "arrays in arrays"),
            (header(1, &[("x", 8, &(1u64 << 40).to_le_bytes())]), "bytes of metadata"),
        ] {
            assert!(check(&bytes[..]).unwrap_err().contains(said), "{said}");
        }
        for bytes in [alignment(32), alignment(1), header(1, &[("x", 9, &nested(3))]), b"no GGUF".to_vec()] {
            check(&bytes[..]).unwrap();
            check(&bytes[..bytes.len() - 1]).unwrap();
        }
    }
}
