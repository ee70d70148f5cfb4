//! Products with a frozen weight that is not f32: its rows are made f32 a few at a time.

use candle_core::{Result, Tensor};

use crate::checkpoint::stored::Stored;
use crate::ops::Backend;
use crate::spec::run::engine::{metal_panel_rows, panel_rows};

/// Columns `first..` of a zero matrix of `columns`, filled with `a b` panel by panel; see [`Panels`].
pub(crate) fn product_by_panels(backend: Backend, a: &Tensor, panels: Panels<'_>) -> Result<Tensor> {
    if let Backend::Metal(_) = backend
        && panels.rows >= panels.columns
    {
        // One panel is the whole, and its product the output.
        let mut panels = panels;
        let Some(panel) = panels.next() else { candle_core::bail!("a matrix without rows") };
        return backend.product(a, &panel?.1.t()?, 1.0);
    }
    let out = backend.empty((a.dim(0)?, panels.columns), a.device())?;
    for panel in panels {
        let (first, b) = panel?;
        backend.product_into_columns(&out, first, a, &b.t()?)?;
    }
    Ok(out)
}

/// `a b` with the columns of `a` taken panel by panel; see [`Panels`].
pub(crate) fn sum_over_panels(backend: Backend, a: &Tensor, panels: Panels<'_>) -> Result<Tensor> {
    if let Backend::Metal(_) = backend {
        return sum_by_products(backend, a, panels);
    }
    let mut out = backend.zeros((a.dim(0)?, panels.width), a.device())?;
    for panel in panels {
        let (first, b) = panel?;
        out = backend.add_product(out, &a.narrow(1, first, b.dim(0)?)?, &b, 1.0)?;
    }
    Ok(out)
}

/// The same where products want their columns in memory of their own, and the first product can be the sum's memory.
fn sum_by_products(backend: Backend, a: &Tensor, panels: Panels<'_>) -> Result<Tensor> {
    let (mut sum, columns) = (None, panels.columns);
    for panel in panels {
        let (first, b) = panel?;
        let rows = b.dim(0)?;
        let part = if rows == columns { a.clone() } else { backend.columns(a, first, rows)? };
        sum = Some(match sum {
            Some(sum) => backend.add_product(sum, &part, &b, 1.0)?,
            None => backend.product(&part, &b, 1.0)?,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a matrix without rows".into()))
}

/// The rows of a frozen `[columns, width]` matrix in f32, a few at a time: the first row's index, and the rows.
pub(crate) struct Panels<'a> {
    /// What makes them f32.
    pub backend: Backend,
    /// As stored.
    pub weight: &'a Stored,
    /// Rows of the weight, which are columns of the product.
    pub columns: usize,
    /// Columns of the weight.
    pub width: usize,
    /// Rows of a panel.
    pub rows: usize,
    next: usize,
}

impl<'a> Panels<'a> {
    /// Over a matrix.
    pub(crate) fn new(backend: Backend, weight: &'a Stored) -> Result<Self> {
        let (columns, width) = weight.dims()?;
        let rows = match backend {
            Backend::Metal(_) => metal_panel_rows(width),
            _ => panel_rows(width),
        };
        Ok(Self { backend, weight, columns, width, rows, next: 0 })
    }
}

impl Iterator for Panels<'_> {
    type Item = Result<(usize, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.next;
        let rows = self.rows.min(self.columns - first);
        self.next += rows;
        let panel = || Ok((first, self.weight.panel(self.backend, first, rows)?));
        (rows > 0).then(panel)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::testing::{self, worst};

    fn random(rows: usize, width: usize, seed: u64) -> Tensor {
        testing::random((rows, width), 2.0, seed)
    }

    fn close(a: &Tensor, b: &Tensor) {
        let worst = worst(a, b);
        assert!(worst <= 1e-5, "{worst}");
    }

    #[test]
    fn products_by_panels_equal_the_whole_product() {
        let (x, w, g) = (random(5, 7, 1), random(11, 7, 2), random(5, 11, 3));
        let half = w.to_dtype(DType::BF16).unwrap();
        let rounded = half.to_dtype(DType::F32).unwrap();
        let half = Stored::Dense(half);
        for rows in [1, 3, 11, 40] {
            let panels = || Panels { rows, ..Panels::new(Backend::Fused, &half).unwrap() };
            let y = product_by_panels(Backend::Fused, &x, panels()).unwrap();
            close(&y, &x.matmul(&rounded.t().unwrap()).unwrap());
            let dx = sum_over_panels(Backend::Fused, &g, panels()).unwrap();
            close(&dx, &g.matmul(&rounded).unwrap());
        }
    }
}
