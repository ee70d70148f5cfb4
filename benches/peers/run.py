#!/usr/bin/env python3
"""Headroom, PEFT and mlx-lm on one model folder and the same rows: speed, memory and loss in one table.

    cargo build --release && benches/peers/run.py

makes a model of SmolLM2-135M's shape with random weights and runs each engine three times, in turns, on the same
number of threads, f32 throughout, all from the same adapter, with AdamW and a constant learning rate. `--model DIR`
takes a Hugging Face folder instead, `--rows FILE` token rows (`{"tokens": [...]}`) instead of drawn ones. The peers
are installed at pinned versions (requirements-*.txt) into a virtual environment each under target/peers;
`--peft-python` and `--mlx-python` name interpreters that have them already.

What is measured, alike for all: tokens/s is batch x seq over the median step after the warm-up steps; the process
is the largest resident set of the child from start to exit, loading included (`ru_maxrss`); the peak is what each
engine's own allocator counted (torch counts nothing on a CPU). An engine that fails is named and left out.
Written for Linux and macOS; needs Python 3.10 or later and nothing else, on Linux a C compiler (blas.c).
"""
import argparse
import csv
import hashlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "smollm2-135m": dict(num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192,
                         rms_norm_eps=1e-5, tie_word_embeddings=True),
    # Seconds in all: to see that every engine still runs and learns alike; its speeds mean nothing.
    "smoke": dict(num_hidden_layers=3, hidden_size=48, intermediate_size=88, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=257, max_position_embeddings=512,
                  rms_norm_eps=1e-5, tie_word_embeddings=True),
}
ENGINES = ["headroom", "peft", "mlx-lm"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, help="a Hugging Face folder")
    what.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="random weights of this shape")
    p.add_argument("--rows", type=Path, help="JSON lines with `tokens`, at least steps x batch rows of seq tokens")
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--seq", type=int, default=512)
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=float, default=16.0)
    p.add_argument("--targets", nargs="+", default=TARGETS)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--warmup", type=int, default=2, help="steps that are not timed")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--learning-rate", type=float, default=1e-3)
    p.add_argument("--no-checkpoint", action="store_true", help="keep activations, on every side")
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    p.add_argument("--headroom", type=Path, default=ROOT / "target/release/headroom")
    p.add_argument("--venvs", type=Path, default=ROOT / "target/peers", help="folder the peers are installed in")
    p.add_argument("--peft-python", type=Path, help="an interpreter that has torch, transformers and peft")
    p.add_argument("--mlx-python", type=Path, help="an interpreter that has mlx, mlx-lm (and scipy-openblas32)")
    p.add_argument("--out", type=Path, default=ROOT / "target/peers/out", help="folder of runs.csv and runs.json")
    args = p.parse_args()
    if not 0 <= args.warmup < args.steps:
        p.error("--warmup must leave at least one step to time")
    return args


def installed(args, peer):
    """The interpreter with a pinned peer, installed on first use and again when the pins change."""
    folder, pins = args.venvs / peer, HERE / f"requirements-{peer}.txt"
    mark, wanted = folder / "pins.sha256", hashlib.sha256(pins.read_bytes()).hexdigest()
    python = folder / "bin/python"
    if not (mark.exists() and mark.read_text() == wanted):
        size = "about 6 GB, as torch's Linux build brings CUDA" if peer == "peft" else "about 0.5 GB"
        print(f"installing {peer} into {folder} ({size})", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", pins], check=True)
        mark.write_text(wanted)
    return python


def fast_blas(python, work):
    """The library to preload for mlx on Linux (blas.c)."""
    where = "import scipy_openblas32 as b; print(b.get_lib_dir())"
    folder = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    library = work / "libblas_for_mlx.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "blas.c", f"-L{folder}",
                    "-lscipy_openblas", f"-Wl,-rpath,{folder}"], check=True)
    return library


