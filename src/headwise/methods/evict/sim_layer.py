"""Lazy layers, whose heads look at the beginning and at what is near, keep just that; the others keep everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.knobs import Budget, Positive, Share
from headwise.methods.evict import Evict, Latest
from headwise.observe import Found, Material, Observer, Progress, Subject, measure
from headwise.registry import CalibrationTensor, Card, register

SINKS = 4  # first tokens whose attention makes a layer lazy, as in the released code
FIRST, LAST = 4, 17  # powers of two: from 16 tokens to 131072 that are near
QUERIES = 32  # last ones of a document that tell


@register("evict", "sim_layer")
@dataclass(frozen=True)
class SimLayerKV(Latest):
    """A layer is lazy where the last tokens of a text give more than `threshold` of their attention to its first four
    and the `near` ones before them, over all heads. Its heads keep sinks and, of the rest, the latest tokens.

    budget: share of the tokens or number of tokens per head of a lazy layer. sinks, recent: tokens always kept.
    near: tokens before the last ones whose attention counts, to a power of two rounded down, 16 or more. threshold: the
    attention above which a layer is lazy; 0.9 is the paper's for Llama 3, 0.8 for Mistral, 0.85 for Qwen.
    """

    budget: Budget = 1028
    near: Positive = 1024
    threshold: Share = 0.9

    calibrates = {
        "near": CalibrationTensor(
            "n", "attention of a layer to first tokens and the nearest 16, 32, 64, ...", "laziness"
        ),
    }
    card = Card(
        title="SimLayerKV",
        paper="SimLayerKV: A Simple Framework for Layer-Level KV Cache Reduction, arXiv 2410.13846",
        calibrated=True,
        frees_memory=True,
        chunking="exact",
        forgets="in lazy layers, everything between sinks and the latest tokens",
        deviations="which layers are lazy is measured once of a model, on texts longer than `near` (`headwise "
        "calibrate`), and not anew for every prompt, so that bytes are known before; measured on the prompt itself, by "
        "its last token, layers and tokens are those of NVIDIA's kvpress; without a calibration every layer is lazy",
    )

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Evict | None:
        """Nothing is evicted from layers that give `near` tokens [layers, KV heads, n] no more than the threshold."""
        if (found := calibration.get("sim_layer.near")) is None:
            return self
        place = min(max(0, self.near.bit_length() - 1 - FIRST), found.shape[2] - 1)
        return self if float(found[layer, head, place]) > self.threshold else None


@dataclass(frozen=True, eq=False)
class _Nearness(Observer):
    """Of a document's last `last` queries: the attention to sinks and near tokens [powers], by layer."""

    needs = frozenset({"keys", "queries"})
    last: int
    given: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def look(self, view: View) -> None:
        if not self.ends(view):
            return
        last = min(self.last, view.queries.shape[2])
        weights = torch.cat([view.subset((i,)).observe(last) for i in range(len(view.heads))]).mean((0, 1))
        before = view.query_positions[-last:, None] - view.positions[0]
        near = 2 ** torch.arange(FIRST, LAST + 1, device=before.device)[:, None, None]
        counts = (before > 0) & ((before <= near) | (view.positions[0] < SINKS))
        self.given.setdefault(view.layer, []).append((weights * counts).sum(-1).mean(-1))


def laziness(subject: Subject, documents: Sequence[torch.Tensor], last: int = QUERIES) -> torch.Tensor:
    """What the last queries of texts give to a layer's first tokens and to the nearest 2^4, ..., 2^17, on average over
    queries and heads, the same for all heads of a layer: [layers, kv_heads, 14]. A query's own token does not count.

    documents: ids [1, n] each, of the kind the model will read. Sliding layers, where nothing is evicted, get zeros.
    """
    subject.observe(seen := _Nearness(last), documents)
    found = torch.zeros(*subject.geometry.by_head, LAST + 1 - FIRST)
    for layer, given in seen.given.items():
        found[layer] = torch.stack(given).mean(0)
    return found


@measure("laziness", cost=8)
def measured_laziness(material: Material, progress: Progress) -> Found:
    """How much of their attention layers give to first and near tokens (SimLayerKV)."""
    return {}, {"sim_layer.near": laziness(material.subject, material.documents)}
