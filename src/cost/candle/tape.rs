//! What a block's forward pass keeps for its backward pass, on every device.

use crate::cost::candle::step_ledger::StepLedger;
use crate::cost::timeline::Live;

/// Tensors that a block's forward pass keeps for its backward pass.
pub(super) struct Tape {
    pub x: Live,
    pub attention: AttentionTape,
    pub mid: Live,
    pub mlp: Option<[Option<Live>; 2]>,
}

/// Tensors that attention's forward pass keeps for its backward pass.
pub(super) struct AttentionTape {
    pub normed: Live,
    pub raw: Option<[Live; 2]>,
    pub q: Live,
    pub k: Live,
    pub v: Live,
    pub out: Live,
}

impl StepLedger<'_> {
    pub(super) fn free_tape(&mut self, tape: AttentionTape) {
        let AttentionTape { normed, raw, q, k, v, out } = tape;
        [normed, q, k, v, out].into_iter().chain(raw.into_iter().flatten()).for_each(|l| self.t.free(l));
    }
}
