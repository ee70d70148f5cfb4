"""One run of PEFT on torch: `peft_engine.py JOB.json RESULT.json`.

As its users would write it: AutoModelForCausalLM with its default (fused) attention, PEFT's LoRA, torch's AdamW.
"""
import json
import sys
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

job = json.load(open(sys.argv[1]))
torch.set_num_threads(job["threads"])
torch.manual_seed(job["seed"])

model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
model.config.use_cache = False
model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
if job["grad_checkpoint"]:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

rows = [json.loads(line)["tokens"] for line in open(job["rows"])]
losses, seconds = [], []
for step in range(job["steps"]):
    started = time.perf_counter()
    batch = torch.tensor(rows[step * job["batch"]:(step + 1) * job["batch"]])
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    seconds.append(time.perf_counter() - started)

# torch counts no allocations on the CPU: the peak stays unknown.
json.dump({"losses": losses, "step_seconds": seconds, "peak_bytes": None}, open(sys.argv[2], "w"))
