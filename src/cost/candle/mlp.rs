//! The MLP of a block, a chunk of rows at a time.

use crate::cost::candle::step_ledger::{MLP, STATE, StepLedger};
use crate::cost::timeline::Live;
use crate::spec::model::tensors::Role;

impl StepLedger<'_> {
    pub(super) fn spans(&self) -> Vec<u64> {
        let (all, step) = (self.micro.rows(), self.run.execution.mlp_chunk as u64);
        (0..all.div_ceil(step)).map(|i| step.min(all - i * step)).collect()
    }

    /// The MLP up to its activation: (gate, or up where it is not gated; up; hidden).
    pub(super) fn mlp_hidden(&mut self, rows: u64) -> (Live, Option<Live>, Live) {
        let m = self.spec.mlp;
        let (gate, up) = if !m.gated {
            (self.linear(Role::Up, rows, MLP), None)
        } else if m.fused {
            let both = self.linear(Role::GateUp, rows, MLP);
            let gate = self.t.alloc(MLP, rows * self.f());
            let up = self.t.alloc(MLP, rows * self.f());
            self.t.free(both);
            (gate, Some(up))
        } else {
            (self.linear(Role::Gate, rows, MLP), Some(self.linear(Role::Up, rows, MLP)))
        };
        let hidden = self.t.alloc(MLP, rows * self.f());
        (gate, up, hidden)
    }

    pub(super) fn mlp_out(&mut self, rows: u64) -> Live {
        let y = self.linear(Role::Down, rows, MLP);
        if self.spec.post_norms {
            self.t.brief(MLP, rows * self.h());
        }
        y
    }

    pub(super) fn mlp_forward(&mut self, mid: Live) -> Live {
        let out = self.t.alloc(STATE, self.micro.rows() * self.h());
        for rows in self.spans() {
            let n = self.t.alloc(MLP, rows * self.h());
            let (gate, up, hidden) = self.mlp_hidden(rows);
            [n, gate].into_iter().chain(up).for_each(|l| self.t.free(l));
            let y = self.mlp_out(rows);
            [hidden, y].into_iter().for_each(|l| self.t.free(l));
        }
        self.t.free(mid);
        out
    }

    pub(super) fn mlp_backward(&mut self, kept: Option<[Option<Live>; 2]>, g: Live) -> Live {
        let out = self.t.alloc(STATE, self.micro.rows() * self.h());
        for rows in self.spans() {
            let n = self.t.alloc(MLP, rows * self.h());
            let made = if kept.is_some() {
                (None, None, self.t.alloc(MLP, rows * self.f()))
            } else {
                let (gate, up, hidden) = self.mlp_hidden(rows);
                (Some(gate), up, hidden)
            };
            self.mlp_chunk_backward(made, rows);
            self.t.brief(MLP, 2 * rows * self.h());
            self.t.free(n);
        }
        kept.into_iter().flatten().flatten().chain([g]).for_each(|l| self.t.free(l));
        out
    }

    pub(super) fn mlp_chunk_backward(&mut self, (gate, up, hidden): (Option<Live>, Option<Live>, Live), rows: u64) {
        let post = self.spec.post_norms.then(|| {
            let y = self.linear(Role::Down, rows, MLP);
            let g = self.t.alloc(MLP, rows * self.h());
            self.t.free(y);
            g
        });
        let mut d_hidden = self.linear_back(Role::Down, rows, true);
        post.into_iter().chain([hidden]).for_each(|l| self.t.free(l));
        let m = self.spec.mlp;
        // The gradient of up takes the place of up, and where there is no gate that of d_hidden.
        let (dgate, dup) = match m.gated {
            true => (Some(self.t.alloc(MLP, rows * self.f())), up),
            false => (d_hidden.take(), up),
        };
        gate.into_iter().chain(d_hidden).for_each(|l| self.t.free(l));
        if m.fused && m.gated {
            let both = self.t.alloc(MLP, 2 * rows * self.f());
            dgate.into_iter().chain(dup).for_each(|l| self.t.free(l));
            let d = self.linear_back(Role::GateUp, rows, true);
            [both].into_iter().chain(d).for_each(|l| self.t.free(l));
            return;
        }
        let first = self.linear_back(if m.gated { Role::Gate } else { Role::Up }, rows, true);
        dgate.into_iter().for_each(|l| self.t.free(l));
        if m.gated {
            let second = self.linear_back(Role::Up, rows, true);
            second.into_iter().for_each(|l| self.t.free(l));
        }
        dup.into_iter().chain(first).for_each(|l| self.t.free(l));
    }
}
