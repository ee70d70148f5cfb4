#!/usr/bin/env python3
"""One optimizer step of whole models' shapes: predicted memory beside counted memory, and the time.

    cargo build --release && benches/shapes.py

makes a folder of random bf16 weights for each case in turn (3 to 6 GB on disk for the large ones, under --work, removed
again), runs `headroom launch` for one step on rows of full length, and prints a table; --out writes it as CSV. The
weights are noise, which memory and speed do not notice. Cases: what guides call safe on an 8 GB Mac (Qwen2.5-1.5B at
int8, rank 32, batch 4, 2048 tokens; StarCoder2-3B at int8, rank 32, batch 2, 1024 tokens), and one model over growing
lengths (SmolLM2-135M's shape, batch 1, 512 to 8192 tokens). Needs Python 3.10 or later and nothing else.
"""
import argparse
import csv
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = dict(model_type="llama", num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
               num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5,
               tie_word_embeddings=True)
QWEN = dict(model_type="qwen2", num_hidden_layers=28, hidden_size=1536, intermediate_size=8960, num_attention_heads=12,
            num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6,
            rope_theta=1e6, tie_word_embeddings=True)
STARCODER2 = dict(model_type="starcoder2", num_hidden_layers=30, hidden_size=3072, intermediate_size=12288,
                  num_attention_heads=24, num_key_value_heads=2, vocab_size=49152, max_position_embeddings=16384,
                  norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh", use_bias=True, sliding_window=4096,
                  tie_word_embeddings=True)
CASES = {f"length-{n}": (SMOLLM2, "f32", 8, 1, n) for n in (512, 1024, 2048, 4096, 8192)} | {
    "starcoder2-3b": (STARCODER2, "int8", 32, 2, 1024),
    "qwen2.5-1.5b": (QWEN, "int8", 32, 4, 2048),
}
RUN = """model = "./model"
data = "rows.jsonl"
[recipe]
max_seq_length = {length}
effective_batch_size = {batch}
steps = 1
lr_schedule = "constant"
warmup_steps = 0
[recipe.lora]
rank = {rank}
alpha = {alpha}
target_modules = "all-linear"
[execution]
batch_size = {batch}
grad_checkpoint = true
weights = "{weights}"
"""


def tensors(c):
    """Names and shapes, as transformers saves them."""
    h, f = c["hidden_size"], c["intermediate_size"]
    kv = h // c["num_attention_heads"] * c["num_key_value_heads"]
    star = c["model_type"] == "starcoder2"
    biased = {"starcoder2": "q k v o c_fc c_proj", "qwen2": "q k v"}.get(c["model_type"], "").split()
    yield "model.embed_tokens.weight", [c["vocab_size"], h]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
                  "self_attn.o_proj": (h, h)}
        shapes |= {"mlp.c_fc": (f, h), "mlp.c_proj": (h, f)} if star else {
            "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f)}
        for name, shape in shapes.items():
            yield f"{at}{name}.weight", list(shape)
            if name.split(".")[1].removesuffix("_proj") in biased or name.split(".")[1] in biased:
                yield f"{at}{name}.bias", [shape[0]]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from ((f"{at}{norm}.{part}", [h]) for part in (("weight", "bias") if star else ("weight",)))
    yield from ((f"model.norm.{part}", [h]) for part in (("weight", "bias") if star else ("weight",)))


def write_model(folder, config):
    """bf16 safetensors of small normal numbers, the same block over and over; norms are one, biases zero."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((ROOT / "assets/model/tokenizer.json").read_bytes())
    rng = random.Random(0)
    block = b"".join(struct.pack("<f", rng.gauss(0, 0.02))[2:] for _ in range(100_003))
    header, at = {}, 0
    for name, shape in tensors(config):
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name, entry in header.items():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            if name.endswith("norm.weight"):
                out.write(b"\x80\x3f" * (size // 2))
            elif name.endswith(".bias"):
                out.write(bytes(size))
            else:
                whole, rest = divmod(size, len(block))
                for _ in range(whole):
                    out.write(block)
                out.write(block[:rest])


def measure(headroom, name, work):
    config, weights, rank, batch, length = CASES[name]
    folder = Path(tempfile.mkdtemp(prefix=f"headroom-{name}-", dir=work))
    try:
        write_model(folder / "model", config)
        rng = random.Random(1)
        with open(folder / "rows.jsonl", "w") as rows:
            for _ in range(batch):
                print(json.dumps({"tokens": rng.choices(range(config["vocab_size"]), k=length)}), file=rows)
        run = RUN.format(length=length, batch=batch, rank=rank, alpha=2 * rank, weights=weights)
        (folder / "run.toml").write_text(run)
        command = [headroom, "launch", folder / "run.toml", "--out", folder / "run", "--results", folder / "results",
                   "--force", "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        step = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[0])
        predicted = json.loads((folder / "run/prediction.json").read_text())
    finally:
        shutil.rmtree(folder)
    return dict(case=name, weights=weights, rank=rank, batch=batch, length=length,
                predicted_peak_bytes=round(predicted["peak_memory_bytes"]["point"]),
                counted_peak_bytes=step["allocated_peak_bytes"],
                predicted_footprint_bytes=round(predicted["footprint_bytes"]["point"]),
                footprint_bytes=step["footprint_bytes"], step_time_s=round(step["step_time_s"], 2))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all if none is named")
    p.add_argument("--headroom", type=Path, default=ROOT / "target/release/headroom")
    p.add_argument("--work", type=Path, help="folder for the weights; the system's temporary one if not given")
    p.add_argument("--out", type=Path, help="CSV to write")
    args = p.parse_args()
    if unknown := set(args.cases) - set(CASES):
        p.error(f"no case named {', '.join(sorted(unknown))}")
    rows = []
    print(f"{'case':15} {'predicted':>10} {'counted':>10} {'error':>8} {'process':>10} {'step':>9}", flush=True)
    for name in args.cases or CASES:
        row = measure(args.headroom.resolve(), name, args.work)
        rows.append(row)
        error = row["predicted_peak_bytes"] / row["counted_peak_bytes"] - 1
        print(f"{name:15} {row['predicted_peak_bytes'] / 1e9:7.3f} GB {row['counted_peak_bytes'] / 1e9:7.3f} GB "
              f"{error:+8.2%} {row['footprint_bytes'] / 1e9:7.3f} GB {row['step_time_s']:7.1f} s", flush=True)
    if args.out:
        with open(args.out, "w", newline="") as out:
            table = csv.DictWriter(out, rows[0])
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
