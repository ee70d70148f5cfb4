//! Launches of the gradients' norm and of the update rules, on numbers that stay where they are.

use candle_core::{Result, Tensor};

use crate::ops::metal::launch::{Arg, SIMD, Size, words};
use crate::ops::metal::queue::Queue;
use crate::spec::run::OPTIMIZER_BLOCK as BLOCK;
use crate::spec::run::engine::NORM_PARTS as PARTS;

/// AdamW's numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    /// The gradient is multiplied by this first: what clipping leaves of it.
    pub factor: f64,
    /// Decay of the mean, and of the mean of squares.
    pub betas: (f64, f64),
    /// Learning rate over the first bias correction.
    pub rate: f64,
    /// Root of the second bias correction.
    pub root_bias2: f64,
    /// Constant added to the root of the second moment.
    pub eps: f64,
    /// What weight decay leaves of a weight.
    pub decay: f64,
}

/// Adafactor's numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FactorStep {
    /// As in [`AdamStep`].
    pub factor: f64,
    /// Share of the new squares in what is remembered.
    pub share: f64,
    /// Learning rate.
    pub rate: f64,
    /// As in [`AdamStep`].
    pub decay: f64,
}

fn line(n: usize) -> Size {
    Size::Grid([n, 1, 1])
}

/// One threadgroup, of which every thread takes many numbers.
const ONE_GROUP: Size = Size::Rows(1, 8 * SIMD);

impl Queue {
    /// Sums of squares of `x`, [`PARTS`] of them, to `to`.
    pub(crate) fn squares(self, x: &Tensor, to: &Tensor) -> Result<()> {
        self.launch("squares", &[Arg::In(x), Arg::Out(to)], words![x.elem_count(), PARTS], line(PARTS), 0)
    }

    /// AdamW on a tensor and its moments.
    pub(crate) fn adamw(self, p: &Tensor, g: &Tensor, (m, v): (&Tensor, &Tensor), s: &AdamStep) -> Result<()> {
        let words = words![s.factor, s.betas.0, s.betas.1, s.rate, s.root_bias2, s.eps, s.decay];
        self.launch("adamw", &[Arg::InOut(p), Arg::In(g), Arg::InOut(m), Arg::InOut(v)], words, line(p.elem_count()), 0)
    }

    /// AdamW with moments in eight bits, as (codes, largest magnitudes of blocks). `books` holds both books.
    pub(crate) fn adamw_8bit(
        self,
        p: &Tensor,
        g: &Tensor,
        (m, v): ((&Tensor, &Tensor), (&Tensor, &Tensor)),
        books: &Tensor,
        s: &AdamStep,
    ) -> Result<()> {
        let n = p.elem_count();
        let words = words![n, s.factor, s.betas.0, s.betas.1, s.rate, s.root_bias2, s.eps, s.decay];
        let args = &[
            Arg::InOut(p),
            Arg::In(g),
            Arg::InOut(m.0),
            Arg::InOut(m.1),
            Arg::InOut(v.0),
            Arg::InOut(v.1),
            Arg::Table(books),
        ];
        self.launch("adamw_8bit", args, words, Size::Rows(n.div_ceil(BLOCK), BLOCK), 0)
    }

    /// Adafactor on a matrix; `row` and `column` are what is remembered.
    pub(crate) fn adafactor(
        self,
        p: &Tensor,
        g: &Tensor,
        (row, column): (&Tensor, &Tensor),
        s: &FactorStep,
    ) -> Result<()> {
        let (rows, width) = p.dims2()?;
        let words = words![rows, width, s.factor, s.share];
        self.launch("factor_rows", &[Arg::In(g), Arg::InOut(row)], words, Size::rows(rows, width), 0)?;
        self.launch("factor_columns", &[Arg::In(g), Arg::InOut(column)], words, line(width), 0)?;
        let mean = self.empty(1, p.device())?;
        self.launch("factor_mean", &[Arg::In(row), Arg::Out(&mean)], words![rows, 0u32], ONE_GROUP, 0)?;
        let update = self.like(p)?;
        let args = &[Arg::In(g), Arg::In(row), Arg::In(column), Arg::In(&mean), Arg::Out(&update)];
        self.launch("factored", args, words, Size::matrix(rows, width), 0)?;
        self.descend(p, &update, s)
    }

    /// Adafactor on a vector, whose squares are remembered one by one.
    pub(crate) fn adafactor_vector(self, p: &Tensor, g: &Tensor, squares: &Tensor, s: &FactorStep) -> Result<()> {
        let update = self.like(p)?;
        let words = words![1u32, p.elem_count(), s.factor, s.share];
        let args = &[Arg::In(g), Arg::InOut(squares), Arg::Out(&update)];
        self.launch("factored_vector", args, words, line(p.elem_count()), 0)?;
        self.descend(p, &update, s)
    }

    /// Takes an update whose root mean square is at most 1 off the weights.
    fn descend(self, p: &Tensor, update: &Tensor, s: &FactorStep) -> Result<()> {
        let n = p.elem_count();
        let (parts, clip) = (self.empty(PARTS, p.device())?, self.empty(1, p.device())?);
        self.squares(update, &parts)?;
        self.launch("update_clip", &[Arg::In(&parts), Arg::Out(&clip)], words![n, PARTS], ONE_GROUP, 0)?;
        let args = &[Arg::InOut(p), Arg::In(update), Arg::In(&clip)];
        self.launch("descend", args, words![s.rate, s.decay], line(n), 0)
    }
}
