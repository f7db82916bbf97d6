"""Values say which keys are read: the same few for every query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.errors import RecipeError
from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape, repeated
from headwise.layers.norms import wide
from headwise.layers.patterns import Field, Lone, Pattern


@layer_part("pattern", "dynamic_mask")
@dataclass(frozen=True)
class DynamicMask(Pattern):
    """A query reads the keys whose values say most, and what these say is added to its scores.

    width: keys a query reads. A key that is not among the first so many will not be again, so no more are held.
    """

    width: Positive = 2048
    forgets: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Dynamic mask attention",
        "Trainable Dynamic Mask Sparse Attention, 2508.02124, section 3",
        "a head keeps the tokens whose values it finds worth keeping",
        "b_j = a_h softplus(w_h . v_j); w_i = softmax over the width largest b_j, j <= i, of s_ij + b_j",
        systems=(273,),
        state="constant",
        equals=(
            Limit(
                "a = 0 and a width as long as the text: plain attention",
                "heads",
                lambda s: s.with_learned(dynamic_scale=torch.zeros_like(s.learned["dynamic_scale"])),
                of="dynamic_mask(64)",
            ),
            Limit(
                "a = 0: a span",
                "local(3)",
                lambda s: s.with_learned(dynamic_scale=torch.zeros_like(s.learned["dynamic_scale"])),
                of="dynamic_mask(3)",
            ),
        ),
        deviations="what values say is a logarithm, as the paper's text has it, where newer code adds its exponential; "
        "each head of values is asked alone, where the code asks all of them for each; of equals the newest is read; "
        "blocks that are wholly masked are computed. a is 0 before training, as in the code",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        heads = shape.value_heads
        if shape.key_heads != heads:
            raise RecipeError(
                f"'{self.name}' gives keys up by what their values say, so that there must be as many heads of both; "
                f"here are {shape.key_heads} of keys and {heads} of values: use another projection, such as gqa"
            )
        return {
            "dynamic_scale": torch.zeros(heads),
            "dynamic_w": torch.randn(heads, shape.value_dim) * shape.value_dim**-0.5,
        }

    def _says(self, v: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """What values [batch, heads, keys, dim] say, [batch, heads, keys]."""
        scale, w = (repeated(wide(learned[name])[None], v.shape[1])[0] for name in ("dynamic_scale", "dynamic_w"))
        return scale[:, None] * F.softplus(torch.einsum("bhkd,hd->bhk", wide(v), w))

    def seen(self, field: Field) -> Tensor:
        order = ranked(self._says(field.v, field.block.learned))
        seen = field.block.seen.expand(-1, order.shape[1], -1, -1)
        order = order[:, :, None].expand_as(seen)
        first = seen.gather(-1, order)
        first = first & (first.cumsum(-1) <= self.width)
        return torch.zeros_like(seen).scatter(-1, order, first)

    def weights(self, field: Field) -> Tensor:
        return field.weights(self.seen(field), self._says(field.v, field.block.learned)[:, :, None])

    def _alone(self, lone: Lone) -> Tensor:
        own = lone.row.learned
        return own["dynamic_scale"] * (1 + (lone.v @ own["dynamic_w"]).exp()).log()

    def reads(self, lone: Lone) -> Sequence[int]:
        says = self._alone(lone).tolist()
        return sorted(sorted(range(len(says)), key=lambda j: (-says[j], -j))[: self.width])

    def alone(self, lone: Lone) -> Tensor:
        places = self.reads(lone)
        return lone.weigh(places, self._alone(lone)[places])

    def kept(self, places: Tensor, last: Tensor, values: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        says = self._says(values, learned).masked_fill(places < 0, float("-inf"))
        first = ranked(says)[..., : self.width]
        return torch.zeros_like(places, dtype=torch.bool).scatter(-1, first, True)

    def stored(self, tokens: int, key_heads: int) -> int:
        return min(tokens, self.width)


def ranked(says: Tensor) -> Tensor:
    """The keys of `says [..., keys]` from the largest down, of equals the last first."""
    return says.shape[-1] - 1 - says.flip(-1).sort(dim=-1, descending=True, stable=True).indices
