"""One run of mlx-lm on the CPU: `mlx_engine.py JOB.json RESULT.json`.

mlx-lm's own `train`, LoRA layers and checkpointing; only the rows come in file order, so that every engine learns
from the same ones. AdamW with bias correction, which mlx leaves out unless asked.
"""
import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

job = json.load(open(sys.argv[1]))
mx.set_default_device(mx.cpu)
mx.random.seed(job["seed"])

model, _ = load_model(Path(job["model"]))
model.set_dtype(mx.float32)
model.freeze()
keys = {name for name, _ in model.layers[0].named_modules() if name.rsplit(".", 1)[-1] in job["targets"]}
scale = job["alpha"] / job["rank"]
linear_to_lora_layers(model, -1, {"rank": job["rank"], "scale": scale, "dropout": 0.0, "keys": keys})


def renamed(name):
    """PEFT's name of an adapter matrix in mlx-lm's words; mlx-lm keeps A and B transposed."""
    return name.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")


start = mx.load(str(Path(job["adapter"]) / "adapter_model.safetensors"))
start = {renamed(name): mx.contiguous(value.T) for name, value in start.items()}
expected = {name for name, _ in tree_flatten(model.trainable_parameters())}
if expected != set(start):
    sys.exit(f"the adapter has other tensors than the model: {sorted(expected ^ set(start))[:4]}")
model.load_weights(list(start.items()), strict=False)

rows = [json.loads(line)["tokens"] for line in open(job["rows"])]


def in_file_order(dataset, batch_size, max_seq_length, **_):
    for i in range(0, len(rows), batch_size):
        batch = np.array(rows[i:i + batch_size], np.int32)
        yield mx.array(batch), mx.array([[0, batch.shape[1]]] * batch_size)


class Watch(TrainingCallback):
    losses, seconds = [], []

    def on_train_loss_report(self, info):
        self.losses.append(info["train_loss"])
        self.seconds.append(1.0 / info["iterations_per_second"])


with tempfile.TemporaryDirectory() as folder:
    args = TrainingArgs(batch_size=job["batch"], iters=job["steps"], steps_per_report=1, steps_per_save=10**9,
                        max_seq_length=job["seq"], grad_checkpoint=job["grad_checkpoint"],
                        adapter_file=f"{folder}/adapters.safetensors")
    adamw = optim.AdamW(job["learning_rate"], betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, bias_correction=True)
    train(model, adamw, rows, args=args, iterate_batches=in_file_order, training_callback=Watch())

result = {"losses": Watch.losses, "step_seconds": Watch.seconds, "peak_bytes": mx.get_peak_memory()}
json.dump(result, open(sys.argv[2], "w"))
