//! The constants of Adam (Kingma and Ba 2015, arXiv:1412.6980), as torch.optim.AdamW has them.

/// AdamW's decay of the mean of the gradients, and of their squares.
pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.999;
/// Constant added to the root of the second moment.
pub(crate) const EPS: f64 = 1e-8;
