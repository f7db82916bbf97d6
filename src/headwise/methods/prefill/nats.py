"""A prompt reads what the types of Neural Attention Search let each of its queries see."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Until
from headwise.knobs import Positive
from headwise.methods import roles
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "nats_prefill")
@dataclass(frozen=True)
class NAtSPrefill(Prefill):
    """Every token is seen as long as its type says: for good, up to the next global token, or by `window` queries.

    window: in tokens. stride: without a calibration of types, one token in so many is global.
    """

    window: Positive = 256
    stride: Positive = 64

    needs = roles.NEEDS | {"query_positions"}
    calibrates = roles.CALIBRATES
    card = Card(
        title="NAtS's prefill",
        paper="Neural Attention Search, arXiv 2502.13251, section 3",
        systems=(175,),
        phase="prefill",
        calibrated=True,
        forgets="nothing is dropped, but local and near tokens are not read once their time is over",
        deviations="the head reads the key before rotation, where the paper's reads the layer's input; without a "
        "calibration (`nats_prefill.head`) types go by position",
    )

    def where(self, view: View) -> Until:
        """Each key up to the last query that sees it."""
        last = roles.last_seen(roles.logits(view, self.stride).argmax(-1), view.positions, self.window)
        return Until(last - (view.seen - view.count))  # queries are counted as stored, the latest tokens

    def plain(self, view: View) -> Blocks:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        places, asking = view.positions.tolist(), view.query_positions.tolist()
        rows = []
        for head, own in enumerate(places):
            until = roles.plain_last_seen(view, head, self.stride, self.window)
            rows.append([[p <= i <= last for p, last in zip(own, until, strict=True)] for i in asking])
        return Blocks.from_map(1, torch.tensor(rows))
