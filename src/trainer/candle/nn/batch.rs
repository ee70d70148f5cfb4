//! A micro-batch as the network takes it.

use candle_core::Device;

use crate::data::batches::MicroBatch;
use crate::error::Result;
use crate::ops::{Backend, Index};
use crate::trainer::candle::nn::tape::Rows;

/// A micro-batch on the device: its numbers go there in one piece.
pub(super) struct Batch {
    pub tokens: Index,
    pub rows: Rows,
    /// Rows of the targets, and the tokens that should come there.
    pub targets: (Index, Index),
}

impl Batch {
    pub(super) fn new(batch: &MicroBatch, dropout: Option<(u64, u64)>, place: (&Device, Backend)) -> Result<Self> {
        let (n, t) = (batch.tokens.len(), batch.targets.len());
        let positions = batch.examples.iter().flat_map(|e| 0..e.len() as u32);
        let targets = batch.targets.iter().map(|t| t.0).chain(batch.targets.iter().map(|t| t.1));
        let all = Index::new(batch.tokens.iter().copied().chain(positions).chain(targets).collect(), place)?;
        Ok(Self {
            tokens: all.part(0..n)?,
            rows: Rows { examples: batch.examples.clone(), positions: all.part(n..2 * n)?, dropout },
            targets: (all.part(2 * n..2 * n + t)?, all.part(2 * n + t..2 * (n + t))?),
        })
    }

    /// Parts of so many targets at most, each as the rows and the tokens.
    pub(super) fn target_chunks(&self, most: usize) -> impl Iterator<Item = Result<(Index, Index)>> + '_ {
        let all = self.targets.0.numbers().len();
        (0..all).step_by(most).map(move |first| {
            let part = first..(first + most).min(all);
            Ok((self.targets.0.part(part.clone())?, self.targets.1.part(part)?))
        })
    }
}
