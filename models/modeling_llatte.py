"""Latent attention (MLA and HLA) converted from grouped-query attention, for transformers:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Written by llatte beside the weights. Only self-attention differs from Llama (Qwen2: q, k, v biases; Qwen3: q and k
norms, which cannot be factored). What is cached for a token is ONE row of rotated numbers and latents; k and v of all
tokens are rebuilt from the rows when they are read. The row is the cache's "key", its "value" is empty.

    B batch  T new tokens  S all tokens  D model width  H query heads  K kv heads  E head width
"""
import torch
from torch import nn
from transformers import (LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward, rotate_half


CACHE_NAMES = ("cache", "past_key_values", "past_key_value")  # in transformers since 5.24, before, and long before


def take_cache(kwargs):
    """The cache among a layer's arguments, taken out of them; None where there is none."""
    caches = [kwargs.pop(name, None) for name in CACHE_NAMES]
    cache = next((c for c in caches if c is not None), None)
    if cache is None and kwargs.get("use_cache"):
        raise ValueError(f"this transformers passes its cache as none of {', '.join(CACHE_NAMES)}; add its name for it")
    return cache


class LatentAttention(nn.Module):
    """A kind says what queries() [B, H, T, Q] are, what row() of a token is cached, and keys_and_values() [B, K, S, Q]
    and [B, K, S, E] of all rows."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.H, self.K = config.num_attention_heads, config.num_key_value_heads
        self.E = getattr(config, "head_dim", None) or config.hidden_size // self.H
        self.num_key_value_groups = self.H // self.K
        self.scaling = self.E**-0.5
        self.tables = {}  # by device; buffers would have to survive loading

    def heads(self, x):
        """[B, S, heads E] -> [B, heads, S, E]"""
        return x.view(*x.shape[:2], -1, self.E).transpose(1, 2)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        cache = take_cache(kwargs)
        first = cache.get_seq_length(self.layer_idx) if cache is not None else 0
        q = self.queries(hidden_states, position_embeddings, first)
        row = self.row(hidden_states, position_embeddings).unsqueeze(1)
        if cache is not None:
            row, _ = cache.update(row, row[..., :0], self.layer_idx)
        k, v = self.keys_and_values(row.squeeze(1))
        attend = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        o, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(o.reshape(*hidden_states.shape[:2], -1).contiguous()), weights


class Mla(LatentAttention):
    """RoPE turns a few pairs of each kv head, config.RoPE["kept_pairs"][layer][kv head] (pair j is the dims j and
    j + E/2), and
        k_r = W_k_r x                    the dims that keep RoPE; per head: the first dims of its pairs, then the second
        c_k = W_down_k x                 and c_v = W_down_v x where v has a latent of its own, else c_v = c_k
        k_c = W_up_k c_k,  v = W_up_v c_v    k_c: the other dims of each head, ascending
    A side that is not factored has no W_down and W_up acts on x; a matrix without rows is left out;
    config.SVD["method"] 0 keeps k_proj and v_proj. Row: [k_r rotated | latents] (an unfactored side: k_c or v itself).
    N: dims with RoPE.
    """

    def __init__(self, config, layer_idx, qkv_bias=False, qk_norm=False):
        super().__init__(config, layer_idx)
        self.method = config.SVD["method"]
        self.kept_dims = []  # of each kv head, in the order of W_k_r's rows
        for pairs in config.RoPE["kept_pairs"][layer_idx]:
            self.kept_dims.append(list(pairs) + [j + self.E // 2 for j in pairs])
        self.N = sum(map(len, self.kept_dims))
        self.q_proj = nn.Linear(config.hidden_size, self.H * self.E, bias=qkv_bias)
        self.o_proj = nn.Linear(self.H * self.E, config.hidden_size, bias=False)
        if self.method == 0:
            self.add_full(config, qkv_bias, qk_norm)
        else:
            self.add_latent(config, qkv_bias)

    def add_full(self, config, bias, qk_norm):
        D, V = config.hidden_size, self.K * self.E
        self.k_proj = nn.Linear(D, V, bias=bias)
        self.v_proj = nn.Linear(D, V, bias=bias)
        norm = (lambda: LlamaRMSNorm(self.E, eps=config.rms_norm_eps)) if qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def add_latent(self, config, bias):
        D, V, R = config.hidden_size, self.K * self.E, config.SVD["low_rank"] * self.K
        self.factors_k, self.factors_v = self.method != "only_value", self.method != "only_key"
        self.shares = self.factors_k and self.factors_v and self.method not in (2, 3)
        self.width_k = R if self.factors_k else V - self.N  # of what is cached for k_c
        self.q_norm = nn.Identity()

        def linear(inputs, outputs, bias=False):
            return nn.Linear(inputs, outputs, bias=bias) if outputs else None

        self.W_k_r = linear(D, self.N, bias)
        self.W_down_k = linear(D, R) if self.factors_k else None
        self.W_down_v = linear(D, R) if self.factors_v and not self.shares else None
        self.W_up_k = linear(R if self.factors_k else D, V - self.N, bias)
        self.W_up_v = linear(R if self.factors_v else D, V, bias)

    def index(self, device):
        """Where the rows of W_k_r and of W_up_k lie among the K E dims of k; and [K, E], which dims RoPE turns."""
        if device not in self.tables:
            kept = [k * self.E + d for k, dims in enumerate(self.kept_dims) for d in dims]
            turns = torch.zeros(self.K * self.E, dtype=torch.bool)
            turns[kept] = True
            lost = (~turns).nonzero().flatten()
            tables = torch.tensor(kept, dtype=torch.long), lost, turns.view(self.K, self.E)
            self.tables[device] = [t.to(device) for t in tables]
        return self.tables[device]

    def joined(self, k_r, k_c):
        """k [B, K, S, E] from its dims with RoPE [B, S, N] and without [B, S, K E - N]."""
        kept, lost, _ = self.index(k_r.device)
        k = k_r.new_empty(*k_r.shape[:2], self.K * self.E)
        k[..., kept], k[..., lost] = k_r, k_c
        return self.heads(k)

    def rotate(self, x, position_embeddings):
        """x [B, heads, S, E]: a dim without RoPE is turned by the angle 0."""
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # [B, 1, S, E]
        turns = self.index(x.device)[2].repeat_interleave(x.shape[1] // self.K, dim=0)[:, None, :]  # [heads, 1, E]
        return x * torch.where(turns, cos, 1.0) + rotate_half(x) * torch.where(turns, sin, 0.0)

    def rotated_k_r(self, x, position_embeddings):
        """[B, T, N]"""
        if self.W_k_r is None:
            return x[..., :0]
        k_r = self.W_k_r(x)
        k = self.joined(k_r, k_r.new_zeros(*x.shape[:2], self.K * self.E - self.N))
        return self.rotate(k, position_embeddings).transpose(1, 2).flatten(2)[..., self.index(x.device)[0]]

    def row(self, x, position_embeddings):
        """What is cached of x [B, T, D]: [B, T, width]."""
        if self.method == 0:
            k = self.rotate(self.k_norm(self.heads(self.k_proj(x))), position_embeddings)
            return torch.cat([k.transpose(1, 2).flatten(2), self.v_proj(x)], dim=-1)
        parts = [self.rotated_k_r(x, position_embeddings)]
        if self.width_k:
            parts.append(self.W_down_k(x) if self.factors_k else self.W_up_k(x))
        if not self.shares:
            parts.append(self.W_down_v(x) if self.factors_v else self.W_up_v(x))
        return torch.cat(parts, dim=-1)

    def keys_and_values(self, row):
        """k, v [B, K, S, E] from the rows [B, S, width] of all tokens."""
        if self.method == 0:
            k, v = row.chunk(2, dim=-1)
            return self.heads(k), self.heads(v)
        k_r, c_k, c_v = row.split([self.N, self.width_k, row.shape[-1] - self.N - self.width_k], dim=-1)
        if self.shares:
            c_v = c_k
        k_c = self.W_up_k(c_k) if self.factors_k else c_k
        v = self.W_up_v(c_v) if self.factors_v else c_v
        return self.joined(k_r, k_c), self.heads(v)

    def queries(self, x, position_embeddings, first):
        return self.rotate(self.q_norm(self.heads(self.q_proj(x))), position_embeddings)


class PlaneLift:
    """Planes [.., 2P] ([Re | Im]), lifted to heads: pair j of head h is the sum of A[h mod rows, p] z_p over the planes
    p of pair j whose block serves h. The coefficients A [rows, P] are parameters of the attention."""

    def __init__(self, pairs, blocks, heads, rows, heads_a_block):
        self.pairs, self.used = pairs, sorted(set(pairs))
        self.rows = [h % rows for h in range(heads)]
        self.serves = [[float(heads_a_block == 0 or b == h // heads_a_block) for b in blocks] for h in range(heads)]

    def __call__(self, z, re, im):
        """[B, S, 2P] -> Re, Im [B, heads, S, used pairs]"""
        serves = torch.tensor(self.serves, device=z.device, dtype=z.dtype)
        re, im = re[self.rows] * serves, im[self.rows] * serves  # [heads, P]
        place = torch.tensor([self.used.index(j) for j in self.pairs], device=z.device)
        to = nn.functional.one_hot(place, len(self.used)).to(z.dtype)  # [P, used pairs]
        z_re, z_im = z.unsqueeze(1).chunk(2, dim=-1)
        re, im = re[:, None], im[:, None]
        return (re * z_re - im * z_im) @ to, (im * z_re + re * z_im) @ to


class Hla(LatentAttention):
    """RoPE inside the latents, config.HLA (a layer: config.HLA["layers"][layer]). Pair j of a head is the complex
    number (dim j) + i (dim j + E/2).
        z = W_k_r x, planes, plane p turned as pair k_pairs[p];  c_k = W_down_k x;  c_v = W_down_v x (unified: c_k)
        k = the lift of z, its coefficients A_k, beside k_n = W_up_k c_k, dims of the pairs from rope_pairs on
        q = q_proj x, or the lift of W_down_q x: rotated where it meets the lift of z, not where it meets k_n
        v = W_up_v c_v
    Row: [z | c_k | c_v]. original: k = RoPE(W_up_k c_k), rotated when it is read, by its place in the cache.
    latent_literal: k = W_up_k z with z = W_down_k x turned, and q likewise.
    """

    def __init__(self, config, layer_idx, rotary, qkv_bias=False):
        super().__init__(config, layer_idx)
        layer, D, V = config.HLA["layers"][layer_idx], config.hidden_size, self.K * self.E
        self.rope, self.first = config.HLA["rope"], config.HLA["rope_pairs"]
        self.rank_k, self.rank_v = layer.get("rank_k", 0), layer["rank_v"]
        self.k_pairs, self.q_pairs = layer.get("k_pairs", []), layer.get("q_pairs", [])
        self.lifts = self.rope not in ("original", "latent_literal")
        self.rotary = (rotary,)  # in a tuple, so that it is not a part of this module
        self.o_proj = nn.Linear(self.H * self.E, D, bias=False)
        self.W_up_v = nn.Linear(self.rank_v, V, bias=qkv_bias)
        if self.rope != "unified":
            self.W_down_v = nn.Linear(D, self.rank_v, bias=False)
        if self.rank_k:
            self.W_down_k = nn.Linear(D, self.rank_k, bias=False)
            lifted = self.K * (self.E - 2 * self.first) if self.lifts else V
            self.W_up_k = nn.Linear(self.rank_k, lifted, bias=qkv_bias)
        self.add_planes(config, layer, qkv_bias)

    def add_planes(self, config, layer, bias):
        D, g, G = config.hidden_size, config.HLA.get("head_block", 0), self.num_key_value_groups

        def lift(side, heads, heads_a_block):
            pairs = layer[side + "_pairs"]
            blocks = layer.get(side + "_blocks", [0] * len(pairs))
            rows = heads_a_block or heads
            for part in ("re", "im"):
                setattr(self, f"A_{side}_{part}", nn.Parameter(torch.zeros(rows, len(pairs))))
            return PlaneLift(pairs, blocks, heads, rows, heads_a_block)

        self.lift_q = self.lift_k = None
        if self.lifts and self.k_pairs:
            self.W_k_r = nn.Linear(D, 2 * len(self.k_pairs), bias=bias)
            self.lift_k = lift("k", self.K, g)
        if self.lifts and self.q_pairs:
            self.W_down_q = nn.Linear(D, 2 * len(self.q_pairs), bias=bias)
            self.lift_q = lift("q", self.H, g * G)
        elif layer.get("rank_q", 0):
            self.W_down_q = nn.Linear(D, layer["rank_q"], bias=False)
            self.W_up_q = nn.Linear(layer["rank_q"], self.H * self.E, bias=bias)
        else:
            self.q_proj = nn.Linear(D, self.H * self.E, bias=bias)

    @staticmethod
    def turned(z, pairs, position_embeddings):
        """Planes [.., T, 2P] by the angles of their own pairs."""
        cos, sin = (t[..., list(pairs) * 2] for t in position_embeddings)
        return z * cos + rotate_half(z) * sin

    def turned_by_index(self, x, first):
        """[B, heads, S, E], the first at position `first`: q . k depends on distances alone."""
        places = torch.arange(first, first + x.shape[2], device=x.device)[None]
        cos, sin = (t.unsqueeze(1) for t in self.rotary[0](x, places))
        return x * cos + rotate_half(x) * sin

    def plain_queries(self, x, position_embeddings):
        """[B, H, T, E]"""
        if hasattr(self, "q_proj"):
            return self.heads(self.q_proj(x))
        z = self.W_down_q(x)
        if self.lift_q is None:
            literal = self.rope == "latent_literal"
            return self.heads(self.W_up_q(self.turned(z, self.q_pairs, position_embeddings) if literal else z))
        re, im = self.lift_q(z, self.A_q_re, self.A_q_im)
        q = z.new_zeros(*re.shape[:3], self.E)
        q[..., self.lift_q.used], q[..., [j + self.E // 2 for j in self.lift_q.used]] = re, im
        return q

    def queries(self, x, position_embeddings, first):
        q = self.plain_queries(x, position_embeddings)
        if self.rope == "latent_literal":
            return q
        if self.rope == "original":
            return self.turned_by_index(q, first)
        re, im = q.chunk(2, dim=-1)
        parts = [re[..., self.first :], im[..., self.first :]] if self.rank_k else []
        if self.lift_k is not None:
            used = self.lift_k.used
            turned = torch.cat([re[..., used], im[..., used]], dim=-1)
            parts.insert(0, self.turned(turned, used, [t.unsqueeze(1) for t in position_embeddings]))
        return torch.cat(parts, dim=-1)

    def row(self, x, position_embeddings):
        parts = []
        if self.lift_k is not None:
            parts.append(self.turned(self.W_k_r(x), self.k_pairs, position_embeddings))
        if self.rank_k:
            c_k = self.W_down_k(x)
            parts.append(self.turned(c_k, self.k_pairs, position_embeddings) if self.rope == "latent_literal" else c_k)
        if self.rope != "unified":
            parts.append(self.W_down_v(x))
        return torch.cat(parts, dim=-1)

    def keys_and_values(self, row):
        P = len(self.k_pairs) if self.lift_k is not None else 0
        z, c_k, c_v = row[..., : 2 * P], row[..., 2 * P : 2 * P + self.rank_k], row[..., -self.rank_v :]
        v = self.heads(self.W_up_v(c_v))
        if not self.lifts:
            k = self.heads(self.W_up_k(c_k))
            return (self.turned_by_index(k, 0) if self.rope == "original" else k), v
        parts = list(self.lift_k(z, self.A_k_re, self.A_k_im)) if P else []
        if self.rank_k:
            parts.append(self.W_up_k(c_k).view(*row.shape[:2], self.K, -1).transpose(1, 2))
        return torch.cat(parts, dim=-1), v


def replace_attention(model, **flags):
    for layer_idx, layer in enumerate(model.model.layers):
        if getattr(model.config, "HLA", None):
            layer.self_attn = Hla(model.config, layer_idx, model.model.rotary_emb, **flags)
        else:
            layer.self_attn = Mla(model.config, layer_idx, **flags)
    model.post_init()


class LlatteLlamaConfig(LlamaConfig):
    pass


class LlatteQwen2Config(Qwen2Config):
    pass


class LlatteQwen3Config(Qwen3Config):
    pass


class LlatteLlamaForCausalLM(LlamaForCausalLM):
    config_class = LlatteLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        replace_attention(self)


class LlatteQwen2ForCausalLM(Qwen2ForCausalLM):
    config_class = LlatteQwen2Config

    def __init__(self, config):
        super().__init__(config)
        replace_attention(self, qkv_bias=True)


class LlatteQwen3ForCausalLM(Qwen3ForCausalLM):
    config_class = LlatteQwen3Config

    def __init__(self, config):
        super().__init__(config)
        replace_attention(self, qk_norm=True)
