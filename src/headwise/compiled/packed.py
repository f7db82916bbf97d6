"""Linear layers whose weights are kept in 8 or 4 bits: half or a third of their bytes.

What is lost is measured on one's own text: `benchmarks/packed_weights.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from headwise.errors import HeadwiseError
from headwise.kernels import ops
from headwise.kernels.packed import Packed, pack, refuse
from headwise.seams.transformers.cache import PreTrainedModel

WEIGHTS = {"int8": 8, "int4": 4}  # what weights may be kept as, by its name, and its bits


def check_weights(word: str) -> None:
    """HeadwiseError for what weights are never kept as."""
    if word not in WEIGHTS:
        raise HeadwiseError(f"weights of '{word}' are not known; give one of {', '.join(WEIGHTS)}, or leave it out")


class PackedLinear(nn.Module):
    """A linear layer of packed weights, which are no parameters: it answers, and does not learn."""

    codes: Tensor
    scale: Tensor
    low: Tensor | None

    def __init__(self, weight: Packed, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        for name in ("codes", "scale", "low"):
            self.register_buffer(name, getattr(weight, name))
        self.bias = bias

    @property
    def weight(self) -> Packed:
        """The weights as they are stored."""
        return Packed(self.codes, self.scale, self.low, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` -> `[..., out_features]`."""
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        bits = 8 if self.low is None else 4
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={bits}"

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        """Refuse another type: codes stay whole numbers and scales float16."""
        if fn(self.scale[:0]).dtype != self.scale.dtype:
            raise HeadwiseError("packed weights keep their type; turn the model to another one before it is packed")
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise HeadwiseError(f"the weights of {prefix.rstrip('.')} are packed; save the model before it is packed")


def pack_linears(model: nn.Module, weights: str) -> int:
    """Pack the weights of a model's linear layers in place; returns how many are packed now.

    weights: "int8" or "int4"; the output embedding has 8 bits in both, as files of 4 bits have more there too: what is
    lost in it is lost in every token's probabilities. Every `nn.Linear` on the CPU, in bfloat16 or float32, is
    replaced, but for those whose rows are not whole groups of 32, which stay as they are. Weights that an embedding
    shares are packed too and stay there as they were. HeadwiseError for any other word.
    """
    check_weights(weights)
    last = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and not refuse(child.weight, WEIGHTS[weights])
    ]
    for parent, name, child in found:
        packed = PackedLinear(pack(child.weight.data, 8 if child is last else WEIGHTS[weights]), child.bias)
        setattr(parent, name, packed.train(child.training))
    return sum(isinstance(one, PackedLinear) for one in model.modules())
