#!/usr/bin/env python3
"""Peak memory of real mlx-lm training steps on a CPU: `measure.py [ROWS [FIRST]]`; appends to steps.csv beside it.

Each row is one call of mlx-lm's own `train` (its batches, padding, checkpointing, compiled step, Adam) on a model with
random weights, and `mx.get_peak_memory()` at its end, counted from after the model was built. The shapes are drawn
from a seeded generator, so row n is the same whenever it is run; rows that are in the file are skipped. Of the first
105, even rows were looked at while the model of src/cost was written (`develop`) and odd rows were kept aside
(`held_out`). All later ones were measured after it was written (`blind`). From row 200 on there is dropout.

Needs Python 3.10 or later and: mlx[cpu]==0.32.4 mlx-lm==0.32.2. The bundled BLAS is slow and that does not matter
here; benches/peers/blas.c shows how to bring a fast one.
"""
import csv
import gc
import importlib
import importlib.metadata
import os
import random
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers

OUT = Path(__file__).resolve().parent / "steps.csv"
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
ALL = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
       "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
STEPS = 2
FIRST_BLIND = 105
FIRST_WITH_DROPOUT = 200
GROUP = 64


def design(n):
    """Row n: a shape in which any of weights, logits, scores and MLP may be the largest thing."""
    r = random.Random(f"mlx-lm-cpu {n}")
    while True:
        d = drawn(r)
        tokens, hidden = d["batch_size"] * d["tokens"], d["hidden_size"]
        # mlx multiplies at very different rates on a CPU; none of these decides what is the tallest.
        work = {"f32": 1.0, "bf16": 0.4}.get(d["weights"], 0.05)
        kept_small = (
            tokens * d["num_hidden_layers"] * hidden * d["intermediate_size"] < 8e8 * work
            and tokens * d["vocab_size"] * hidden < 4e9 * work
            and tokens * d["tokens"] * d["num_attention_heads"] * d["num_hidden_layers"] < 4e7
        )
        # qwen2 has no head_dim of its own: heads must divide its hidden size into even parts.
        if kept_small and (d["model_type"] != "qwen2" or d["hidden_size"] % (2 * d["num_attention_heads"]) == 0):
            break
    if d["model_type"] == "qwen2":
        d["head_dim"] = d["hidden_size"] // d["num_attention_heads"]
    split = "blind" if n >= FIRST_BLIND else "held_out" if n % 2 else "develop"
    if n >= FIRST_WITH_DROPOUT:
        split = "dropout"
    return {"row": n, "split": split} | d | {"dropout": 0.05 if n >= FIRST_WITH_DROPOUT else 0.0}


def drawn(r):
    kv = r.choice([1, 2, 4])
    hidden = 64 * r.randint(2, 8)
    layers = r.randint(2, 12)
    return {
        "model_type": r.choice(["llama", "llama", "qwen2", "qwen3"]),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 64 * r.randint(hidden // 64, 4 * hidden // 64),
        "num_attention_heads": kv * r.choice([1, 2, 3, 4]),
        "num_key_value_heads": kv,
        "head_dim": r.choice([32, 48, 64]),
        "vocab_size": r.choice([1003, 4001, 16001, 32003, 50021]),
        "tie_word_embeddings": r.random() < 0.5,
        "weights": r.choice(["f32", "f32", "bf16", "bf16", "4bit", "8bit"]),
        "batch_size": r.choice([1, 2, 2, 4]),
        "tokens": r.choice([r.randint(20, 120), r.randint(100, 400), r.randint(300, 600)]),
        "max_seq_length": r.choice([2048, 2048, 512, 128]),
        "rank": r.choice([4, 8, 16, 32]),
        "targets": r.choice(["all", "all", "q_v"]),
        "num_layers": r.choice([-1, -1, max(1, layers // 2)]),
        "grad_checkpoint": r.random() < 0.5,
        "accumulation": r.choice([1, 1, 1, 2]),
        "validation": r.random() < 0.3,
    }


def build(d):
    module = importlib.import_module(f"mlx_lm.models.{d['model_type']}")
    keys = ["model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings"]
    config = {k: d[k] for k in keys} | {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096}
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.float32 if d["weights"] == "f32" else mx.bfloat16)
    if d["weights"].endswith("bit"):
        nn.quantize(model, group_size=GROUP, bits=int(d["weights"][0]))
    model.freeze()
    keys = {} if d["targets"] == "all" else {"keys": set(ATTENTION)}
    linear_to_lora_layers(model, d["num_layers"], {"rank": d["rank"], "scale": 2.0, "dropout": d["dropout"]} | keys)
    mx.eval(model.parameters())
    return model


def measure(d):
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    model = build(d)
    r = random.Random(d["row"])
    # The longest row decides the width of the batch.
    lengths = [d["tokens"]] + [r.randint(d["tokens"] // 2 + 1, d["tokens"]) for _ in range(d["batch_size"] - 1)]
    rows = [([r.randrange(d["vocab_size"]) for _ in range(n)], 0) for n in lengths]
    d["model_bytes"] = mx.get_active_memory() - before
    d["trainable"] = sum(v.size for _, v in tree_flatten(model.trainable_parameters()))
    block, call = type(model.layers[0]), type(model.layers[0]).__call__
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(batch_size=d["batch_size"], iters=STEPS * d["accumulation"], val_batches=1,
                            steps_per_report=10**6, steps_per_save=10**9, max_seq_length=d["max_seq_length"],
                            adapter_file=f"{folder}/adapters.safetensors", grad_checkpoint=d["grad_checkpoint"],
                            grad_accumulation_steps=d["accumulation"])
        mx.clear_cache()
        mx.reset_peak_memory()
        train(model, optim.Adam(1e-5), rows, rows if d["validation"] else None, args=args)
    block.__call__ = call
    d["peak_bytes"] = mx.get_peak_memory() - before
    d["mlx"], d["mlx_lm"] = (importlib.metadata.version(p) for p in ("mlx", "mlx-lm"))


def main():
    mx.set_default_device(mx.cpu)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    done = {int(r["row"]) for r in csv.DictReader(open(OUT))} if OUT.exists() else set()
    for n in sorted(set(range(first, count)) - done):
        d = design(n)
        if d["weights"].endswith("bit") and d["num_attention_heads"] * d["head_dim"] % GROUP:
            print(f"\nrow {n}: mlx cannot quantise it", file=sys.stderr, flush=True)
            continue
        measure(d)
        with open(OUT, "a", newline="") as out:
            writer = csv.DictWriter(out, list(d), lineterminator="\n")
            if out.tell() == 0:
                writer.writeheader()
            writer.writerow(d)
            out.flush()
        print(f"\nrow {n}: {d['peak_bytes'] / 1e6:.1f} MB", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
