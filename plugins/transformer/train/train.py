"""Trains the small GPT-2 that ships with the gpt2 plugin, on the CPU.

    python train.py WORK_DIR MODEL_DIR --minutes 90

WORK_DIR is the folder corpus.py filled. The tokenizer is trained first (once);
then the model, for a fixed time: the learning rate follows the fraction of the
time that has passed, so a run ends well whatever the machine's speed and load.
Stopped runs go on from WORK_DIR/checkpoint.pt. Usable files are exported to
MODEL_DIR while it trains and once more at the end.
"""

import argparse
import json
import math
import os
import time

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F

SEED = 1337
END = "<|endoftext|>"

# The largest shape that stays under 10 MB in F16 with the tokenizer beside it.
VOCAB, CONTEXT, WIDTH, LAYERS, HEADS = 4096, 512, 224, 6, 4


# --- tokenizer --------------------------------------------------------------

def documents(work, split):
    with open(os.path.join(work, split + ".jsonl"), encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def train_tokenizer(texts, path):
    """Byte-level BPE, set up as GPT-2's: any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(path, pretty=False)


def encode(tokenizer, texts):
    """One long stream, an end-of-text token before each document."""
    end = tokenizer.token_to_id(END)
    stream = []
    for encoding in tokenizer.encode_batch(texts):
        stream.append(end)
        stream.extend(encoding.ids)
    return torch.from_numpy(np.array(stream, dtype=np.int64))


# --- model: GPT-2, with the tensor names of the published checkpoints --------

class Block(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout
        self.ln_1 = nn.LayerNorm(WIDTH, eps=1e-5)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(WIDTH, 3 * WIDTH),
                                   "c_proj": nn.Linear(WIDTH, WIDTH)})
        self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-5)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH),
                                  "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x):
        batch, time_, _ = x.shape
        q, k, v = (t.view(batch, time_, HEADS, WIDTH // HEADS).transpose(1, 2)
                   for t in self.attn["c_attn"](self.ln_1(x)).split(WIDTH, dim=2))
        # Spelled out: on the CPU this is faster to train than torch's own kernel.
        mask = torch.full((time_, time_), -math.inf, dtype=q.dtype).triu(1)
        y = (q * (WIDTH // HEADS) ** -0.5) @ k.transpose(2, 3) + mask
        y = y.softmax(dim=-1, dtype=q.dtype) @ v
        y = self.attn["c_proj"](y.transpose(1, 2).reshape(batch, time_, WIDTH))
        x = x + F.dropout(y, self.dropout, self.training)
        y = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")  # gelu_new
        return x + F.dropout(self.mlp["c_proj"](y), self.dropout, self.training)


class GPT2(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = dropout
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block(dropout) for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH, eps=1e-5)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                # GPT-2 scales what is added to the residual stream.
                scale = (2 * LAYERS) ** -0.5 if name.endswith("c_proj.weight") else 1
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[:ids.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)  # tied output layer


def loss_of(model, ids):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model, stream, batch=16):
    """Over the whole stream, in windows that follow one another."""
    model.eval()
    count = (len(stream) - 1) // CONTEXT
    windows = torch.stack([stream[i * CONTEXT:(i + 1) * CONTEXT + 1] for i in range(count)])
    total = sum(loss_of(model, w).item() * len(w) for w in windows.split(batch))
    model.train()
    return total / count


# --- export -----------------------------------------------------------------

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D: [in, out]


def export(model, folder, end):
    """Writes config.json and model.safetensors the way GPT-2's own are laid out."""
    tensors = {}
    for name, p in model.state_dict().items():
        p = p.t() if name.endswith(TRANSPOSED) else p
        tensors[name] = p.detach().to(torch.float16).contiguous()
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "vocab_size": VOCAB, "n_positions": CONTEXT, "n_ctx": CONTEXT,
        "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "initializer_range": 0.02, "scale_attn_weights": True,
        "tie_word_embeddings": True, "bos_token_id": end, "eos_token_id": end,
        "torch_dtype": "float16",
    }
    # Written aside and renamed: a reader never sees half a file.
    path = os.path.join(folder, "model.safetensors")
    save_file(tensors, path + ".part", metadata={"format": "pt"})
    os.chmod(path + ".part", 0o644)  # save_file makes it private
    os.replace(path + ".part", path)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(config, indent=2) + "\n")


