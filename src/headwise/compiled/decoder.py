"""What a decoder layer is made of, found from its modules by their names and what they compute.

Llama and whatever is built as it is: three products or one for queries, keys and values, norms of these by head or as
a whole, a gated MLP of three products or two, norms before its halves, after them, or both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwise.compiled.linear import StreamedLinear
from headwise.compiled.packed import PackedLinear
from headwise.errors import UnsupportedModel
from headwise.kernels.native.layer import ACTIVATIONS, MANNERS, After, Before, Matrix, Norm
from headwise.kernels.packed import Packed
from headwise.seams.transformers.compiled import Parts
from headwise.seams.transformers.trial import Handed

# By the names of a layer's norms: that before attention, after it, before the MLP, after it.
NORMS: dict[frozenset[str], tuple[str | None, str | None, str | None, str | None]] = {
    frozenset(named for named in order if named): order
    for order in (
        ("input_layernorm", None, "post_attention_layernorm", None),
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    )
}
# Attributes that are numbers: of attention, of norms, of a layer.
NUMBERS = ("scaling", "attn_logit_softcapping", "softcap", "variance_epsilon", "eps", "residual_multiplier")
IDLE = (nn.Dropout, nn.Identity)  # parts that do nothing outside of training
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Slice:
    """Some outputs of a linear layer, or all."""

    linear: nn.Linear | PackedLinear
    first: int
    count: int

    def read(self) -> Matrix:
        """The weights as they are now."""
        own = slice(self.first, self.first + self.count)
        kept, bias = self.linear.weight, None if self.linear.bias is None else self.linear.bias.data[own]
        weight = kept.rows(own) if isinstance(kept, Packed) else kept.data[own]
        if len(weight) < self.count or (bias is not None and len(bias) < self.count):
            raise UnsupportedModel("a linear layer of other sizes than before")
        return Matrix(weight, bias)


@dataclass(frozen=True)
class FoundNorm:
    """A norm and how it is computed."""

    module: nn.Module
    eps: float
    manner: str

    def read(self) -> Norm:
        """The weight as it is now."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return Norm(weight.data, self.eps, self.manner)


@dataclass(frozen=True)
class DecoderParts(Parts):
    """The parts of a layer, by what they are for."""

    places: tuple[tuple[nn.Module, str, nn.Module], ...]
    numbers: tuple[tuple[nn.Module, str, object], ...]
    matrices: dict[str, Slice]  # q, k, v, o, gate, up, down
    norms: dict[str, FoundNorm]  # norm, q_norm, k_norm, after_attention, before_mlp, after_mlp; some of them
    widths: tuple[int, int]  # of a head's keys and values
    turned: bool
    activation: str
    factor: float

    def read(self) -> tuple[Before, After]:
        """The weights as they are now; UnsupportedModel where they do not fit together."""
        by = {name: one.read() for name, one in self.matrices.items()}
        norms = {name: one.read() for name, one in self.norms.items()}
        _check_sizes(by, norms, self.widths)
        first = norms.get("norm"), norms.get("q_norm"), norms.get("k_norm")
        before = Before(by["q"], by["k"], by["v"], *first, *self.widths, self.turned)
        around = norms.get("after_attention"), norms.get("before_mlp"), norms.get("after_mlp")
        after = After(by["o"], by["gate"], by["up"], by["down"], *around, self.activation, self.factor)
        return before, after


