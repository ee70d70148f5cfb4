//! Attention of a block (`trainer/candle/attention.rs` and `Block::attend`).

use crate::cost::candle::product::Product;
use crate::cost::candle::step_ledger::{ATTENTION, F32, SCORES, STATE, StepLedger};
use crate::cost::candle::tape::AttentionTape;
use crate::cost::timeline::Live;
use crate::spec::model::tensors::Role;

impl StepLedger<'_> {
    pub(super) fn qkv(&mut self, normed: Live, rows: u64) -> AttentionTape {
        let (q, k, v);
        if self.find(Role::Qkv).is_some() {
            let all = self.linear(Role::Qkv, rows, ATTENTION);
            q = self.t.alloc(ATTENTION, rows * self.q());
            k = self.t.alloc(ATTENTION, rows * self.kv());
            v = self.t.alloc(ATTENTION, rows * self.kv());
            self.t.free(all);
        } else {
            q = self.linear(Role::Q, rows, ATTENTION);
            k = self.linear(Role::K, rows, ATTENTION);
            v = self.linear(Role::V, rows, ATTENTION);
        }
        let raw = self
            .spec
            .attention
            .qk_norm
            .then(|| [self.t.alloc(ATTENTION, rows * self.q()), self.t.alloc(ATTENTION, rows * self.kv())]);
        let out = self.t.alloc(ATTENTION, rows * self.q());
        let scores = self.scores(1);
        self.t.brief(SCORES, scores);
        AttentionTape { normed, raw, q, k, v, out }
    }

    /// The scores that the threads work on at one time, the largest chunks first. Forward hands out chunks, which
    /// hold one buffer of scores; backward hands out key heads, every one of which comes to its example's largest
    /// chunk, and holds `buffers`.
    fn scores(&self, buffers: u64) -> u64 {
        let attention = &self.spec.attention;
        let window = attention.windows.iter().map(|w| w.unwrap_or(usize::MAX)).max().unwrap_or(usize::MAX);
        let (chunk, head_dim) = (self.run.execution.attention_chunk, attention.head_dim as u64);
        let chunks = |rows: usize| {
            (0..rows).step_by(chunk).map(move |start| {
                let end = (start + chunk).min(rows);
                let (queries, keys) = ((end - start) as u64, (end - (start + 1).saturating_sub(window)) as u64);
                (queries * keys * F32, Product::with_transposed(queries, head_dim, keys).packed(&self.micro.processor))
            })
        };
        let examples = self.micro.examples.iter();
        let mut tasks: Vec<u64> = if buffers == 1 {
            examples.flat_map(|&rows| chunks(rows)).map(|(scores, packed)| scores + packed).collect()
        } else {
            let heads = attention.num_key_value_heads;
            let highest = |rows| chunks(rows).map(|(scores, packed)| scores * buffers + packed).max().unwrap_or(0);
            examples.flat_map(|&rows| vec![highest(rows); heads]).collect()
        };
        tasks.sort_unstable_by(|a, b| b.cmp(a));
        tasks.iter().take(self.micro.threads).sum()
    }

    pub(super) fn attend(&mut self, rows: u64) -> (AttentionTape, Live) {
        let normed = self.t.alloc(ATTENTION, rows * self.h());
        let tape = self.qkv(normed, rows);
        let y = self.linear(Role::O, rows, STATE);
        if self.spec.post_norms {
            self.t.brief(STATE, rows * self.h());
        }
        (tape, y)
    }

    pub(super) fn attention_backward(&mut self, tape: AttentionTape, need_dx: bool) -> Option<Live> {
        let rows = self.micro.rows();
        let post = self.spec.post_norms.then(|| {
            let y = self.linear(Role::O, rows, ATTENTION);
            let g = self.t.alloc(ATTENTION, rows * self.h());
            self.t.free(y);
            g
        });
        let d_out = self.linear_back(Role::O, rows, true);
        let AttentionTape { normed, raw, q, k, v, out } = tape;
        post.into_iter().chain([out]).for_each(|l| self.t.free(l));
        let dq = self.t.alloc(ATTENTION, rows * self.q());
        let dk = self.t.alloc(ATTENTION, rows * self.kv());
        let dv = self.t.alloc(ATTENTION, rows * self.kv());
        let buffers = if self.spec.attention.softcap.is_some() { 3 } else { 2 };
        let scores = self.scores(buffers);
        self.t.brief(SCORES, scores);
        [q, k, v].into_iter().chain(d_out).for_each(|l| self.t.free(l));
        if self.spec.attention.qk_norm {
            self.t.brief(ATTENTION, rows * self.q());
        }
        raw.into_iter().flatten().for_each(|l| self.t.free(l));
        let d = self.qkv_backward([dq, dk, dv], need_dx);
        let dx = need_dx.then(|| self.t.alloc(STATE, rows * self.h()));
        [normed].into_iter().chain(d).for_each(|l| self.t.free(l));
        dx
    }

    pub(super) fn qkv_backward(&mut self, [dq, dk, dv]: [Live; 3], need_dx: bool) -> Option<Live> {
        let rows = self.micro.rows();
        if self.find(Role::Qkv).is_some() {
            let all = self.t.alloc(ATTENTION, rows * (self.q() + 2 * self.kv()));
            [dq, dk, dv].into_iter().for_each(|l| self.t.free(l));
            let d = self.linear_back(Role::Qkv, rows, need_dx);
            self.t.free(all);
            return d;
        }
        let mut sum: Option<Live> = None;
        for (role, d) in [(Role::Q, dq), (Role::K, dk), (Role::V, dv)] {
            let part = self.linear_back(role, rows, need_dx);
            match sum {
                Some(_) => part.into_iter().for_each(|l| self.t.free(l)),
                None => sum = part,
            }
            self.t.free(d);
        }
        sum
    }
}
