//! Matrix products on strided slices of CPU memory, through the `gemm` crate that candle uses too.
//! candle's own product always makes a new tensor and wants whole batches; attention wants views and accumulation.

/// A matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let view = Self { data, rows, cols, row_stride, col_stride: 1 };
        view.check();
        view
    }

    /// A matrix with any strides, starting at the slice's beginning.
    pub(crate) fn strided(
        data: &'a [f32],
        (rows, cols): (usize, usize),
        (row_stride, col_stride): (usize, usize),
    ) -> Self {
        let view = Self { data, rows, cols, row_stride, col_stride };
        view.check();
        view
    }

    /// Transposed, without a copy.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn check(&self) {
        if self.rows > 0 && self.cols > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
            assert!(last < self.data.len(), "matrix view reaches {last} of {}", self.data.len());
        }
    }
}

/// What happens to the output's old content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// Overwritten, never read.
    Overwrite,
    /// Added to.
    Accumulate,
}

/// `out (+)= scale * a b`, with `out` contiguous and row-major.
pub(crate) fn gemm(out: &mut [f32], a: View<'_>, b: View<'_>, scale: f32, into: Into, threaded: bool) {
    gemm_strided(out, b.cols, (a, b), scale, into, threaded);
}

/// [`gemm()`] into a matrix whose rows are `row_stride` apart.
pub(crate) fn gemm_strided(
    out: &mut [f32],
    row_stride: usize,
    (a, b): (View<'_>, View<'_>),
    scale: f32,
    into: Into,
    threaded: bool,
) {
    assert!(row_stride >= b.cols, "rows of the output overlap");
    assert!(a.rows == 0 || out.len() >= (a.rows - 1) * row_stride + b.cols, "output too small");
    // SAFETY: `out` holds rows x cols numbers and is borrowed mutably, so it overlaps neither input.
    unsafe { raw(out.as_mut_ptr(), row_stride, (a, b), scale, into, threaded) };
}

/// `scale * a b` in memory of its own, row-major, computed by all threads.
pub(crate) fn product(a: View<'_>, b: View<'_>, scale: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(a.rows * b.cols);
    // SAFETY: the memory is there and nobody else's. Its old content is never read; the product writes every number,
    // as there is at least one to sum over.
    unsafe {
        assert!(a.cols > 0, "an empty sum");
        raw(out.as_mut_ptr(), b.cols, (a, b), scale, Into::Overwrite, true);
        out.set_len(a.rows * b.cols);
    }
    out
}

/// A row-major matrix that several threads write at a time, each to places of its own.
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    borrowed: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the one method that touches the data leaves it to its caller that no place is used twice at a time.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// `data` as rows of `width`.
    pub(crate) fn new(data: &'a mut [f32], width: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), width, borrowed: std::marker::PhantomData }
    }

    /// `(+)= scale * a b` at the place whose first element is `(row, column)`, by the calling thread.
    ///
    /// # Safety
    /// No other thread may be using that place.
    pub(crate) unsafe fn gemm(&self, (row, column): (usize, usize), a: View<'_>, b: View<'_>, scale: f32, into: Into) {
        assert!(column + b.cols <= self.width && (row + a.rows) * self.width <= self.len, "outside of the matrix");
        // SAFETY: the place lies inside the data (above) and is the caller's alone.
        unsafe { raw(self.data.add(row * self.width + column), self.width, (a, b), scale, into, false) };
    }
}

/// # Safety
/// `out` must be good for writing (and reading, to accumulate) `a.rows` rows of `b.cols` numbers, `row_stride` apart,
/// that nobody else uses.
unsafe fn raw(out: *mut f32, row_stride: usize, (a, b): (View<'_>, View<'_>), scale: f32, into: Into, threaded: bool) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let parallelism = if threaded { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: both views were checked against their slices when made; `out` is the caller's promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            row_stride as isize,
            into == Into::Accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_transposes_and_accumulation() {
        // a = [[1 2 3] [4 5 6]] with rows 4 apart; b = [[1 0] [2 1] [0 3]].
        let a = [1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 9.0];
        let b = [1.0, 0.0, 2.0, 1.0, 0.0, 3.0];
        let mut out = vec![f32::NAN; 4];
        gemm(&mut out, View::new(&a, 2, 3, 4), View::new(&b, 3, 2, 2), 1.0, Into::Overwrite, false);
        assert_eq!(out, [5.0, 11.0, 14.0, 23.0]);
        let bt = [1.0, 2.0, 0.0, 0.0, 1.0, 3.0];
        gemm(&mut out, View::new(&a, 2, 3, 4), View::new(&bt, 2, 3, 3).t(), 2.0, Into::Accumulate, true);
        assert_eq!(out, [15.0, 33.0, 42.0, 69.0]);
    }

    #[test]
    #[should_panic(expected = "matrix view reaches")]
    fn a_view_cannot_leave_its_slice() {
        View::new(&[0.0; 6], 2, 3, 4);
    }
}
