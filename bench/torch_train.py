"""The training step of bench/train_step.cpp in PyTorch: same model, random tokens, mean cross-entropy, clip 1.0, AdamW
(fused). Prints one JSON line with the same keys.
  --dtype f32, bf16 (parameters, gradients and moments all bf16) or autocast (f32 parameters, bf16 products)
"""
import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

D, L, H, K, E, FFN, V = 384, 22, 6, 2, 64, 1408, 49152  # clm-60m, untied, theta 1e4


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        return F.rms_norm(x, (D,), self.weight, 1e-5)


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def rotate(x, cos, sin):  # half-split RoPE of x (B, heads, T, E)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_attn, self.norm_mlp = RmsNorm(), RmsNorm()
        self.q, self.k, self.v, self.o = linear(D, H * E), linear(D, K * E), linear(D, K * E), linear(H * E, D)
        self.gate, self.up, self.down = linear(D, FFN), linear(D, FFN), linear(FFN, D)

    def attention(self, x, table):
        B, T, _ = x.shape
        q, k, v = (p(x).view(B, T, -1, E).transpose(1, 2) for p in (self.q, self.k, self.v))
        # written out for all heads: with enable_gqa the CPU leaves its flash kernel
        k, v = (t.repeat_interleave(H // K, dim=1) for t in (rotate(k, *table), v))
        out = F.scaled_dot_product_attention(rotate(q, *table), k, v, is_causal=True)
        return self.o(out.transpose(1, 2).reshape(B, T, H * E))

    def forward(self, x, table):
        x = x + self.attention(self.norm_attn(x), table)
        h = self.norm_mlp(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(L))
        self.norm, self.head = RmsNorm(), linear(D, V)

    def forward(self, tokens, targets):
        frequency = 1e4 ** (-torch.arange(0, E, 2, dtype=torch.float32) / E)
        angle = torch.arange(tokens.shape[1], dtype=torch.float32)[:, None] * frequency
        table, x = (angle.cos(), angle.sin()), self.embed(tokens)
        for layer in self.layers:
            x = layer(x, table)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--seq", type=int, default=512)
    p.add_argument("--dtype", choices=("f32", "bf16", "autocast"), default="f32")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--matmul-precision", choices=("highest", "medium"), default="highest")
    p.add_argument("--compile", action="store_true")
    return p.parse_args()


def main():
    o = options()
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision(o.matmul_precision)
    model = Llama().to(torch.bfloat16 if o.dtype == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of = torch.compile(model, dynamic=False) if o.compile else model
    seconds, phases, losses = [], {"fwd": [], "bwd": [], "opt": []}, []
    for i in range(o.warmup + o.steps):
        tokens = torch.randint(V, (o.batch, o.seq + 1))
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=o.dtype == "autocast"):
            loss = loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        after_fwd = time.perf_counter()
        loss.backward()
        after_bwd = time.perf_counter()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        losses.append(loss.item())
        if i >= o.warmup:
            seconds.append(end - start)
            for name, value in zip(phases, (after_fwd - start, after_bwd - after_fwd, end - after_bwd)):
                phases[name].append(value)
    spread = {"min": min(seconds), "med": statistics.median(seconds), "max": max(seconds)}
    n = o.batch * o.seq
    print(json.dumps({
        "prog": f"PyTorch {torch.__version__}", "model": "clm-60m", "params": sum(p.numel() for p in model.parameters()),
        "batch": o.batch, "seq": o.seq, "dtype": o.dtype, "compile": o.compile, "threads": torch.get_num_threads(),
        "steps": o.steps, "tok_s": {"min": n / spread["max"], "med": n / spread["med"], "max": n / spread["min"]},
        "step_s": spread, "phase_med_s": {k: statistics.median(v) for k, v in phases.items()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": {"first": losses[0], "last": losses[-1]}}))


main()
