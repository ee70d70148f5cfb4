//! Attention by candle's products and kernels of our own, a chunk of query rows and all heads at a time.
//!
//! Products want the rows of a head one after the other: keys and values are laid out so once an example, queries once a
//! chunk. The heads that share a key head are one matrix.

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::ops::attention::{Chunk, Shape};
use crate::ops::metal::layers::Box;
use crate::ops::metal::{Arg, Queue, Size, words};

/// A row that a threadgroup reads again comes out of a cache if it is at most this long, bytes.
const CACHED_ROW: usize = 32 << 10;

/// Bytes of rows of `n` numbers that a kernel reads a second time.
fn again(rows: usize, n: usize) -> u64 {
    let row = n * size_of::<f32>();
    if row <= CACHED_ROW { 0 } else { (rows * row) as u64 }
}

/// Query, key and value, or gradients of them.
type Three = (Tensor, Tensor, Tensor);

impl Shape {
    /// Rows `rows` of `x [_, heads * d]` as `[kv_heads, heads / kv_heads * rows, d]`.
    fn by_head(&self, queue: Queue, x: &Tensor, rows: &Range<usize>, heads: usize) -> Result<Tensor> {
        let (n, d) = (rows.len(), self.head_dim);
        let out = queue.empty((self.kv_heads, heads / self.kv_heads * n, d), x.device())?;
        let from = x.narrow(0, rows.start, n)?;
        Box { size: [d, n, heads], from: [1, heads * d, d], to: [d, n * d] }.copy(queue, (&from, &out))?;
        Ok(out)
    }

    /// Back from [`Self::by_head`] to rows `rows` of `out`.
    fn by_row(&self, queue: Queue, x: &Tensor, rows: &Range<usize>, heads: usize, out: &Tensor) -> Result<()> {
        let (n, d) = (rows.len(), self.head_dim);
        let to = out.narrow(0, rows.start, n)?;
        Box { size: [d, n, heads], from: [1, d, n * d], to: [heads * d, d] }.copy(queue, (x, &to))
    }

    fn softmax_words(&self, chunk: &Chunk, scale: f64) -> [u32; 7] {
        let window = self.window.unwrap_or(usize::MAX);
        let (rows, keys) = (&chunk.rows, &chunk.keys);
        *words![keys.len(), rows.len(), rows.start, keys.start, window, scale, self.softcap.unwrap_or(0.0)]
    }

    /// Probabilities of a chunk, `[kv_heads, group * rows, keys]`, and the soft-cap's slope.
    fn probabilities_metal(&self, queue: Queue, q: &Tensor, k: &Tensor, chunk: &Chunk) -> Result<(Tensor, Tensor)> {
        let p = queue.product(q, &k.t()?)?;
        let slope = if self.softcap.is_some() { queue.like(&p)? } else { p.clone() };
        let (rows, n) = (self.heads * chunk.rows.len(), chunk.keys.len());
        // The scores are read twice, the second time out of a cache where a row fits into one.
        let args = &[Arg::InOut(&p), if self.softcap.is_some() { Arg::Out(&slope) } else { Arg::Part(&p) }];
        let beside = again(rows, n);
        queue.launch("softmax", args, &self.softmax_words(chunk, self.scale), Size::rows(rows, n), beside)?;
        Ok((p, slope))
    }

    /// The output of some chunks of an example to `out`; `moved` rows are missing before the queries.
    fn chunks_metal(
        &self,
        queue: Queue,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        (start, moved): (usize, usize),
        chunks: impl Iterator<Item = Chunk>,
        out: &Tensor,
    ) -> Result<()> {
        for chunk in chunks {
            let rows = start + chunk.rows.start - moved..start + chunk.rows.end - moved;
            let keys = |x: &Tensor| x.narrow(1, chunk.keys.start, chunk.keys.len());
            let qc = self.by_head(queue, q, &rows, self.heads)?;
            let (p, slope) = self.probabilities_metal(queue, &qc, &keys(k)?, &chunk)?;
            drop((qc, slope));
            let o = queue.product(&p, &keys(v)?)?;
            drop(p);
            self.by_row(queue, &o, &rows, self.heads, out)?;
        }
        Ok(())
    }

