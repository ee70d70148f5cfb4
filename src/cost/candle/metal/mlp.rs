//! The MLP of a block, a chunk of rows at a time.

use crate::cost::candle::metal::step::Step;
use crate::cost::candle::step_ledger::{MLP, STATE};
use crate::cost::timeline::Live;
use crate::spec::model::tensors::Role;

impl Step<'_> {
    /// The MLP up to its activation: (gate, or up where it is not gated; up; hidden).
    pub(super) fn mlp_hidden(&mut self, rows: u64) -> (Live, Option<Live>, Live) {
        let (m, wide) = (self.spec.mlp, rows * self.f());
        let (gate, up) = if !m.gated {
            (self.linear(Role::Up, rows, MLP), None)
        } else if m.fused {
            let both = self.linear(Role::GateUp, rows, MLP);
            let parts = (self.t.alloc(MLP, wide), Some(self.t.alloc(MLP, wide)));
            self.free([both]);
            parts
        } else {
            (self.linear(Role::Gate, rows, MLP), Some(self.linear(Role::Up, rows, MLP)))
        };
        let hidden = self.t.alloc(MLP, wide);
        (gate, up, hidden)
    }

    pub(super) fn mlp_out(&mut self, rows: u64) -> Live {
        let mut y = self.linear(Role::Down, rows, MLP);
        if self.spec.post_norms {
            let bytes = rows * self.h();
            let normed = self.t.alloc(MLP, bytes);
            self.free([std::mem::replace(&mut y, normed)]);
        }
        y
    }

    pub(super) fn mlp_forward(&mut self, mid: Live, pooled: bool) -> Live {
        let bytes = if pooled { self.micro.rows() * self.h() } else { 0 };
        let out = self.t.alloc(STATE, bytes);
        for rows in self.spans() {
            let wide = rows * self.h();
            let n = self.t.alloc(MLP, wide);
            let (gate, up, hidden) = self.mlp_hidden(rows);
            self.free([n, gate].into_iter().chain(up));
            let y = self.mlp_out(rows);
            self.free([hidden, y]);
        }
        self.free([mid]);
        out
    }

    pub(super) fn mlp_backward(&mut self, kept: Option<[Option<Live>; 2]>, g: Live) -> Live {
        let bytes = self.micro.rows() * self.h();
        let out = self.t.alloc(STATE, bytes);
        for rows in self.spans() {
            let (wide, hidden_bytes) = (rows * self.h(), rows * self.f());
            let n = self.t.alloc(MLP, wide);
            let made = if kept.is_some() {
                (None, None, self.t.alloc(MLP, hidden_bytes))
            } else {
                let (gate, up, hidden) = self.mlp_hidden(rows);
                (Some(gate), up, hidden)
            };
            let dn = self.mlp_chunk_backward(made, rows);
            self.t.brief(MLP, wide);
            self.free(dn.into_iter().chain([n]));
        }
        self.free(kept.into_iter().flatten().flatten().chain([g]));
        out
    }

    /// Gradient with respect to the normed input of one chunk.
    fn mlp_chunk_backward(
        &mut self,
        (gate, up, hidden): (Option<Live>, Option<Live>, Live),
        rows: u64,
    ) -> Option<Live> {
        let post = self.spec.post_norms.then(|| {
            let y = self.linear(Role::Down, rows, MLP);
            let bytes = rows * self.h();
            let g = self.t.alloc(MLP, bytes);
            self.free([y]);
            g
        });
        // It becomes the gradient of the gate, or of up where there is none, in its place.
        let d_hidden = self.linear_back(Role::Down, rows, true);
        self.free(post.into_iter().chain([hidden]).chain(gate));
        let m = self.spec.mlp;
        if !m.gated {
            let dn = self.linear_back(Role::Up, rows, true);
            self.free(d_hidden);
            return dn;
        }
        if m.fused {
            let bytes = 2 * rows * self.f();
            let both = self.t.alloc(MLP, bytes);
            self.free(d_hidden.into_iter().chain(up));
            let dn = self.linear_back(Role::GateUp, rows, true);
            self.free([both]);
            return dn;
        }
        let dn = self.linear_back(Role::Gate, rows, true);
        self.free(d_hidden);
        let through_up = self.linear_back(Role::Up, rows, true);
        self.free(through_up.into_iter().chain(up));
        dn
    }
}
