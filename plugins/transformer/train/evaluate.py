"""Measures the exported files on the held-out documents and prints samples.

    python evaluate.py WORK_DIR MODEL_DIR [--samples-only]

It reads what ships - the F16 weights and tokenizer.json - and computes in
F32. Every document starts after an end-of-text token and is scored in windows
of the full context that overlap by half, so that each token but the first few
of a document is predicted from at least half a context of text before it.
"""

import argparse
import json
import math
import os

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F

from train import CONTEXT, END, GPT2, SEED, TRANSPOSED

PROMPTS = ["Once upon a time", "The president said that", "It was a dark night and",
           "The economy of the country", "\"I do not know,\" said", "Your prompt here"]


def load(folder):
    model = GPT2()
    state = {}
    for name, tensor in load_file(os.path.join(folder, "model.safetensors")).items():
        tensor = tensor.float()
        state[name] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    model.load_state_dict(state)
    return model.eval(), Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


@torch.no_grad()
def score(model, ids):
    """Sum of the negative log-likelihoods (nats) of ids[1:]."""
    total, scored = 0.0, 1
    for start in range(0, len(ids), CONTEXT // 2):
        window = torch.tensor([ids[start:start + CONTEXT + 1]])
        first = scored - start  # position in the window of the first new token
        if first >= window.shape[1]:
            break
        log_probs = F.log_softmax(model(window[:, :-1])[0], dim=-1)
        losses = -log_probs.gather(1, window[0, 1:, None])[:, 0]
        total += losses[first - 1:].sum().item()
        scored = start + window.shape[1]
    return total


@torch.no_grad()
def generate(model, tokenizer, prompt, tokens, temperature, top_k=40):
    generator = torch.Generator().manual_seed(SEED)
    ids = tokenizer.encode(prompt).ids
    end = tokenizer.token_to_id(END)
    for _ in range(tokens):
        logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        if temperature == 0:
            choice = logits.argmax().item()
        else:
            best, indices = logits.topk(top_k)
            probabilities = (best / temperature).softmax(dim=0)
            choice = indices[torch.multinomial(probabilities, 1, generator=generator)].item()
        if choice == end:
            break
        ids.append(choice)
    return tokenizer.decode(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", help="folder that corpus.py filled")
    parser.add_argument("model", help="folder with the model files")
    parser.add_argument("--split", default="heldout", choices=["heldout", "dev"])
    parser.add_argument("--samples-only", action="store_true")
    parser.add_argument("--tokens", type=int, default=80)
    args = parser.parse_args()
    model, tokenizer = load(args.model)

    if not args.samples_only:
        end = tokenizer.token_to_id(END)
        sums = {}
        with open(os.path.join(args.work, args.split + ".jsonl"), encoding="utf-8") as file:
            for line in file:
                document = json.loads(line)
                prefix = document["id"].split("-")[0]
                kind = {"sotu": "speeches", "factbook": "factbook"}.get(prefix, "books")
                ids = [end] + tokenizer.encode(document["text"]).ids
                nats = score(model, ids)
                for key in (kind, "all"):
                    s = sums.setdefault(key, [0, 0.0, 0, 0])
                    s[0] += 1
                    s[1] += nats
                    s[2] += len(ids) - 1
                    s[3] += len(document["text"].encode())
        for key, (count, nats, tokens, size) in sorted(sums.items()):
            print(f"{args.split} {key}: {count} documents, {size:,} bytes, {tokens:,} tokens, "
                  f"perplexity {math.exp(nats / tokens):.2f} per token, "
                  f"{nats / math.log(2) / size:.3f} bits per byte")

    for prompt in PROMPTS:
        for temperature in (0, 0.8):
            text = generate(model, tokenizer, prompt, args.tokens, temperature)
            print(f"\n--- {prompt!r}, temperature {temperature}\n{text}")


if __name__ == "__main__":
    main()
