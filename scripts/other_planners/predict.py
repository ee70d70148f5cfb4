"""What other planners say of the published runs: writes predictions.csv beside this file.

    python3 -m venv /tmp/neighbours
    /tmp/neighbours/bin/pip install -r results/neighbours/requirements.txt
    /tmp/neighbours/bin/python results/neighbours/neighbours.py target/release/headroom

The rows and their configurations are those that `headroom report accuracy` compares itself on: peaks whose longest
batch is known. Each planner is told all that it can be told.

- mlx-train-perf: its own estimator with the loss and attention of plain mlx-lm. Its command always assumes
  checkpointing and all layers, so the estimator is called with what the row says.
- fitcheck: its command, offline, with the model's config.json in a cache made here. It is made for CUDA, knows no
  last-n-layers, and its overhead is CUDA's: its tensors (total without overhead) stand beside MLX's peak.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

from mlx_train_perf.plan.estimate import ModelShape, TrainConfig, estimate_peak, load_calibration

HERE = Path(__file__).parent
BITS = {"q4_k": 4, "int8": 8}
MIB = 2**20


def mlx_train_perf(config, case):
    run = case["run"]
    recipe, execution, lora = run["recipe"], run["execution"], run["recipe"]["lora"]
    bits = BITS.get(execution["weights"])
    if bits:
        config = config | {"quantization": {"bits": bits, "group_size": 64}}
    shape = ModelShape.from_config(config)
    layers = config["num_hidden_layers"] if lora["num_layers"] < 0 else lora["num_layers"]
    plan = TrainConfig(
        batch=execution["batch_size"],
        seq_len=case["tokens_per_row"],
        dtype="bfloat16",
        lora_rank=lora["rank"],
        lora_layers=layers,
        grad_checkpoint=execution["grad_checkpoint"],
        impl="naive",
        attention="stock",
    )
    return estimate_peak(shape, plan, load_calibration())[0] / 1e9


def fitcheck(config, case, home):
    run = case["run"]
    execution = run["execution"]
    folder = home / "hub" / ("models--" + run["model"].replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("local")
    (folder / "snapshots" / "local").mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / "local" / "config.json").write_text(json.dumps(config))
    command = [Path(sys.executable).parent / "fitcheck", run["model"], "--json", "--vram-mib", "262144"]
    command += ["--quant", {4: "nf4", 8: "int8", None: "none"}[BITS.get(execution["weights"])]]
    command += ["--batch-size", str(execution["batch_size"]), "--seq-len", str(case["tokens_per_row"])]
    command += ["--lora-r", str(run["recipe"]["lora"]["rank"]), "--lora-targets", "full"]
    command += ["--grad-checkpoint"] * execution["grad_checkpoint"]
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode == 2:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    memory = json.loads(done.stdout)["memory_mib"]
    return (memory["total"] - memory["overhead"]) * MIB / 1e9


def main(headroom):
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        report = [headroom, "report", "accuracy", "--json", "--quiet", "--reports", home / "reports"]
        answer = json.loads(subprocess.run(report, check=True, capture_output=True, text=True).stdout)
        models = json.loads((HERE / "../../src/spec/model/catalogue.json").read_text())
        configs = {m["id"]: m["config"].get("text_config", m["config"]) for m in models}
        planners = {
            f"mlx-train-perf {version('mlx-train-perf')}": mlx_train_perf,
            f"fitcheck {version('fitcheck-llm')}": lambda config, case: fitcheck(config, case, home),
        }
        rows = []
        for tool, ask in planners.items():
            for case in answer["cases"]:
                row = {"id": case["id"], "tool": tool, "peak_gb": "", "refused": ""}
                try:
                    row["peak_gb"] = f"{ask(configs[case['run']['model']], case):.3f}"
                except Exception as error:
                    row["refused"] = " ".join(str(error).split())[:160]
                rows.append(row)
    with open(HERE / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


main(sys.argv[1])
