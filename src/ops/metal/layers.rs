//! Launches of a block's operations beside attention.

use candle_core::{Device, Result, Tensor};

use crate::memory::trace;
use crate::ops::dropout::{Dropout, Part};
use crate::ops::metal::launch::{Arg, Size, bytes, words};
use crate::ops::metal::queue::{Queue, acceptable};
use crate::spec::model::Activation;
use crate::spec::run::engine::LOW_RANK;

/// A box of numbers that is copied or added: its size, and the distances between neighbours on both sides.
#[derive(Clone, Copy)]
pub(super) struct Box {
    /// Width, height, depth.
    pub size: [usize; 3],
    /// Between columns, rows and planes of the source.
    pub from: [usize; 3],
    /// Between rows and planes of the target, whose columns are neighbours.
    pub to: [usize; 2],
}

impl Box {
    fn launch(&self, queue: Queue, kernel: &'static str, scale: f64, (from, to): (&Tensor, &Tensor)) -> Result<()> {
        let n = (self.size.iter().product::<usize>() * size_of::<f32>()) as u64;
        let moved = if kernel == "accumulate" { 3 * n } else { 2 * n };
        let ([column, row, plane], [to_row, to_plane]) = (self.from, self.to);
        let words = words![column, row, plane, to_row, to_plane, scale];
        queue.launch(kernel, &[Arg::Table(from), Arg::Part(to)], words, Size::Grid(self.size), moved)
    }

    /// Copies from the first tensor to the second, counted from the first number of each.
    pub(super) fn copy(&self, queue: Queue, tensors: (&Tensor, &Tensor)) -> Result<()> {
        self.launch(queue, "copy", 1.0, tensors)
    }

    /// Adds `scale` times the first to the second.
    pub(super) fn accumulate(&self, queue: Queue, scale: f64, tensors: (&Tensor, &Tensor)) -> Result<()> {
        self.launch(queue, "accumulate", scale, tensors)
    }
}

fn kind(a: Activation) -> u32 {
    match a {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
    }
}

/// Rows and width of a tensor, taken as a matrix.
fn dims(t: &Tensor) -> (usize, usize) {
    let width = t.dims().last().copied().unwrap_or(1).max(1);
    (t.elem_count() / width, width)
}

