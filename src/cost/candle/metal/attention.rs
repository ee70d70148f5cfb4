//! Attention of a block.

use crate::cost::candle::metal::step::Step;
use crate::cost::candle::step_ledger::{ATTENTION, F32, SCORES, STATE};
use crate::cost::candle::tape::AttentionTape;
use crate::cost::timeline::Live;
use crate::spec::model::tensors::Role;

impl Step<'_> {
    /// Numbers of queries, and of keys that they see, of each chunk of an example.
    fn chunks(&self, rows: usize) -> Vec<(u64, u64)> {
        let window = self.spec.attention.windows.get(self.layer).copied().flatten().unwrap_or(usize::MAX);
        let step = self.run.execution.attention_chunk;
        let chunk = |start: usize| {
            let end = (start + step).min(rows);
            ((end - start) as u64, (end - (start + 1).saturating_sub(window)) as u64)
        };
        (0..rows).step_by(step).map(chunk).collect()
    }

    fn qkv(&mut self, normed: Live, rows: u64) -> AttentionTape {
        let (q, k, v);
        let (q_bytes, kv_bytes) = (rows * self.q(), rows * self.kv());
        if self.find(Role::Qkv).is_some() {
            let all = self.linear(Role::Qkv, rows, ATTENTION);
            q = self.t.alloc(ATTENTION, q_bytes);
            k = self.t.alloc(ATTENTION, kv_bytes);
            v = self.t.alloc(ATTENTION, kv_bytes);
            self.free([all]);
        } else {
            q = self.linear(Role::Q, rows, ATTENTION);
            k = self.linear(Role::K, rows, ATTENTION);
            v = self.linear(Role::V, rows, ATTENTION);
        }
        let normed_heads = self.spec.attention.qk_norm;
        let raw = normed_heads.then(|| [self.t.alloc(ATTENTION, q_bytes), self.t.alloc(ATTENTION, kv_bytes)]);
        let out = self.t.alloc(ATTENTION, q_bytes);
        self.scores_forward();
        AttentionTape { normed, raw, q, k, v, out }
    }

    fn scores_forward(&mut self) {
        let (d, heads, kv) = self.heads();
        let capped = self.spec.attention.softcap.is_some();
        for rows in self.micro.examples.clone() {
            let keys = kv * rows as u64 * d * F32;
            let both = [self.t.alloc(ATTENTION, keys), self.t.alloc(ATTENTION, keys)];
            for (c, n) in self.chunks(rows) {
                let qc = self.t.alloc(SCORES, heads * c * d * F32);
                let p = self.t.alloc(SCORES, heads * c * n * F32);
                let slope = capped.then(|| self.t.alloc(SCORES, heads * c * n * F32));
                self.free(slope.into_iter().chain([qc]));
                let o = self.t.alloc(SCORES, heads * c * d * F32);
                self.free([p, o]);
            }
            self.free(both);
        }
    }

    /// Width of a head, and the numbers of query heads and of key heads.
    fn heads(&self) -> (u64, u64, u64) {
        let a = &self.spec.attention;
        (a.head_dim as u64, a.num_attention_heads as u64, a.num_key_value_heads as u64)
    }

    pub(super) fn attend(&mut self, rows: u64) -> (AttentionTape, Live) {
        let wide = rows * self.h();
        let normed = self.t.alloc(ATTENTION, wide);
        let tape = self.qkv(normed, rows);
        let mut y = self.linear(Role::O, rows, STATE);
        if self.spec.post_norms {
            let normed = self.t.alloc(STATE, wide);
            self.free([std::mem::replace(&mut y, normed)]);
        }
        (tape, y)
    }

    pub(super) fn attention_backward(&mut self, tape: AttentionTape, need_dx: bool) -> Option<Live> {
        let rows = self.micro.rows();
        let (wide, q_bytes, kv_bytes) = (rows * self.h(), rows * self.q(), rows * self.kv());
        let post = self.spec.post_norms.then(|| {
            let y = self.linear(Role::O, rows, ATTENTION);
            let g = self.t.alloc(ATTENTION, wide);
            self.free([y]);
            g
        });
        let d_out = self.linear_back(Role::O, rows, true);
        let AttentionTape { normed, raw, q, k, v, out } = tape;
        self.free(post.into_iter().chain([out]));
        let mut dq = self.t.alloc(ATTENTION, q_bytes);
        let mut dk = self.t.alloc(ATTENTION, kv_bytes);
        let dv = self.t.alloc(ATTENTION, kv_bytes);
        self.scores_backward();
        self.free([q, k, v].into_iter().chain(d_out));
        if self.spec.attention.qk_norm {
            let new = self.t.alloc(ATTENTION, q_bytes);
            self.free([std::mem::replace(&mut dq, new)]);
            let new = self.t.alloc(ATTENTION, kv_bytes);
            self.free([std::mem::replace(&mut dk, new)]);
        }
        self.free(raw.into_iter().flatten());
        let d = self.qkv_backward([dq, dk, dv], need_dx);
        let dx = need_dx.then(|| self.t.alloc(STATE, wide));
        self.free([normed].into_iter().chain(d));
        dx
    }

    fn scores_backward(&mut self) {
        let (d, heads, kv) = self.heads();
        let capped = self.spec.attention.softcap.is_some();
        for rows in self.micro.examples.clone() {
            let keys = kv * rows as u64 * d * F32;
            let both = [self.t.alloc(ATTENTION, keys), self.t.alloc(ATTENTION, keys)];
            let sums = [self.t.alloc(ATTENTION, keys), self.t.alloc(ATTENTION, keys)];
            for (c, n) in self.chunks(rows) {
                let (queries, scores, part) = (heads * c * d * F32, heads * c * n * F32, kv * n * d * F32);
                let qc = self.t.alloc(SCORES, queries);
                let p = self.t.alloc(SCORES, scores);
                let slope = capped.then(|| self.t.alloc(SCORES, scores));
                let gc = self.t.alloc(SCORES, queries);
                let ds = self.t.alloc(SCORES, scores);
                let dv = self.t.alloc(SCORES, part);
                self.free(slope.into_iter().chain([gc, p]));
                let dk = self.t.alloc(SCORES, part);
                self.free([qc]);
                let dq = self.t.alloc(SCORES, queries);
                self.free([ds, dq, dk, dv]);
            }
            self.free(both);
            self.free(sums);
        }
    }

    fn qkv_backward(&mut self, [dq, dk, dv]: [Live; 3], need_dx: bool) -> Option<Live> {
        let rows = self.micro.rows();
        if self.find(Role::Qkv).is_some() {
            let bytes = rows * (self.q() + 2 * self.kv());
            let all = self.t.alloc(ATTENTION, bytes);
            self.free([dq, dk, dv]);
            let d = self.linear_back(Role::Qkv, rows, need_dx);
            self.free([all]);
            return d;
        }
        let mut sum: Option<Live> = None;
        for (role, d) in [(Role::Q, dq), (Role::K, dk), (Role::V, dv)] {
            let part = self.linear_back(role, rows, need_dx);
            match sum {
                Some(_) => self.free(part),
                None => sum = part,
            }
            self.free([d]);
        }
        sum
    }
}
