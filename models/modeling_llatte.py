"""Multi-head latent attention (MLA) converted from grouped-query attention, for transformers:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Written by llatte beside the weights. Only self-attention differs from Llama (Qwen2: q, k, v biases; Qwen3: q and k
norms, which cannot be factored). RoPE turns a few pairs of each kv head,
config.RoPE["kept_pairs"][layer][kv head] (pair j is the dims j and j + E/2), and
    k_r = W_k_r x                    the dims that keep RoPE; per head: the first dims of its pairs, then the second
    c_k = W_down_k x                 and c_v = W_down_v x where v has a latent of its own, else c_v = c_k
    k_c = W_up_k c_k,  v = W_up_v c_v    k_c: the other dims of each head, ascending
A side that is not factored has no W_down and W_up acts on x; a matrix without rows is left out; config.SVD["method"] 0
keeps k_proj and v_proj.
What is cached for a token is ONE row, [k_r rotated | latents] (an unfactored side: k_c or v itself); k and v of all
tokens are rebuilt from the rows when they are read. The row is the cache's "key", its "value" is empty.

    B batch  T new tokens  S all tokens  D model width  H query heads  K kv heads  E head width  N dims with RoPE
"""
import torch
from torch import nn
from transformers import (LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward, rotate_half


class LatentAttention(nn.Module):
    def __init__(self, config, layer_idx, qkv_bias=False, qk_norm=False):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.H, self.K = config.num_attention_heads, config.num_key_value_heads
        self.E = getattr(config, "head_dim", None) or config.hidden_size // self.H
        self.num_key_value_groups = self.H // self.K
        self.scaling = self.E**-0.5
        self.method = config.SVD["method"]
        self.kept_dims = []  # of each kv head, in the order of W_k_r's rows
        for pairs in config.RoPE["kept_pairs"][layer_idx]:
            self.kept_dims.append(list(pairs) + [j + self.E // 2 for j in pairs])
        self.N = sum(map(len, self.kept_dims))
        self.tables = {}  # by device; buffers would have to survive loading
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

    def heads(self, x):
        """[B, S, heads E] -> [B, heads, S, E]"""
        return x.view(*x.shape[:2], -1, self.E).transpose(1, 2)

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

    def forward(self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **kwargs):
        cache = past_key_values if past_key_values is not None else kwargs.pop("past_key_value", None)
        q = self.rotate(self.q_norm(self.heads(self.q_proj(hidden_states))), position_embeddings)
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


def replace_attention(model, **flags):
    for layer_idx, layer in enumerate(model.model.layers):
        layer.self_attn = LatentAttention(model.config, layer_idx, **flags)
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
