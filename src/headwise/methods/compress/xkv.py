"""Keys and values of neighbouring layers by directions that they share: a token has one row of coefficients for all."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.attention.view import View
from headwise.knobs import Positive, PositiveShare
from headwise.methods.compress import Pair
from headwise.methods.projected import Projected
from headwise.registry import Card, register


@register("compress", "xkv")
@dataclass(frozen=True)
class XKV(Projected):
    """One singular value decomposition of the keys of `layers` layers, all heads side by side, and one of the values.

    Keys are taken as they were before the rotary embedding, which is applied again at reading.

    key, value: directions, as a share of the width of all heads of all layers together; 1/8 and 3/16 are the paper's
    512 and 768 for four layers of Llama-3.1-8B. 1 leaves keys or values as they are. layers: that are taken together.
    """

    key: PositiveShare = 0.125
    value: PositiveShare = 0.1875
    layers: Positive = 4

    card = Card(
        title="xKV: cross-layer SVD",
        paper="xKV: Cross-Layer SVD for KV-Cache Compression, arXiv 2503.18893, section 4",
        systems=(277,),
        frees_memory=True,
        chunking="approximate",
        forgets="what lies outside the strongest directions that neighbouring layers share in the prompt",
        deviations="the last `window` tokens stay as they are; directions are fitted to the first tokens that are "
        "projected (to the first chunk of a prompt in chunks), and new tokens are projected on them once the window "
        "has passed them, which the paper leaves as they are; a prompt too short to pay for its directions stays as "
        "it is; with an eviction, or in a tier, it is refused: heads that keep different tokens share no rows",
    )

    @property
    def not_of_latents(self) -> str | None:
        """Rows are of keys and of values, side by side."""
        return "writes keys and values in rows of their own; compress by low_rank"

    @property
    def span(self) -> int | None:
        """The `layers`."""
        return self.layers

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, then projected together."""
        return self.codecs("spanned", "spanned")

    def plain(self, view: View) -> Pair:
        """The projection by singular value decompositions in float64, all heads of the view side by side."""
        keys, values = view.keys.clone(), view.values.clone()
        due = view.positions[0] < view.seen - self.window
        positions, heads, turn = view.positions[:, due], len(view.heads), view.rope
        still = keys[:, due] if turn is None else turn.unrotate(keys[:, due], positions)
        both = self._projected(*(x.transpose(0, 1).flatten(1) for x in (still, values[:, due])))
        own, values[:, due] = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in both)
        keys[:, due] = own if turn is None else turn.rotate(own, positions)
        return keys, values
