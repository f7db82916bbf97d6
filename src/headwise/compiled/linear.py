"""Linear layers that stream their weights in steps of a few rows.

A decoding step reads every weight once for one row; torch's bfloat16 product for one row falls well short of
that (`benchmarks/step.py`). The native kernel streams the weights as they lie; prompts keep torch's matrix product.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from headwise.cache.pages import HUGE, copied
from headwise.kernels import ops
from headwise.kernels.native.library import unusable
from headwise.kernels.native.linear import TYPES


class StreamedLinear(nn.Linear):
    """An `nn.Linear` with the same parameters; a few rows without gradients take the native kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` -> `[..., out_features]`."""
        return ops.linear(x, self.weight, self.bias)


def stream_linears(model: nn.Module) -> int:
    """Let the model's linear layers stream their weights in decoding steps; returns how many do now.

    Replaces every plain `nn.Linear` on the CPU, in bfloat16 or float32, by a `StreamedLinear` around the same
    parameters, whose large weights move, one at a time, to memory that streams faster. Results are those of torch up to
    the rounding of one sum. Where there are no native kernels all stay as they are, with a warning.
    """
    if why := unusable():
        warnings.warn(f"linear layers keep torch's product: {why}", stacklevel=2)
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype in TYPES and child.weight.device.type == "cpu"
    ]
    for parent, name, child in found:
        if child.weight.is_contiguous():
            with torch.device("meta"):
                streamed = StreamedLinear(child.in_features, child.out_features, child.bias is not None)
            streamed.weight, streamed.bias = child.weight, child.bias
            if child.weight.nbytes >= HUGE:
                child.weight.data = copied(child.weight.data)
            streamed.train(child.training)
            setattr(parent, name, streamed)
    return sum(isinstance(one, StreamedLinear) for one in model.modules())