def child(command, env, log):
    """Runs a command; the largest resident set of its process in bytes. Raises with the end of what it said."""
    with open(log, "wb") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=out, env=env)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise RuntimeError(f"status {os.waitstatus_to_exitcode(status)}: " + " / ".join(said))
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_headroom(args, job, job_file, env, work):
    out = work / "headroom-run"
    shutil.rmtree(out, ignore_errors=True)
    toml = work / "run.toml"
    toml.write_text(f"""model = {json.dumps(job["model"])}
data = {json.dumps(job["rows"])}
seed = {job["seed"]}
[recipe]
max_seq_length = {job["seq"]}
effective_batch_size = {job["batch"]}
steps = {job["steps"]}
learning_rate = {job["learning_rate"]}
lr_schedule = "constant"
warmup_steps = 0
max_grad_norm = 0.0
shuffle = false
[recipe.lora]
rank = {job["rank"]}
alpha = {job["alpha"]}
target_modules = {json.dumps(job["targets"])}
init_adapter = {json.dumps(job["adapter"])}
[execution]
batch_size = {job["batch"]}
grad_checkpoint = {"true" if job["grad_checkpoint"] else "false"}
weights = "f32"
""")
    launch = [args.headroom, "launch", toml, "--out", out, "--results", work / "results", "--force", "--quiet"]
    resident = child(launch, env, work / "headroom.log")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"losses": [s["loss"] for s in steps], "step_seconds": [s["step_time_s"] for s in steps],
            "peak_bytes": max(s["allocated_peak_bytes"] for s in steps)}, resident


def run_peer(python, script, preload):
    def run(args, job, job_file, env, work):
        result = work / "result.json"
        result.unlink(missing_ok=True)
        env = env | ({"LD_PRELOAD": str(preload)} if preload else {})
        resident = child([python, HERE / script, job_file, result], env, work / f"{script}.log")
        return json.loads(result.read_text()), resident
    return run


def drawn_rows(path, vocabulary, count, seq, seed):
    """Rows of random tokens, the n-th with a chance like 1 / n, so that there is something to learn."""
    rng = random.Random(seed)
    weights = [1.0 / (n + 1) for n in range(vocabulary)]
    with open(path, "w") as out:
        for _ in range(count):
            json.dump({"tokens": rng.choices(range(vocabulary), weights, k=seq)}, out)
            out.write("\n")


def cut_rows(source, path, count, seq):
    rows = [json.loads(line)["tokens"][:seq] for line in source.read_text().splitlines()]
    rows = [row for row in rows if len(row) == seq][:count]
    if len(rows) < count:
        sys.exit(f"{source} has {len(rows)} rows of at least {seq} tokens; {count} are needed")
    path.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))


def processor():
    if sys.platform == "darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout.strip()
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(args, work):
    peft_python = args.peft_python or installed(args, "peft")  # needed by all: it makes the model and the adapter
    engines = {"headroom": run_headroom}
    if "peft" in args.engines:
        engines["peft"] = run_peer(peft_python, "peft_engine.py", None)
    if "mlx-lm" in args.engines:
        mlx_python = args.mlx_python or installed(args, "mlx")
        preload = fast_blas(mlx_python, work) if sys.platform == "linux" else None
        engines["mlx-lm"] = run_peer(mlx_python, "mlx_engine.py", preload)

    shape = None if args.model else SHAPES[args.shape]
    model = args.model.resolve() if args.model else work / "model"
    job = {"model": str(model), "shape": shape, "rows": str(work / "rows.jsonl"), "adapter": str(work / "adapter"),
           "batch": args.batch, "seq": args.seq, "rank": args.rank, "alpha": args.alpha, "targets": args.targets,
           "steps": args.steps, "learning_rate": args.learning_rate, "grad_checkpoint": not args.no_checkpoint,
           "threads": args.threads, "seed": 0}
    job_file = work / "job.json"
    job_file.write_text(json.dumps(job))
    count = args.steps * args.batch
    vocabulary = (shape or json.loads((model / "config.json").read_text()))["vocab_size"]
    if args.rows:
        cut_rows(args.rows, Path(job["rows"]), count, args.seq)
    else:
        drawn_rows(job["rows"], vocabulary, count, args.seq, job["seed"])
    child([peft_python, HERE / "prepare.py", job_file], dict(os.environ), work / "prepare.log")

    threads = {name: str(args.threads) for name in
               ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]}
    env = dict(os.environ) | threads | {"HF_HUB_OFFLINE": "1"}
    if sys.platform == "linux" and "avx512f" in Path("/proc/cpuinfo").read_text():
        # OpenBLAS takes new AMD processors for old ones, at half their rate.
        env.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    runs = []
    for repeat in range(args.repeats):
        # Every engine comes first, second and third in turn: what warms up or slows down the machine meets all.
        order = [args.engines[(i + repeat) % len(args.engines)] for i in range(len(args.engines))]
        for name in order:
            load = os.getloadavg()[0]
            row = {"engine": name, "repeat": repeat, "load_average": round(load, 2)}
            try:
                result, resident = engines[name](args, job, job_file, env, work)
            except Exception as error:  # whatever it is: the others still run
                row["error"] = f"{type(error).__name__}: {error}"
                print(f"{name} failed: {row['error']}", file=sys.stderr)
            else:
                step = statistics.median(result["step_seconds"][args.warmup:])
                row |= {"tokens_per_s": args.batch * args.seq / step, "step_time_s": step,
                        "peak_bytes": result["peak_bytes"], "resident_bytes": resident, "losses": result["losses"]}
                print(f"{name}, repeat {repeat + 1}: {row['tokens_per_s']:.0f} tokens/s, load {load:.1f}", file=sys.stderr)
            runs.append(row)
    return job, runs


