//! The step of Metal's ledger while it is made.

use std::ops::{Deref, DerefMut};

use crate::cost::candle::step_ledger::StepLedger;
use crate::cost::timeline::Live;

/// A [`StepLedger`] whose step is Metal's, at one of its blocks.
pub(super) struct Step<'a> {
    /// The ledger so far.
    pub ledger: StepLedger<'a>,
    /// Index of the block.
    pub layer: usize,
}

impl<'a> Deref for Step<'a> {
    type Target = StepLedger<'a>;

    fn deref(&self) -> &Self::Target {
        &self.ledger
    }
}

impl DerefMut for Step<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.ledger
    }
}

impl Step<'_> {
    /// Gives memory back.
    pub(super) fn free(&mut self, lives: impl IntoIterator<Item = Live>) {
        lives.into_iter().for_each(|l| self.t.free(l));
    }
}
