"""A compact Llama in plain PyTorch whose state dict loads into transformers' LlamaForCausalLM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recipe import Architecture


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width] in x's dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_tables(arch: Architecture, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [length, head_dim] float32, of positions 0 .. length - 1."""
    steps = torch.arange(0, arch.head_dim, 2, dtype=torch.float32, device=device) / arch.head_dim
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * arch.rope_theta**-steps
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves. x [b, heads, t, d]; cos, sin [t, d]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-high, low), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped queries; one matrix product for q, k and v."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.q_proj = nn.Linear(arch.hidden, arch.heads * arch.head_dim, bias=False)
        self.k_proj = nn.Linear(arch.hidden, arch.kv_heads * arch.head_dim, bias=False)
        self.v_proj = nn.Linear(arch.hidden, arch.kv_heads * arch.head_dim, bias=False)
        self.o_proj = nn.Linear(arch.heads * arch.head_dim, arch.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [b, t, hidden] -> [b, t, hidden]."""
        a = self.arch
        b, t, _ = x.shape
        joined = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(x, joined).view(b, t, a.heads + 2 * a.kv_heads, a.head_dim).transpose(1, 2)
        q, k, v = torch.split(heads, [a.heads, a.kv_heads, a.kv_heads], dim=1)
        group = a.heads // a.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(b, t, -1))
        return mixed


class MLP(nn.Module):
    """SwiGLU feed-forward; one matrix product for gate and up."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(arch.hidden, arch.intermediate, bias=False)
        self.up_proj = nn.Linear(arch.hidden, arch.intermediate, bias=False)
        self.down_proj = nn.Linear(arch.intermediate, arch.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, t, hidden] -> [b, t, hidden]."""
        joined = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(x, joined).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.self_attn = Attention(arch)
        self.mlp = MLP(arch)
        self.input_layernorm = RMSNorm(arch.hidden, arch.norm_eps)
        self.post_attention_layernorm = RMSNorm(arch.hidden, arch.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [b, t, hidden] -> [b, t, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Embedding, layers, last norm (transformers' `model.*`)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab, arch.hidden)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.layers))
        self.norm = RMSNorm(arch.hidden, arch.norm_eps)

    def attentions(self) -> list[Attention]:
        """The attention of every layer."""
        return [layer.self_attn for layer in self.layers if isinstance(layer, Layer)]


class Network(nn.Module):
    """The embedded model. The output matrix is its own, so that planting can tell reading from predicting."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.model = Body(arch)
        self.lm_head = nn.Linear(arch.hidden, arch.vocab, bias=False)
        self._tables: tuple[Tensor, Tensor] | None = None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = arch.init_std / (2 * arch.layers) ** 0.5 if deep else arch.init_std
                nn.init.normal_(parameter, 0.0, std)

    def hidden(self, ids: Tensor) -> Tensor:
        """ids [b, t] -> the last norm's output [b, t, hidden]."""
        length = ids.shape[1]
        if length > self.arch.max_positions:
            raise ValueError(f"{length} tokens given, but the model has {self.arch.max_positions} positions")
        if self._tables is None or self._tables[0].shape[0] != length or self._tables[0].device != ids.device:
            self._tables = rope_tables(self.arch, length, ids.device)
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, *self._tables)
        out: Tensor = self.model.norm(x)
        return out

    def forward(self, ids: Tensor) -> Tensor:
        """ids [b, t] -> logits [b, t, vocab]."""
        out: Tensor = self.lm_head(self.hidden(ids))
        return out


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [n, hidden], weight [vocab, hidden], targets [n] -> (nll [n] float32, hit [n] bool)."""
    logits = F.linear(hidden, weight)
    nll = F.cross_entropy(logits.float(), targets, reduction="none")
    return nll, logits.detach().argmax(-1) == targets
