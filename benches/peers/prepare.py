"""Makes what all engines start from: `prepare.py JOB.json`.

The model folder, where the job names a shape in place of a model: random weights (transformers' own initialisation),
and a tokenizer of three words, because a model folder has one; the rows are tokens already.
And, always, the PEFT adapter that each of them trains on from: PEFT's initialisation, A random and B zero.
"""
import json
import sys

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

job = json.load(open(sys.argv[1]))
torch.manual_seed(job["seed"])
if job["shape"]:
    LlamaForCausalLM(LlamaConfig(**job["shape"])).save_pretrained(job["model"])
    Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>")).save(f"{job['model']}/tokenizer.json")
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules=job["targets"],
                  task_type="CAUSAL_LM")
get_peft_model(model, lora).save_pretrained(job["adapter"])
