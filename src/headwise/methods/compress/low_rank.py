"""Keys and values of a head as a few coefficients over directions of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headwise.attention.view import View
from headwise.methods.compress import Pair
from headwise.methods.projected import Projected
from headwise.registry import Card, register


@register("compress", "low_rank")
@dataclass(frozen=True)
class LowRank(Projected):
    """The strongest singular directions of the prompt's keys and values, by KV head, and each token's part in them.

    keys: projected as they were before the rotary embedding, which is applied again at reading ("unrotated"), or after.
    """

    keys: Literal["unrotated", "rotated"] = "unrotated"

    card = Card(
        title="Low rank by head",
        paper="SVDq: 1.25-bit and 410x Key Cache Compression for LLM Attention, arXiv 2502.15304; keys before the "
        "rotary embedding as in ShadowKV, arXiv 2410.21465",
        frees_memory=True,
        chunking="approximate",
        forgets="what lies outside the strongest directions of a head's prompt",
        deviations="equal bits for all directions, evened out before rounding, instead of more bits for strong ones; "
        "values are projected like keys; directions are fitted to the first tokens that are projected (to the first "
        "chunk of a prompt in chunks); keys are taken as they are where the rotation is not known",
    )

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, then projected."""
        return self.codecs("unrotated" if self.keys == "unrotated" else "lowrank", "lowrank")

    def plain(self, view: View) -> Pair:
        """The projection by a singular value decomposition in float64, one head at a time."""
        keys, values = view.keys.clone(), view.values.clone()
        for head, due in enumerate(view.positions < view.seen - self.window):
            positions = view.positions[head, due]
            turn = view.rope if self.keys == "unrotated" else None
            still = keys[head, due] if turn is None else turn.unrotate(keys[head, due], positions)
            own, values[head, due] = self._projected(still, values[head, due])
            keys[head, due] = own if turn is None else turn.rotate(own, positions)
        return keys, values