def _check_sizes(by: dict[str, Matrix], norms: dict[str, Norm], widths: tuple[int, int]) -> None:
    """Refuse weights that would be read past their ends. widths: of a head's keys and values."""
    hidden, inner = by["q"].weight.shape[1], by["gate"].weight.shape[0]
    shapes = {name: tuple(one.weight.shape) for name, one in by.items()}
    right = {
        **{name: (shapes[name][0], hidden) for name in ("q", "k", "v")},
        **{name: (inner, hidden) for name in ("gate", "up")},
        "o": (hidden, shapes["q"][0] // widths[0] * widths[1]),
        "down": (hidden, inner),
    }
    wrong = [name for name in right if shapes[name] != right[name]]
    for name, one in norms.items():
        width = len(one.weight)
        of = shapes[name[0]][0] if name in ("q_norm", "k_norm") else hidden
        if of % width or (width != hidden and name not in ("q_norm", "k_norm")):
            wrong.append(name)
    if wrong:
        raise UnsupportedModel(f"sizes of {', '.join(wrong)} that do not fit the others")


def decoder_parts(layer: nn.Module, handed: Handed) -> DecoderParts:
    """The parts of a layer that handed these queries [b, H, t, d], keys and values to attention; UnsupportedModel, with
    the reason, where it is built otherwise."""
    attention, mlp = (_child(layer, name) for name in ("self_attn", "mlp"))
    names = frozenset(name for name in _busy(layer) if name not in ("self_attn", "mlp"))
    if names not in NORMS:
        raise UnsupportedModel(f"norms and parts that are not known: {', '.join(sorted(names)) or 'none'}")
    norms = dict(zip(("norm", "after_attention", "before_mlp", "after_mlp"), NORMS[names], strict=True))
    found = {role: _norm(_child(layer, name), name) for role, name in norms.items() if name is not None}
    heads = [one.shape[1] * one.shape[3] for one in (handed.q, handed.k, handed.v)]
    matrices = _projections(attention, heads) | _gated(mlp)
    own = {
        name: _norm(child, f"self_attn.{name}")
        for name, child in _busy(attention).items()
        if name in ("q_norm", "k_norm")
    }
    if getattr(getattr(attention, "config", None), "clip_qkv", None) is not None:
        raise UnsupportedModel("queries, keys and values that are clipped")
    _refuse_loose(layer, attention, mlp)
    places = tuple(
        (parent, name, child)
        for parent in (layer, attention, mlp)
        for name, child in parent._modules.items()
        if child is not None
    )
    return DecoderParts(
        places,
        _numbers(layer, attention, *(one.module for one in (found | own).values())),
        matrices,
        found | own,
        (handed.k.shape[3], handed.v.shape[3]),
        bool(getattr(attention, "use_rope", True)),
        _activation(mlp),
        float(getattr(layer, "residual_multiplier", 1.0)),
    )


def _numbers(*modules: nn.Module) -> tuple[tuple[nn.Module, str, object], ...]:
    """The plain numbers that modules of a layer compute by."""
    return tuple((one, name, getattr(one, name)) for one in modules for name in NUMBERS if hasattr(one, name))


def _child(parent: nn.Module, name: str) -> nn.Module:
    child = parent._modules.get(name)
    if child is None:
        raise UnsupportedModel(f"no {name}")
    return child


def _busy(parent: nn.Module) -> dict[str, nn.Module]:
    """The children that do something."""
    return {name: child for name, child in parent.named_children() if type(child) not in IDLE}


def _refuse_loose(*modules: nn.Module) -> None:
    """Refuse weights that lie beside the parts, such as attention sinks."""
    loose = [
        name
        for module in modules
        for name, one in (*module._parameters.items(), *module._buffers.items())
        if one is not None
    ]
    if loose:
        raise UnsupportedModel(f"weights that are not known: {', '.join(loose)}")


def _linear(parent: nn.Module, name: str) -> nn.Linear | PackedLinear:
    child = _child(parent, name)
    if type(child) is nn.Linear or isinstance(child, StreamedLinear | PackedLinear):
        return child
    raise UnsupportedModel(f"{name} is a {type(child).__name__}, not a plain linear layer")


def _whole(linear: nn.Linear | PackedLinear) -> Slice:
    return Slice(linear, 0, linear.weight.shape[0])


def _split(linear: nn.Linear | PackedLinear, names: tuple[str, ...], counts: list[int]) -> dict[str, Slice]:
    """A linear layer that is several in one, one after the other."""
    if sum(counts) != linear.weight.shape[0]:
        raise UnsupportedModel(f"one product of {linear.weight.shape[0]} outputs that is not the sum of {counts}")
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    return {name: Slice(linear, *place) for name, place in zip(names, zip(firsts, counts, strict=True), strict=True)}


def _projections(attention: nn.Module, counts: list[int]) -> dict[str, Slice]:
    """q, k, v, which have so many outputs, and o."""
    names = set(_busy(attention)) - {"q_norm", "k_norm"}
    if names == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        found = {name: _whole(_linear(attention, f"{name}_proj")) for name in "qkvo"}
    elif names == {"qkv_proj", "o_proj"}:
        found = _split(_linear(attention, "qkv_proj"), ("q", "k", "v"), counts)
        found["o"] = _whole(_linear(attention, "o_proj"))
    else:
        raise UnsupportedModel(f"parts of attention that are not known: {', '.join(sorted(names))}")
    if [found[name].count for name in "qkv"] != counts:
        raise UnsupportedModel("products that are not those of the heads")
    return found


def _gated(mlp: nn.Module) -> dict[str, Slice]:
    """gate, up and down."""
    names = set(_busy(mlp)) - {"act_fn", "activation_fn"}
    if names == {"gate_proj", "up_proj", "down_proj"}:
        return {name: _whole(_linear(mlp, f"{name}_proj")) for name in ("gate", "up", "down")}
    if names == {"gate_up_proj", "down_proj"}:
        both, down = _linear(mlp, "gate_up_proj"), _linear(mlp, "down_proj")
        half = both.weight.shape[0] // 2
        return _split(both, ("gate", "up"), [half, half]) | {"down": _whole(down)}
    raise UnsupportedModel(f"parts of the MLP that are not known: {', '.join(sorted(names))}")


def _activation(mlp: nn.Module) -> str:
    """Which of ACTIVATIONS the MLP's is."""
    function: Any = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if function is None:
        raise UnsupportedModel("an MLP without an activation that is known")
    x = torch.linspace(-8, 8, 161)
    for name in ACTIVATIONS:
        if torch.allclose(function(x), FORMULAS[name](x), rtol=1e-5, atol=1e-6):
            return name
    raise UnsupportedModel(f"activation {type(function).__name__}")


def _norm(module: nn.Module, name: str) -> FoundNorm:
    """How a norm is computed, found by what it makes of random numbers."""
    weight = module._parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    alone = [*module._parameters, *module._buffers, *module._modules] == ["weight"]
    if weight is None or weight.dim() != 1 or not isinstance(eps, float) or not alone:
        raise UnsupportedModel(f"{name} is not a root-mean-square norm")
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).mul(0.1).to(weight)
    own = module(x).float()
    away = {manner: float((_normed(x, weight, eps, manner) - own).norm()) for manner in MANNERS}
    best = min(away, key=away.__getitem__)
    if not away[best] <= 2e-3 * float(own.norm()):
        raise UnsupportedModel(f"{name} is not a root-mean-square norm of a manner that is known")
    return FoundNorm(module, eps, best)


def _normed(x: Tensor, weight: Tensor, eps: float, manner: str) -> Tensor:
    """x [n, width] normalised in one of MANNERS."""
    plain = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if manner == "rounded":
        return (plain.to(x.dtype) * weight).float()
    return (plain * (weight.float() + (manner == "plus one"))).to(x.dtype).float()
