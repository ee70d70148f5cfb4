#!/usr/bin/env python3
"""Counts what is alive in real mlx-lm training steps on a CPU, for src/cost/mlx/cpu.csv: `trace.py`.

Each trace is two steps of mlx-lm's own `train` on a small model whose sizes are chosen so that every kind of array has
one of its own; allocations.c writes down each allocation in the order that mlx made it. For every moment of the second
step that gives the number of bytes alive per element of each kind, and gradients and new states of the adapters in
units of one block's adapters. From it is taken what all blocks together keep (`kept` below and in src/cost/mlx/cpu.rs),
so that nothing in the file depends on a shape; of the moments those stay that are the tallest for some shape, to within
0.3 %. Two depths are traced, because mlx allocates ahead of the thread that computes in groups of ten tasks, and where
a group ends depends on how many came before; and a third, of two blocks, where the moments of a third never come.

Needs what measure.py needs, a C compiler and `nm`; Linux. Takes half an hour on two cores. The bundled, slow BLAS is right
here: steps of real models are slow against the walk through the graph, so mlx is always as far ahead as it may be.
"""
import csv
import ctypes
import itertools
import random
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np

import measure

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "src/cost/mlx/cpu.csv"
KINDS = ["hidden", "mlp", "q", "kv", "scores", "logits", "low_rank"]
DEPTHS = [2, 4, 6]
SHAPE = dict(hidden_size=320, intermediate_size=704, num_attention_heads=6, num_key_value_heads=2, head_dim=48,
             vocab_size=1009, rank=11, tokens=160)
# Quantised matrices need sizes in groups of 64, and are slow.
QUANTISED = dict(hidden_size=256, intermediate_size=448, num_attention_heads=3, num_key_value_heads=1, head_dim=64,
                 vocab_size=449, rank=10, tokens=96)


class Event(ctypes.Structure):
    _fields_ = [("buffer", ctypes.c_size_t), ("bytes", ctypes.c_int64)]


def watcher():
    """allocations.c at work on this process's allocator."""
    so = Path(tempfile.mkdtemp()) / "allocations.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", so, HERE / "allocations.c", "-lpthread"], check=True)
    lib = ctypes.CDLL(str(so))
    lib.watch.argtypes, lib.events_so_far.restype = [ctypes.c_size_t], ctypes.c_size_t
    lib.all.restype = ctypes.POINTER(Event)
    mx.get_peak_memory()  # makes the allocator
    line = next(line for line in open("/proc/self/maps") if "libmlx.so" in line)
    base, file = int(line.split("-")[0], 16), line.split()[-1]
    symbols = subprocess.run(["nm", "-C", file], capture_output=True, text=True, check=True).stdout.splitlines()
    name = "mlx::core::allocator::common_allocator()::allocator_"
    lib.watch(base + next(int(s.split()[0], 16) for s in symbols if s.endswith(name) and "guard" not in s))
    return lib


def sizes(d):
    """Elements of each kind of array, and of the arrays of the adapters."""
    rows = d["batch_size"] * d["tokens"]
    q, kv = d["num_attention_heads"] * d["head_dim"], d["num_key_value_heads"] * d["head_dim"]
    wide = [d["hidden_size"], d["intermediate_size"], q, kv]
    elements = [rows * n for n in wide]
    elements += [rows * d["tokens"] * d["num_attention_heads"], rows * d["vocab_size"], rows * d["rank"]]
    return elements, {n * d["rank"] for n in wide}


def kept(weights, targets, model_type):
    """Bytes per element that a trained block keeps without checkpoints: `Sizes::kept` in src/cost/mlx/graph.rs."""
    at = 4 if weights == "f32" else 2
    norm = 4 if model_type == "qwen3" else 0
    if targets == "all":
        return [16, 4 * at + 4, at + 4 + norm, 2 * at + norm, at, 0, 28]
    return [12, 4 * at, at + norm, 2 * at + norm, at, 0, 8]


