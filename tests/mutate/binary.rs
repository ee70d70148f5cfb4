//! Changed safetensors and GGUF files.

use super::*;

/// A safetensors file whose header is changed, or said to be of another length.
pub fn safetensors(base: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let length = u64::from_le_bytes(base[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&base[8..8 + length]).unwrap();
    let header = json(&header, rng);
    let said: u64 = match rng.random_range(0..8) {
        0 => *[0, 1, 7, 100_000_001, u64::from(u32::MAX), u64::MAX, 1 << 63].choose(rng).unwrap(),
        _ => header.len() as u64,
    };
    let rest = &base[8 + length..];
    let rest = if rng.random_range(0..8) == 0 { &rest[..rng.random_range(0..rest.len())] } else { rest };
    [&said.to_le_bytes()[..], &header, rest].concat()
}

/// Places of the numbers in a GGUF file's header: where, and how many bytes.
pub fn gguf_fields(bytes: &[u8]) -> Vec<(usize, usize)> {
    struct At<'a>(&'a [u8], usize, Vec<(usize, usize)>);
    impl At<'_> {
        fn number(&mut self, size: usize) -> u64 {
            let mut eight = [0; 8];
            eight[..size].copy_from_slice(&self.0[self.1..self.1 + size]);
            self.2.push((self.1, size));
            self.1 += size;
            u64::from_le_bytes(eight)
        }
        fn text(&mut self) {
            self.1 += self.number(8) as usize;
        }
        fn of_type(&mut self, kind: u64) {
            match kind {
                8 => self.text(),
                9 => {
                    let (kind, length) = (self.number(4), self.number(8));
                    let known = self.2.len();
                    (0..length).for_each(|_| self.of_type(kind));
                    self.2.truncate(known + 4); // its first items will do
                }
                0 | 1 | 7 => drop(self.number(1)),
                2 | 3 => drop(self.number(2)),
                4..=6 => drop(self.number(4)),
                _ => drop(self.number(8)),
            }
        }
    }
    let mut at = At(bytes, 4, Vec::new());
    at.number(4);
    let (tensors, values) = (at.number(8), at.number(8));
    for _ in 0..values {
        at.text();
        let kind = at.number(4);
        at.of_type(kind);
    }
    for _ in 0..tensors {
        at.text();
        let dimensions = at.number(4);
        (0..dimensions).for_each(|_| _ = at.number(8));
        at.number(4);
        at.number(8);
    }
    at.2
}

/// A GGUF file of which one or two numbers of the header are changed.
pub fn gguf(base: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let fields = gguf_fields(base);
    let mut bytes = base.to_vec();
    for _ in 0..rng.random_range(1..3) {
        let &(at, size) = fields.choose(rng).unwrap();
        let number: u64 = match rng.random_range(0..10) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => 1 << 63,
            4 => 1 << 40,
            5 => 1 << 31,
            6 => rng.random_range(0..16),
            7 => rng.random(),
            8 => 1_000_000_000_000,
            _ => 1 << rng.random_range(0..30),
        };
        bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
    }
    let last = fields.last().unwrap().0;
    match rng.random_range(0..15) {
        0 => bytes.truncate(rng.random_range(0..last)),
        1 => bytes[rng.random_range(0..last)] = rng.random(),
        _ => {}
    }
    bytes
}
