"""Every operation in plain torch, on any device and with gradients: what all other backends are compared with."""

from torch import Tensor, nn

from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.packed import Packed
from headwise.kernels.reference import attention, byproducts, choice, integers


def _takes_all(*args: object) -> list[str]:
    """No reasons to refuse."""
    return []


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
    """`x [..., inner]` times `weight [outer, inner]` transposed, plus `bias [outer]`; packed weights are unpacked."""
    return nn.functional.linear(x, weight if isinstance(weight, Tensor) else weight.dense(), bias)


BACKENDS.add(
    "reference",
    Backend(
        "reference",
        100,
        attention.available,
        {
            "attend": Kernel(_takes_all, attention.attend),
            "column_mass": Kernel(_takes_all, byproducts.column_mass),
            "column_peaks": Kernel(_takes_all, byproducts.column_peaks),
            "group_mass": Kernel(_takes_all, byproducts.group_mass),
            "row_lse": Kernel(_takes_all, byproducts.row_lse),
            "row_entropy": Kernel(_takes_all, byproducts.row_entropy),
            "block_maxima": Kernel(_takes_all, byproducts.block_maxima),
            "estimated_maxima": Kernel(_takes_all, byproducts.estimated_maxima),
            "best_scores": Kernel(_takes_all, byproducts.best_scores),
            "choose_blocks": Kernel(_takes_all, choice.choose_blocks),
            "encode": Kernel(_takes_all, integers.encode),
            "decode": Kernel(_takes_all, integers.decode),
            "linear": Kernel(_takes_all, linear),
        },
    ),
)