def moments(lib, d):
    """Bytes alive per element of each kind, and adapters' arrays in blocks, through the second step."""
    elements, adapters = sizes(d)
    # Rotary embeddings and the like have halves of some arrays; the kinds themselves go first.
    kind = {size * n: (k, size) for size in (1, 2, 4) for k, n in enumerate(elements)}
    block = 4 * trained(d) / d["num_hidden_layers"]
    marks, run, reset = [], mx.eval, mx.reset_peak_memory

    def watched(*arrays):
        before = lib.events_so_far()
        run(*arrays)
        marks.append((before, lib.events_so_far()))

    def begin():
        reset()
        lib.start()
        marks.clear()  # making the model was one too

    mx.eval, mx.reset_peak_memory = watched, begin
    try:
        measure.measure(d)
    finally:
        mx.eval, mx.reset_peak_memory = run, reset
    first, last = [m for m in marks if m[1] - m[0] > 200][1]
    alive, now, start, seen = {}, Counter(), Counter(), set()
    for i, event in enumerate(itertools.islice(iter_events(lib), last)):
        if i == first:
            start = now.copy()
        if event.bytes >= 0:
            bytes_, sign = event.bytes, 1
            alive[event.buffer] = bytes_
        elif event.buffer in alive:
            bytes_, sign = alive.pop(event.buffer), -1
        else:
            continue
        if bytes_ in kind:
            k, size = kind[bytes_]
            now[k] += sign * size
        elif bytes_ // 4 in adapters:
            now["adapters"] += sign * bytes_
        if i >= first:
            counts = tuple(now[k] - start[k] for k in range(len(KINDS)))
            seen.add(counts + (round((now["adapters"] - start["adapters"]) / block, 1),))
    return seen


def iter_events(lib):
    events = lib.all()
    return (events[i] for i in range(lib.events_so_far()))


def trained(d):
    """Numbers that learn."""
    h, m, r = d["hidden_size"], d["intermediate_size"], d["rank"]
    q, kv = d["num_attention_heads"] * d["head_dim"], d["num_key_value_heads"] * d["head_dim"]
    pairs = [(h, q), (h, kv)] if d["targets"] == "q_v" else [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)]
    return d["num_hidden_layers"] * r * sum(a + b for a, b in pairs)


def tallest(seen, base):
    """Of these moments a few, one of which is the tallest of each kind, or within 0.3 % of it, for any shape."""
    r, chosen = random.Random(0), []
    vectors = np.array(sorted(seen))
    loss = vectors[:, KINDS.index("logits")] > 0
    for phase, of in (("loss", loss), ("backward", ~loss)):
        part = vectors[of]
        some = [[1, r.uniform(1, 8), 2 ** r.uniform(-1, 2), 2 ** r.uniform(-4, 1), 2 ** r.uniform(-5, 6),
                 2 ** r.uniform(-2, 8), 2 ** r.uniform(-9, -3), 2 ** r.uniform(-10, 3)] for _ in range(4000)]
        # Beside what four blocks keep.
        heights = part @ np.array(some).T + 4 * np.array(base + [0]) @ np.array(some).T
        good = heights >= 0.997 * heights.max(axis=0)
        while good.any():
            best = good.sum(axis=1).argmax()
            chosen.append((phase, tuple(part[best])))
            good = good[:, ~good[best]]
    return chosen


def variants():
    return itertools.product(["f32", "bf16", "4bit"], ["all", "q_v"], [True, False], ["llama", "qwen3"])


def shape(weights, targets, again, model_type, depth):
    return dict(row=1, split="", model_type=model_type, num_hidden_layers=depth, tie_word_embeddings=True,
                weights=weights, batch_size=1, max_seq_length=2048, targets=targets, num_layers=-1,
                grad_checkpoint=again, accumulation=1, validation=False, **(QUANTISED if weights == "4bit" else SHAPE))


def write(traces):
    """`traces`: by variant and depth, the moments seen."""
    with open(OUT, "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["weights", "targets", "checkpoint", "head_norms", "depth", "phase", *KINDS, "adapters"])
        for v in variants():
            weights, targets, again, model_type = v
            at = 4 if weights == "f32" else 2
            base = [at] + [0] * 6 if again else kept(weights, targets, model_type)
            for depth in DEPTHS:
                seen = {tuple(c - depth * b for c, b in zip(m, base + [0])) for m in traces[(*v, depth)]}
                for phase, counts in tallest(seen, base):
                    numbers = [*(int(c) for c in counts[:-1]), f"{counts[-1]:g}"]
                    writer.writerow([weights, targets, int(again), int(model_type == "qwen3"), depth, phase, *numbers])


def main():
    mx.set_default_device(mx.cpu)
    lib = watcher()
    write({(*v, depth): moments(lib, shape(*v, depth)) for v in variants() for depth in DEPTHS})


if __name__ == "__main__":
    main()