# --- training ---------------------------------------------------------------

def learning_rate(progress, peak):
    """Linear warm-up over the first 2 % of the time, then a cosine to zero."""
    if progress < 0.02:
        return peak * (progress + 1e-3) / 0.021
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.02) / 0.98)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", help="folder that corpus.py filled")
    parser.add_argument("model", help="folder for the model files")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--short", type=float, default=0.6,
                        help="fraction of the time spent on half-length windows")
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save-minutes", type=float, default=4)
    args = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    os.makedirs(args.model, exist_ok=True)
    tokenizer_path = os.path.join(args.model, "tokenizer.json")
    if not os.path.exists(tokenizer_path):
        train_tokenizer(documents(args.work, "train"), tokenizer_path)
    tokenizer = Tokenizer.from_file(tokenizer_path)
    end = tokenizer.token_to_id(END)
    train = encode(tokenizer, documents(args.work, "train"))
    dev = encode(tokenizer, documents(args.work, "dev"))

    model = GPT2(args.dropout)
    # Muon for the matrices inside the blocks, AdamW for the rest: it learns
    # more from the same number of tokens, and on a CPU tokens are what is scarce.
    matrices = [p for n, p in model.named_parameters() if n.startswith("h.") and p.dim() == 2]
    others = [p for n, p in model.named_parameters() if not (n.startswith("h.") and p.dim() == 2)]
    if args.muon:
        optimizers = [
            torch.optim.Muon(matrices, lr=args.lr, weight_decay=args.decay,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    else:
        optimizers = [torch.optim.AdamW(
            [{"params": matrices, "weight_decay": args.decay},
             {"params": others, "weight_decay": 0.0}],
            lr=args.lr, betas=(0.9, 0.98), fused=True)]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{len(train):,} training tokens, {len(dev):,} dev tokens", flush=True)

    checkpoint_path = os.path.join(args.work, "checkpoint.pt")
    step, tokens, spent = 0, 0, 0.0
    if os.path.exists(checkpoint_path):
        saved = torch.load(checkpoint_path)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        torch.set_rng_state(saved["rng"])
        step, tokens, spent = saved["step"], saved["tokens"], saved["spent"]
        print(f"going on from step {step}, {spent / 60:.1f} min", flush=True)

    def save():
        torch.save({"model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "rng": torch.get_rng_state(),
                    "step": step, "tokens": tokens, "spent": spent},
                   checkpoint_path + ".part")
        os.replace(checkpoint_path + ".part", checkpoint_path)
        export(model, args.model, end)

    budget, begin, last_save = args.minutes * 60, time.time() - spent, spent
    losses = []
    while spent < budget:
        progress = spent / budget
        rate = learning_rate(progress, args.lr)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        # Half-length windows first: attention is the dearest part on a CPU.
        length = CONTEXT // 2 if progress < args.short else CONTEXT
        # Dropout only in the second part: before it there is nothing to overfit.
        for module in (model, *model.h):
            module.dropout = args.dropout if progress >= args.short else 0.0
        batch = args.batch_tokens // length
        starts = torch.randint(len(train) - length - 1, (batch, 1))
        loss = loss_of(model, train[starts + torch.arange(length + 1)])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step, tokens, spent = step + 1, tokens + batch * length, time.time() - begin
        if step % 100 == 0:
            print(f"step {step} {spent / 60:.1f} min lr {rate:.1e} loss {np.mean(losses):.3f} "
                  f"epochs {tokens / len(train):.2f} tok/s {tokens / spent:.0f}", flush=True)
            losses = []
        if spent - last_save > args.save_minutes * 60:
            print(f"dev loss {mean_loss(model, dev):.4f}", flush=True)
            save()
            last_save = spent
    print(f"done: {step} steps, {tokens:,} tokens, {spent / 60:.1f} min, "
          f"dev loss {mean_loss(model, dev):.4f}", flush=True)
    save()


if __name__ == "__main__":
    main()
