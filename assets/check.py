#!/usr/bin/env python3
"""Prove that the demo model and the demo data do their work: load the model as any
Hugging Face model, check the tokenizer and the chat template, then train a LoRA on
data/train.jsonl with peft and compare before and after on data/valid.jsonl.

    pip install torch==2.9.1 transformers==5.23.0 peft==0.21.2 tokenizers==0.23.3
    python check.py             # under a minute on two CPU cores; exits 1 if anything fails

The loss is the mean over the tokens of the assistant's answer and the <|im_end|> after it
(not the newline after that). The defaults below are the recommended recipe.
Licence: MIT OR Apache-2.0.
"""

import argparse
import json
import os
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "model")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LIMIT = 3_600_000  # bytes, model/ and data/ together


def rows(name):
    with open(os.path.join(HERE, "data", name + ".jsonl"), encoding="utf-8") as f:
        return [json.loads(line)["messages"] for line in f]


def check_files(tok, model):
    total = 0
    for d in ("model", "data"):
        for f in sorted(os.listdir(os.path.join(HERE, d))):
            n = os.path.getsize(os.path.join(HERE, d, f))
            total += n
            print(f"  {d}/{f:24s} {n:>9,} bytes")
    print(f"  {'total':30s} {total:>9,} bytes")
    assert total <= LIMIT, total
    assert len(tok) <= model.config.vocab_size, (len(tok), model.config.vocab_size)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tok.eos_token_id
    assert tok.convert_ids_to_tokens(tok.eos_token_id) == "<|im_end|>"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    alone = Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    texts = [m["content"] for name in ("train", "valid") for row in rows(name) for m in row]
    texts += ["Grüße, 你好 — 🙂\n\ttabs  and   spaces", " leading space", "{\"a\": [1, 2.5]}\r\n"]
    for t in texts:
        ids = alone.encode(t, add_special_tokens=False).ids
        assert alone.decode(ids) == t, t
        assert tok(t, add_special_tokens=False)["input_ids"] == ids, t
    chat = tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", chat
    full = tok.apply_chat_template([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
                                   tokenize=False)
    assert full == chat + "Ho<|im_end|>\n", full


def encode(tok, msgs):
    prompt = tok.apply_chat_template(msgs[:-1], tokenize=False, add_generation_prompt=True)
    p = tok(prompt, add_special_tokens=False)["input_ids"]
    a = tok(msgs[-1]["content"] + "<|im_end|>\n", add_special_tokens=False)["input_ids"]
    return p + a, [-100] * len(p) + a[:-1] + [-100]


def collate(tok, items):
    n = max(len(i) for i, _ in items)
    ids = torch.tensor([i + [tok.pad_token_id] * (n - len(i)) for i, _ in items])
    labels = torch.tensor([l + [-100] * (n - len(l)) for _, l in items])
    mask = torch.tensor([[1] * len(i) + [0] * (n - len(i)) for i, _ in items])
    return ids, labels, mask


def summed(model, batch):
    ids, labels, mask = batch
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    y = labels[:, 1:].reshape(-1)
    return F.cross_entropy(logits.reshape(len(y), -1), y, ignore_index=-100, reduction="sum"), (y != -100).sum()


@torch.no_grad()
def valid_loss(tok, model, items):
    model.eval()
    total, count = 0.0, 0
    for i in range(0, len(items), 16):
        s, n = summed(model, collate(tok, items[i:i + 16]))
        total, count = total + s.item(), count + n.item()
    return total / count


@torch.no_grad()
def answer(tok, model, msgs):
    model.eval()
    prompt = tok.apply_chat_template(msgs[:-1], tokenize=False, add_generation_prompt=True)
    x = tok(prompt, add_special_tokens=False, return_tensors="pt")
    y = model.generate(**x, max_new_tokens=48, do_sample=False)
    return tok.decode(y[0, x["input_ids"].shape[1]:], skip_special_tokens=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--rank", type=int, default=8)
    ap.add_argument("--alpha", type=int, default=16)
    ap.add_argument("--steps", type=int, default=150)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--warmup", type=int, default=5)
    ap.add_argument("--constant", action="store_true", help="no cosine decay after the warmup")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)

    tok = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{len(tok)} tokens in a vocabulary of {model.config.vocab_size}")
    check_files(tok, model)

    train, valid = rows("train"), rows("valid")
    assert not {r[0]["content"] for r in train} & {r[0]["content"] for r in valid}
    tr, va = [encode(tok, r) for r in train], [encode(tok, r) for r in valid]
    n = [len(i) for i, _ in tr]
    print(f"{len(tr)} train rows of {min(n)} to {max(n)} tokens (mean {sum(n) / len(n):.0f}), {len(va)} valid rows")

    before = valid_loss(tok, model, va)
    said_before = [answer(tok, model, r) for r in valid]

    model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=args.alpha, lora_dropout=0.0,
                                             target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    params = [p for p in model.parameters() if p.requires_grad]
    print(f"LoRA rank {args.rank}, alpha {args.alpha}, lr {args.lr}, batch {args.batch}, {args.steps} steps: "
          f"{sum(p.numel() for p in params):,} trained parameters")
    opt = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.0)
    cos = lambda s: 1.0 if args.constant else 0.5 * (1 + torch.cos(torch.tensor(torch.pi * s / args.steps)).item())
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, (s + 1) / args.warmup) * cos(s))
    r, order, t0 = random.Random(args.seed), [], time.time()
    for step in range(args.steps):
        if len(order) < args.batch:
            order = list(range(len(tr)))
            r.shuffle(order)
        model.train()
        s, count = summed(model, collate(tok, [tr[order.pop()] for _ in range(args.batch)]))
        loss = s / count
        loss.backward()
        opt.step()
        opt.zero_grad()
        sched.step()
        if step == 0 or (step + 1) % 10 == 0:
            print(f"  step {step + 1:4d}  train loss {loss.item():.4f}")
    took = time.time() - t0

    after = valid_loss(tok, model, va)
    said_after = [answer(tok, model, r) for r in valid]
    right = lambda said: sum(s == r[-1]["content"] for s, r in zip(said, valid))
    shown = [i for i in range(len(valid))][:: max(1, len(valid) // 8)][:8]
    for i in shown:
        print(f"\n  user    {valid[i][0]['content']}\n  before  {said_before[i]}\n  after   {said_after[i]}"
              + ("" if said_after[i] == valid[i][-1]["content"] else f"\n  WANTED  {valid[i][-1]['content']}"))
    wrong = [(s, r) for s, r in zip(said_after, valid) if s != r[-1]["content"]]
    if wrong:
        print("\n  wrong after training:")
        for s, r in wrong[:10]:
            print(f"    {s[:100]}   (wanted {r[-1]['content']})")
    print(f"\nvalid loss  before {before:.4f}  after {after:.4f}")
    print(f"exact answers on {len(valid)} held-out prompts  before {right(said_before)}  after {right(said_after)}")
    print(f"trained in {took:.1f} s")
    assert before > 1.5 and after < 0.5, (before, after)
    assert right(said_before) == 0 and right(said_after) >= 0.85 * len(valid)
    print("OK")


if __name__ == "__main__":
    main()
