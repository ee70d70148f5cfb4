//! Dropout. What is dropped is a function of the place, so that it is drawn again where it is needed and never kept: the
//! same in chunks as in the whole, and on every device.
//!
//! Drawn by Philox 4x32-10, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;

use crate::ops::access::slice_mut;
use crate::ops::backend::Backend;

/// Numbers that a thread works on at one time, at least.
const SPAN: usize = 1 << 14;

/// Which numbers a dropout draws: the same in the forward pass and in backward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutKey {
    /// Seed of the run.
    pub seed: u64,
    /// Index of the micro-batch, counted over the whole run.
    pub micro_step: u64,
    /// Index of the projection, counted over the whole model.
    pub site: u64,
}

/// A dropout of rows that begin at `first_row` of the micro-batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    /// What is drawn.
    pub key: DropoutKey,
    /// Probability that a number is dropped, 0 to 1.
    pub p: f64,
    /// Row of the micro-batch that is the first here.
    pub first_row: usize,
}

/// What a dropout leaves of a number: with `kept` 0 or `1 / (1 - p)` times it, with `rest` what is missing to the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The input of an adapter.
    Kept,
    /// The input less that.
    Rest,
}

impl Dropout {
    /// A number is dropped where the 32 bits drawn for it are below this.
    pub(super) fn threshold(&self) -> u64 {
        (self.p * 2f64.powi(32)).round() as u64
    }

    /// What a number is multiplied by where it is dropped, and where it is not.
    pub(super) fn factors(&self, part: Part) -> [f32; 2] {
        let keep = (1.0 / (1.0 - self.p)) as f32;
        match part {
            Part::Kept => [0.0, keep],
            Part::Rest => [1.0, 1.0 - keep],
        }
    }

    /// Multiplies one row by its factors.
    fn row(&self, numbers: &mut [f32], row: usize, part: Part) {
        let (threshold, [dropped, kept]) = (self.threshold(), self.factors(part));
        let key = [self.key.seed as u32, (self.key.seed >> 32) as u32];
        let place = [(self.first_row + row) as u32, self.key.site as u32, self.key.micro_step as u32];
        for (group, numbers) in numbers.chunks_mut(4).enumerate() {
            let drawn = philox([group as u32, place[0], place[1], place[2]], key);
            for (x, drawn) in numbers.iter_mut().zip(drawn) {
                *x *= if u64::from(drawn) < threshold { dropped } else { kept };
            }
        }
    }

    fn apply(&self, numbers: &mut [f32], width: usize, part: Part) {
        let rows = SPAN.div_ceil(width);
        numbers.par_chunks_mut(rows * width).enumerate().for_each(|(task, numbers)| {
            numbers.chunks_mut(width).enumerate().for_each(|(i, row)| self.row(row, task * rows + i, part));
        });
    }

    /// The factors themselves, `[rows, width]`.
    fn mask(&self, (rows, width): (usize, usize), part: Part, device: &Device) -> Result<Tensor> {
        let mut factors = vec![1f32; rows * width];
        self.apply(&mut factors, width, part);
        Tensor::from_vec(factors, (rows, width), device)
    }
}

impl Backend {
    /// `x [rows, width]` after dropout, in memory of its own.
    pub(crate) fn dropped(self, x: &Tensor, dropout: &Dropout) -> Result<Tensor> {
        self.part(x, dropout, Part::Kept)
    }

    /// A part of `x [rows, width]`, in memory of its own.
    pub(crate) fn part(self, x: &Tensor, dropout: &Dropout, part: Part) -> Result<Tensor> {
        match self {
            Self::Fused => self.drop_part(x.force_contiguous()?, dropout, part),
            Self::Metal(queue) => {
                let y = queue.like(x)?;
                queue.dropout(x, &y, dropout, part)?;
                Ok(y)
            }
            Self::Composed => x * dropout.mask(x.dims2()?, part, x.device())?,
        }
    }

    /// A part of `x [rows, width]`, in its place, where nobody else holds it.
    pub(crate) fn drop_part(self, x: Tensor, dropout: &Dropout, part: Part) -> Result<Tensor> {
        match self {
            Self::Fused => x.inplace_op1(&Drop { dropout: *dropout, part })?,
            Self::Metal(queue) => queue.dropout(&x, &x, dropout, part)?,
            Self::Composed => return &x * dropout.mask(x.dims2()?, part, x.device())?,
        }
        Ok(x)
    }
}

struct Drop {
    dropout: Dropout,
    part: Part,
}

impl InplaceOp1 for Drop {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, width) = layout.shape().dims2()?;
        self.dropout.apply(slice_mut(x, layout)?, width, self.part);
        Ok(())
    }
}

/// Four random numbers for a counter and a key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    for _ in 0..10 {
        let wide = [0, 1].map(|i| u64::from(MULTIPLIERS[i]) * u64::from(counter[2 * i]));
        let (high, low) = (wide.map(|w| (w >> 32) as u32), wide.map(|w| w as u32));
        counter = [high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, values, worst};

    /// The known answers that come with the authors' Random123 (`kat_vectors`).
    #[test]
    fn philox_gives_the_known_answers() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn a_mask_drops_what_it_says_and_depends_on_the_place_alone() {
        let key = DropoutKey { seed: 7, micro_step: 3, site: 5 };
        let dropout = Dropout { key, p: 0.3, first_row: 0 };
        let (rows, width) = (203, 331);
        let mask = |d: Dropout| values(&d.mask((rows, width), Part::Kept, &Device::Cpu).unwrap());
        let whole = mask(dropout);
        let dropped = whole.iter().filter(|x| **x == 0.0).count() as f64 / whole.len() as f64;
        // Four standard deviations of a share of 67,193 draws.
        assert!((dropped - 0.3).abs() < 4.0 * (0.3 * 0.7 / whole.len() as f64).sqrt(), "{dropped}");
        assert!(whole.iter().all(|x| *x == 0.0 || (x * 0.7 - 1.0).abs() < 1e-6));
        // Rows that begin elsewhere are the same rows.
        let later = mask(Dropout { first_row: 100, ..dropout });
        assert_eq!(later[..103 * width], whole[100 * width..]);
        for other in [
            DropoutKey { seed: 8, ..key },
            DropoutKey { seed: 7 | 1 << 40, ..key },
            DropoutKey { micro_step: 4, ..key },
            DropoutKey { site: 6, ..key },
        ] {
            let differ = mask(Dropout { key: other, ..dropout }).iter().zip(&whole).filter(|(a, b)| a != b).count();
            // Two independent masks differ at 2 p (1 - p) of the places.
            assert!((differ as f64 / whole.len() as f64 - 0.42).abs() < 0.01, "{other:?}: {differ}");
        }
    }

    #[test]
    fn both_back_ends_drop_the_same_and_the_parts_are_the_whole() {
        let dropout = Dropout { key: DropoutKey { seed: 1, micro_step: 2, site: 3 }, p: 0.4, first_row: 9 };
        let x = random((37, 53), 1.0, 4);
        let [fused, composed] = [Backend::Fused, Backend::Composed].map(|b| b.dropped(&x, &dropout).unwrap());
        assert_eq!(worst(&fused, &composed), 0.0);
        for backend in [Backend::Fused, Backend::Composed] {
            let rest = backend.drop_part(x.copy().unwrap(), &dropout, Part::Rest).unwrap();
            assert!(worst(&(rest + &fused).unwrap(), &x) < 1e-6);
        }
    }
}
