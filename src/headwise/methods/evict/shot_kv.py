"""Worked examples are kept whole or not at all: half a solution teaches nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive, Word
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "shot_kv")
@dataclass(frozen=True)
class ShotKV(Evict):
    """A marked example has one score, the mean attention of its tokens; the best examples stay as wholes, in order.

    Scores are means over the heads of a layer, so that they keep the same examples. A token outside the marks is judged
    alone. What the prompt left stays while decoding; generated tokens leave by their own attention.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries whose attention counts, in tokens. kind: the kind of the marks that are examples.
    """

    window: Positive = 32
    kind: Word = "example"

    notes = 1
    needs = frozenset({"keys", "queries", "notes", "marks"})
    card = Card(
        title="ShotKV",
        paper="Can LLMs Maintain Fundamental Abilities under KV Cache Compression?, arXiv 2502.01941, section 4",
        systems=(163,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="whole examples, the least attended first; all of them where none fits the budget. Without marks it "
        "ranks single tokens",
        deviations="each layer chooses by its own attention where the paper adds up all layers; the attention of the "
        "last queries, which the paper leaves open; heads that hold different numbers of tokens (under ada) choose "
        "apart; one budget for prompt and generated tokens",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def note(self, view: View) -> torch.Tensor:
        """1 for a token that a prompt left [h, n, 1]."""
        return (view.notes[..., :1] + (view.phase == "prefill")).clamp(max=1)

    def score(self, view: View) -> torch.Tensor:
        """Mean attention [h, n] of each token's example; +inf for a prompt's tokens while decoding, and for an example
        that is still coming in."""
        votes = view.observe(min(self.window, view.queries.shape[2])).mean(dim=(1, 2))
        units = self._units(view)
        total, size = (votes.new_zeros(view.seen).index_add(0, units.flatten(), x.flatten())
                       for x in (votes, torch.ones_like(votes)))  # fmt: skip
        score = (total / size)[units]
        if view.phase == "decode":
            score = score.masked_fill(view.notes[..., 0] > 0, torch.inf)
        for mark in view.marks:
            if mark.kind == self.kind and mark.end > view.seen:
                score = score.masked_fill(view.positions >= mark.start, torch.inf)
        return score

    def whole(self, view: View, chosen: torch.Tensor) -> torch.Tensor:
        """The chosen tokens without those of examples that were chosen in part."""
        units = self._units(view)
        missing = torch.zeros(len(view.heads), view.seen, dtype=torch.int64, device=units.device)
        return chosen & (missing.scatter_add(1, units, (~chosen).long()).gather(1, units) == 0)

    def _units(self, view: View) -> torch.Tensor:
        """The first position [h, n] of each token's example, its own outside of examples."""
        first = torch.arange(view.seen, device=view.positions.device)
        for mark in view.marks:
            if mark.kind == self.kind:
                first[mark.start : mark.end] = mark.start
        return first[view.positions.long()]

    def plain(self, view: View) -> torch.Tensor:
        """The same, example by example."""
        heads, positions = range(len(view.heads)), view.positions.tolist()
        window = min(self.window, view.queries.shape[2])
        votes = [view.subset((h,)).observe(window)[0].double().mean((0, 1)).tolist() for h in heads]
        score = torch.zeros(view.positions.shape, dtype=torch.float64)
        examples = [range(mark.start, mark.end) for mark in view.marks if mark.kind == self.kind]
        for h in heads:
            for j, place in enumerate(positions[h]):
                example = next((one for one in examples if place in one), range(place, place + 1))
                of = [v for i in heads for p, v in zip(positions[i], votes[i], strict=True) if p in example]
                score[h, j] = float("inf") if example.stop > view.seen else sum(of) / len(of)
        return score.masked_fill((view.notes[..., 0] > 0) & (view.phase == "decode"), torch.inf)

    def plain_note(self, view: View) -> torch.Tensor:
        """What `note` says, token by token."""
        of_prompt = view.phase == "prefill"
        return torch.tensor([[[float(of_prompt or note[0] > 0)] for note in head] for head in view.notes.tolist()])