impl Queue {
    /// A kernel on each number of `like`, with its width and one more parameter.
    fn each(self, kernel: &'static str, args: &[Arg<'_>], like: &Tensor, word: u32) -> Result<()> {
        let (rows, width) = dims(like);
        self.launch(kernel, args, words![width, word], Size::matrix(rows, width), 0)
    }

    /// Memory like that of `t`.
    pub(crate) fn like(self, t: &Tensor) -> Result<Tensor> {
        self.empty(t.shape(), t.device())
    }

    /// Writes `value` to every place.
    pub(crate) fn fill(self, t: &Tensor, value: f64) -> Result<()> {
        self.each("fill", &[Arg::Out(t)], t, (value as f32).to_bits())
    }

    pub(crate) fn zeros(self, shape: (usize, usize), device: &Device) -> Result<Tensor> {
        let t = self.empty(shape, device)?;
        self.fill(&t, 0.0)?;
        Ok(t)
    }

    /// The same numbers in memory of their own.
    pub(crate) fn copied(self, t: &Tensor) -> Result<Tensor> {
        let ((rows, width), out) = (dims(t), self.like(t)?);
        Box { size: [width, rows, 1], from: [1, width, 0], to: [width, 0] }.copy(self, (t, &out))?;
        Ok(out)
    }

    /// `x *= factor`
    pub(crate) fn scale(self, x: &Tensor, factor: f64) -> Result<()> {
        self.each("scale", &[Arg::InOut(x)], x, (factor as f32).to_bits())
    }

    /// `to += scale * from`; a shorter `from` is a row that is added to every row.
    pub(crate) fn accumulate(self, to: &Tensor, from: &Tensor, scale: f64) -> Result<()> {
        let (rows, width) = dims(to);
        let down = if from.elem_count() < to.elem_count() { 0 } else { width };
        Box { size: [width, rows, 1], from: [1, down, 0], to: [width, 0] }.accumulate(self, scale, (from, to))
    }

    /// `to = a + b`
    pub(crate) fn sum(self, a: &Tensor, b: &Tensor, to: &Tensor) -> Result<()> {
        self.each("sum", &[Arg::In(a), Arg::In(b), Arg::Out(to)], to, 0)
    }

    /// Columns `from..from + width` of a matrix, in memory of their own.
    pub(crate) fn columns(self, x: &Tensor, from: usize, width: usize) -> Result<Tensor> {
        let (rows, all) = x.dims2()?;
        let out = self.empty((rows, width), x.device())?;
        let first = x.flatten_all()?.narrow(0, from, rows * all - from)?;
        Box { size: [width, rows, 1], from: [1, all, 0], to: [width, 0] }.copy(self, (&first, &out))?;
        Ok(out)
    }

    /// Writes a matrix to the columns of `out` from `at` on.
    pub(crate) fn put_columns(self, out: &Tensor, at: usize, part: &Tensor) -> Result<()> {
        let ((rows, all), width) = (out.dims2()?, part.dim(1)?);
        let first = out.flatten_all()?.narrow(0, at, rows * all - at)?;
        Box { size: [width, rows, 1], from: [1, width, 0], to: [all, 0] }.copy(self, (part, &first))
    }

    /// Matrices side by side.
    pub(crate) fn beside(self, parts: &[&Tensor]) -> Result<Tensor> {
        let mut width = 0;
        for part in parts {
            width += part.dim(1)?;
        }
        let out = self.empty((parts[0].dim(0)?, width), parts[0].device())?;
        let mut at = 0;
        for part in parts {
            self.put_columns(&out, at, part)?;
            at += part.dim(1)?;
        }
        Ok(out)
    }

    /// A matrix with its columns as rows, in memory of its own.
    pub(crate) fn turned(self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let out = self.empty((width, rows), x.device())?;
        Box { size: [rows, width, 1], from: [width, 1, 0], to: [rows, 0] }.copy(self, (x, &out))?;
        Ok(out)
    }

    /// Rows of these indices.
    pub(crate) fn gather(self, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let out = self.empty((ids.elem_count(), x.dim(1)?), x.device())?;
        let (args, words) = (&[Arg::Table(x), Arg::In(ids), Arg::Out(&out)], words![x.dim(1)?, 0u32]);
        self.launch("gather", args, words, Size::matrix(out.dim(0)?, out.dim(1)?), bytes(&out))?;
        Ok(out)
    }

    /// Writes the rows of `part` to the rows `ids` of `out`.
    pub(crate) fn scatter(self, out: &Tensor, part: &Tensor, ids: &Tensor) -> Result<()> {
        let (args, words) = (&[Arg::In(part), Arg::In(ids), Arg::Part(out)], words![part.dim(1)?, 0u32]);
        self.launch("scatter", args, words, Size::matrix(part.dim(0)?, part.dim(1)?), bytes(part))
    }

    /// `out + scale * a b`, in the place of `out`. With few columns in `a`, as a LoRA has, the product is made where it is
    /// added: it would be as large as `out`.
    pub(crate) fn add_product(self, out: Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
        let ((rows, width), rank) = (out.dims2()?, a.dim(1)?);
        if let (true, &[down, across]) = (rank <= LOW_RANK && a.is_contiguous(), b.stride()) {
            acceptable(a, b)?;
            // A transposed matrix is given as it lies; the kernel knows its strides.
            let lies = if b.is_contiguous() { b.clone() } else { b.t()? };
            let args = &[Arg::InOut(&out), Arg::In(a), Arg::In(&lies)];
            let words = words![rows, width, rank, across, down, scale];
            self.launch("low_rank", args, words, Size::matrix(rows.div_ceil(4), width.div_ceil(4)), 0)?;
            return Ok(out);
        }
        self.accumulate(&out, &self.product(a, b)?, scale)?;
        Ok(out)
    }

    /// An RMS norm, or a layer norm where there is a bias.
    pub(crate) fn norm(self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let ((rows, width), y) = (x.dims2()?, self.like(x)?);
        let (words, size) = (words![width, eps], Size::rows(rows, width));
        match b {
            Some(b) => {
                self.launch("layer_norm", &[Arg::In(x), Arg::In(w), Arg::In(b), Arg::Out(&y)], words, size, 0)?;
            }
            None => self.launch("rms_norm", &[Arg::In(x), Arg::In(w), Arg::Out(&y)], words, size, 0)?,
        }
        Ok(y)
    }

    /// Gradient of [`Queue::norm`] with respect to `x`.
    pub(crate) fn norm_back(self, x: &Tensor, w: &Tensor, layer: bool, eps: f64, g: &Tensor) -> Result<Tensor> {
        let ((rows, width), dx) = (x.dims2()?, self.like(x)?);
        let kernel = if layer { "layer_norm_back" } else { "rms_norm_back" };
        let args = &[Arg::In(x), Arg::In(w), Arg::In(g), Arg::Out(&dx)];
        self.launch(kernel, args, words![width, eps], Size::rows(rows, width), 0)?;
        Ok(dx)
    }

    /// `act(x)`
    pub(crate) fn act(self, a: Activation, x: &Tensor) -> Result<Tensor> {
        let y = self.like(x)?;
        self.each("act", &[Arg::In(x), Arg::Out(&y)], x, kind(a))?;
        Ok(y)
    }

    /// `act'(x) g`, in the place of `g`.
    pub(crate) fn act_back(self, a: Activation, x: &Tensor, g: &Tensor) -> Result<()> {
        self.each("act_back", &[Arg::In(x), Arg::InOut(g)], x, kind(a))
    }

    /// `act(gate) * up`
    pub(crate) fn gated(self, a: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let y = self.like(gate)?;
        self.each("gated", &[Arg::In(gate), Arg::In(up), Arg::Out(&y)], gate, kind(a))?;
        Ok(y)
    }

    /// Gradients of [`Queue::gated`]: that of up in its place, and that of the gate in the place of `g`.
    pub(crate) fn gated_back(self, a: Activation, gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<()> {
        self.each("gated_back", &[Arg::In(gate), Arg::InOut(up), Arg::InOut(g)], gate, kind(a))
    }

    /// Rotates the first `2 half` numbers of each head, in place.
    pub(crate) fn rope(
        self,
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        positions: &Tensor,
        (head_dim, sign): (usize, f64),
    ) -> Result<()> {
        let ((rows, width), half) = (x.dims2()?, cos.dim(1)?);
        let args = &[Arg::InOut(x), Arg::Table(cos), Arg::Table(sin), Arg::In(positions)];
        let words = words![width, head_dim, half, sign];
        self.launch("rope", args, words, Size::matrix(rows, width / head_dim * half), 0)
    }

    /// A part of `x` after dropout, into `to`, which may be `x`.
    pub(crate) fn dropout(self, x: &Tensor, to: &Tensor, dropout: &Dropout, part: Part) -> Result<()> {
        let (rows, width) = x.dims2()?;
        let (threshold, [dropped, kept]) = (dropout.threshold().min(u64::from(u32::MAX)) as u32, dropout.factors(part));
        let key = dropout.key;
        let words = words![
            width,
            dropout.first_row,
            key.site as u32,
            key.micro_step as u32,
            key.seed as u32,
            (key.seed >> 32) as u32,
            threshold,
            dropped,
            kept,
        ];
        self.launch("dropout", &[Arg::In(x), Arg::Out(to)], words, Size::matrix(rows, width.div_ceil(4)), 0)
    }

    /// Column j of `y` times `factor[j]`, in place.
    pub(crate) fn scale_columns(self, y: &Tensor, factor: &Tensor) -> Result<()> {
        self.each("scale_columns", &[Arg::InOut(y), Arg::In(factor)], y, 0)
    }

    /// `a / b` of two vectors.
    pub(crate) fn quotient(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let out = self.like(a)?;
        self.each("quotient", &[Arg::In(a), Arg::In(b), Arg::Out(&out)], a, 0)?;
        Ok(out)
    }

    /// Sum of `a * b` over the rows, a number a column.
    pub(crate) fn column_dots(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (rows, width) = a.dims2()?;
        let out = self.empty(width, a.device())?;
        let args = &[Arg::In(a), Arg::In(b), Arg::Out(&out)];
        self.launch("column_dots", args, words![rows, width], Size::Grid([width, 1, 1]), 0)?;
        Ok(out)
    }

    /// Sum of `a * b` along each row, to `to`.
    pub(crate) fn row_dots(self, a: &Tensor, b: &Tensor, to: &Tensor) -> Result<()> {
        let (rows, width) = a.dims2()?;
        let args = &[Arg::In(a), Arg::In(b), Arg::Out(to)];
        self.launch("row_dots", args, words![rows, width], Size::Grid([rows, 1, 1]), 0)
    }

    /// `sqrt(max(squares + moved, smallest))`, in the place of `moved`.
    pub(crate) fn lengths(self, squares: &Tensor, moved: &Tensor, smallest: f64) -> Result<()> {
        let n = moved.elem_count();
        let args = &[Arg::In(squares), Arg::InOut(moved)];
        self.launch("lengths", args, words![n, smallest], Size::Grid([n, 1, 1]), 0)
    }

    /// Losses of some rows to `losses`; the logits become their gradient times `scale`, where one is wanted.
    pub(crate) fn cross_entropy(
        self,
        logits: &Tensor,
        targets: &Tensor,
        losses: &Tensor,
        (softcap, scale): (Option<f64>, Option<f64>),
    ) -> Result<()> {
        let (rows, vocab) = logits.dims2()?;
        let words = words![vocab, scale.is_some(), softcap.unwrap_or(0.0), scale.unwrap_or(0.0)];
        let args = &[Arg::InOut(logits), Arg::In(targets), Arg::Out(losses)];
        // Read twice more than it is written.
        self.launch("cross_entropy", args, words, Size::rows(rows, vocab), bytes(logits))
    }

    /// Counts memory that was made before and stays, as weights do.
    pub(crate) fn keeps(self, bytes: u64) {
        trace::keep(bytes, trace::Source::Upload);
    }
}