def table(args, runs):
    """The medians, one line an engine, and Headroom against each peer."""
    size = lambda n: "-" if n is None else f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"
    lines = [f"{'engine':<10}{'tokens/s':>10}{'(lowest to highest)':>22}{'peak':>11}{'process':>11}{'first loss':>12}{'last loss':>11}"]
    medians = {}
    for name in args.engines:
        good = [r for r in runs if r["engine"] == name and "error" not in r]
        if not good:
            lines.append(f"{name:<10}failed: " + next(r["error"] for r in runs if r["engine"] == name))
            continue
        middle = lambda key: None if good[0][key] is None else statistics.median(r[key] for r in good)
        m = medians[name] = {key: middle(key) for key in ["tokens_per_s", "peak_bytes", "resident_bytes"]}
        m["losses"] = good[0]["losses"]
        speeds = [r["tokens_per_s"] for r in good]
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        lines.append(f"{name:<10}{m['tokens_per_s']:>10.1f}{spread:>22}{size(m['peak_bytes']):>11}"
                     f"{size(m['resident_bytes']):>11}{m['losses'][0]:>12.5f}{m['losses'][-1]:>11.5f}")
    ours = medians.get("headroom")
    for name, m in medians.items():
        if ours is None or m is ours:
            continue
        ratio = lambda key: "unknown" if m[key] is None else f"{ours[key] / m[key]:.2f}x"
        apart = max(abs(a / b - 1) for a, b in zip(ours["losses"], m["losses"], strict=True))
        lines.append(f"headroom against {name}: {ratio('tokens_per_s')} the speed, {ratio('peak_bytes')} the peak, "
                     f"{ratio('resident_bytes')} the process; losses at most {apart:.1e} apart (relative)")
    return "\n".join(lines)


def main():
    args = arguments()
    if "headroom" in args.engines and not args.headroom.exists():
        sys.exit(f"{args.headroom} is missing: `cargo build --release` makes it")
    with tempfile.TemporaryDirectory(prefix="headroom-peers-") as folder:
        job, runs = measure(args, Path(folder))
    what = args.model.name if args.model else f"shape of {args.shape}"
    checkpointing = "without" if args.no_checkpoint else "with"
    print(f"{what}, rank {args.rank} on {len(args.targets)} projections, batch {args.batch}, {args.seq} tokens, f32, "
          f"{checkpointing} checkpointing")
    print(f"{args.repeats} runs each in turns, {args.steps} steps, {args.warmup} of them not timed, {args.threads} threads, "
          f"{processor()}, load average {min(r['load_average'] for r in runs)} to {max(r['load_average'] for r in runs)}")
    print(table(args, runs))
    if max(r["load_average"] for r in runs) > args.threads + 1:
        # What torch and OpenBLAS lose most: their threads wait by spinning.
        print("the machine was busy with other work: the speeds above say little; memory and losses hold")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "runs.json").write_text(json.dumps({"job": job, "processor": processor(), "runs": runs}, indent=1))
    with open(args.out / "runs.csv", "w", newline="") as out:
        fields = ["engine", "repeat", "load_average", "tokens_per_s", "step_time_s", "peak_bytes", "resident_bytes", "error"]
        writer = csv.DictWriter(out, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(runs)
    print(f"every run: {args.out / 'runs.csv'}", file=sys.stderr)
    sys.exit(1 if any("error" in r for r in runs) else 0)


if __name__ == "__main__":
    main()