    pub(in crate::ops) fn forward_metal(
        &self,
        queue: Queue,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        examples: &[Range<usize>],
    ) -> Result<Tensor> {
        let out = queue.like(q)?;
        for example in examples {
            let of = |x: &Tensor| self.by_head(queue, x, example, self.kv_heads);
            let (k, v) = (of(k)?, of(v)?);
            self.chunks_metal(queue, (q, &k, &v), (example.start, 0), self.chunks(example.len()), &out)?;
        }
        Ok(out)
    }

    pub(in crate::ops) fn forward_last_metal(
        &self,
        queue: Queue,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        chunks: impl Iterator<Item = Chunk>,
    ) -> Result<Tensor> {
        let (out, length) = (queue.like(q)?, k.dim(0)?);
        let of = |x: &Tensor| self.by_head(queue, x, &(0..length), self.kv_heads);
        let (k, v) = (of(k)?, of(v)?);
        self.chunks_metal(queue, (q, &k, &v), (0, length - q.dim(0)?), chunks, &out)?;
        Ok(out)
    }

    pub(in crate::ops) fn backward_metal(
        &self,
        queue: Queue,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        g: &Tensor,
        examples: &[Range<usize>],
    ) -> Result<Three> {
        let (dq, dk, dv) = (queue.like(q)?, queue.like(k)?, queue.like(v)?);
        for example in examples {
            let of = |x: &Tensor| self.by_head(queue, x, example, self.kv_heads);
            let (k, v) = (of(k)?, of(v)?);
            let (dk_heads, dv_heads) = (queue.like(&k)?, queue.like(&v)?);
            queue.fill(&dk_heads, 0.0)?;
            queue.fill(&dv_heads, 0.0)?;
            for chunk in self.chunks(example.len()) {
                let rows = example.start + chunk.rows.start..example.start + chunk.rows.end;
                let [dqc, dkc, dvc] = self.chunk_back_metal(queue, (q, &k, &v), g, &rows, &chunk)?;
                self.by_row(queue, &dqc, &rows, self.heads, &dq)?;
                self.add_keys(queue, &dkc, &chunk.keys, &dk_heads)?;
                self.add_keys(queue, &dvc, &chunk.keys, &dv_heads)?;
            }
            drop((k, v));
            self.by_row(queue, &dk_heads, example, self.kv_heads, &dk)?;
            self.by_row(queue, &dv_heads, example, self.kv_heads, &dv)?;
        }
        Ok((dq, dk, dv))
    }

    /// Gradients of a chunk's queries, keys and values, each head after head; see `backward_head` for the formulas.
    fn chunk_back_metal(
        &self,
        queue: Queue,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        g: &Tensor,
        rows: &Range<usize>,
        chunk: &Chunk,
    ) -> Result<[Tensor; 3]> {
        let keys = |x: &Tensor| x.narrow(1, chunk.keys.start, chunk.keys.len());
        let (k, v) = (keys(k)?, keys(v)?);
        let qc = self.by_head(queue, q, rows, self.heads)?;
        let (p, slope) = self.probabilities_metal(queue, &qc, &k, chunk)?;
        let gc = self.by_head(queue, g, rows, self.heads)?;
        let ds = queue.product(&gc, &v.t()?)?;
        let dv = queue.product(&p.t()?, &gc)?;
        drop(gc);
        let (rows, n) = (self.heads * chunk.rows.len(), chunk.keys.len());
        let args = &[Arg::In(&p), if self.softcap.is_some() { Arg::In(&slope) } else { Arg::Table(&slope) }, Arg::InOut(&ds)];
        let beside = 2 * again(rows, n);
        queue.launch("softmax_back", args, &self.softmax_words(chunk, self.scale), Size::rows(rows, n), beside)?;
        drop((p, slope));
        let dk = queue.product(&ds.t()?, &qc)?;
        drop(qc);
        let dq = queue.product(&ds, &k)?;
        Ok([dq, dk, dv])
    }

    /// Adds a chunk's `[kv_heads, keys, d]` to the places of its keys in `to [kv_heads, length, d]`.
    fn add_keys(&self, queue: Queue, part: &Tensor, keys: &Range<usize>, to: &Tensor) -> Result<()> {
        let (n, d, length) = (keys.len(), self.head_dim, to.dim(1)?);
        let at = keys.start * d;
        let first = to.flatten_all()?.narrow(0, at, to.elem_count() - at)?;
        Box { size: [d, n, self.kv_heads], from: [1, d, n * d], to: [d, length * d] }
            .accumulate(queue, 1.0, (part, &first))
    }
}
