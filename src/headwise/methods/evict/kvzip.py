"""What the model looks at while it repeats the prompt is what it needs to answer anything about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.byproducts import column_peaks
from headwise.attention.view import View
from headwise.forms import Causal
from headwise.knobs import Ids
from headwise.methods.rehearsal import Rehearsal
from headwise.methods.reread import LEAST, Reread
from headwise.registry import Card, register


@register("evict", "kvzip")
@dataclass(frozen=True)
class KVzip(Reread):
    """When a prompt has been read, the model reads it once more, piece by piece, after all of it; a token's score is
    the most attention that any query of that gives it. No question is looked at, so the cache serves any.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    piece: tokens that are read again at once, and compete for attention. ask, resume, then: token ids of the model's
    tokenizer that ask for it, such as those of "Repeat the previous context exactly.": before the first piece, before
    every other one, and right before each; none by default.
    """

    ask: Ids = ""
    resume: Ids = ""
    then: Ids = ""

    card = Card(
        title="KVzip",
        paper="KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction, arXiv 2505.23416",
        frees_memory=True,
        chunking="exact",
        forgets="prompt tokens that the model does not need to write the prompt down again",
        deviations="holds all of the prompt until it has been read again, which costs about as much as reading it did; "
        "nothing asks the model to repeat unless `ask`, `resume` and `then` give the tokens of the paper's "
        "instruction and of the chat template; the template's own tokens are read again with the others; every head "
        "keeps the same number (with `| ada(0)` a layer's heads compete; the paper lets all layers compete); what the "
        "model writes is not read again and stays as the latest tokens; no normalisation (KVzip+)",
    )

    @property
    def rehearsal(self) -> Rehearsal:
        """The prompt in pieces, after the given ids."""
        ask, resume, then = (tuple(map(int, ids.split())) for ids in (self.ask, self.resume, self.then))
        return Rehearsal(self.piece, ask, resume, then)

    def rehearse(self, view: View, told: range) -> torch.Tensor:
        """The score of each token of `told`, above 0: [h, told, 1]."""
        rivals, own = self._rivals(view, told)
        peaks = column_peaks(view.queries, rivals, Causal(), view.scoring)[..., own : own + len(told)]
        return peaks.amax(1).clamp(min=LEAST)[..., None]

    def _rivals(self, view: View, told: range) -> tuple[torch.Tensor, int]:
        """Keys of what competes for attention: sinks, the tokens of `told` and those read now. How many come before
        those of `told`."""
        read = view.positions >= view.seen - view.queries.shape[2]
        among = (view.positions >= told.start) & (view.positions < told.stop)
        sinks = view.positions < min(self.sinks, told.start)
        keys = view.keys.masked_select((read | among | sinks)[..., None])
        return keys.view(len(view.heads), -1, view.keys.shape[-1]), int(sinks[0].sum())

    def plain_rehearsal(self, view: View, told: range) -> torch.Tensor:
        """`rehearse`, one query and one softmax at a time."""
        found = torch.full((len(view.heads), len(told), 1), LEAST)
        for h, g, i in torch.cartesian_prod(*(torch.arange(n) for n in view.queries.shape[:3])).tolist():
            at = view.positions[h].tolist()
            stored = view.count - view.queries.shape[2]
            rivals = [
                j for j, place in enumerate(at)
                if place < min(self.sinks, told.start) or place in told or stored <= j <= stored + i
            ]  # fmt: skip
            query, keys = view.queries[h, g, i].double(), view.keys[h].double()
            weights = torch.stack([query @ keys[j] * view.scale for j in rivals]).softmax(0)
            for j, weight in zip(rivals, weights.tolist(), strict=True):
                if at[j] in told and j < stored:
                    found[h, at[j] - told.start, 0] = max(float(found[h, at[j] - told.start, 0]), weight)
        return found
