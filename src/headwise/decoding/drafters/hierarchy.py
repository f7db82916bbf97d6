"""Hierarchy Drafting: n-gram tables of the present text, of earlier runs and of a corpus, asked in this order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.ngrams import Counted, Newest, branches
from headwise.decoding.runs import Runs
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive


@register("hierarchy")
@dataclass(frozen=True)
class Hierarchy(Drafter):
    """Guesses by the nearest text that knows how to go on: this one, then what the model wrote before, then a corpus.

    tokens: most that are guessed one after the other. longest: most last tokens that are looked up. drafts: guesses
    that are verified together, as a tree. runs: a file in which what is
    written is kept for later generations, at most `kept` bytes of it, the newest; "" keeps nothing. corpus: a file like
    it, made of a text by `headwise.decoding.runs.Runs`; "" for none.
    """

    tokens: Positive = 10
    longest: Positive = 4
    drafts: Positive = 1
    runs: str = ""
    kept: Positive = 1 << 20
    corpus: str = ""

    card = DrafterCard(
        title="Hierarchy Drafting",
        paper="Lossless Acceleration of Large Language Models with Hierarchical Drafting based on Temporal Locality in "
        "Speculative Decoding, arXiv 2502.05609, section 3",
        systems=(144,),
        deviations="drafts are branches of one tree and no rows of a batch, and of one draft the next table is asked "
        "for the next token where those before it know none; tables of runs and corpus are made when a generation "
        "starts",
    )

    def start(self, model: Any) -> Proposer:
        vocabulary = model.config.get_text_config().vocab_size
        files = [Runs(Path(name), vocabulary, self.kept) if name else None for name in (self.runs, self.corpus)]
        return _Tables(self, *files)


class _Tables(Proposer):
    def __init__(self, drafter: Hierarchy, runs: Runs | None, corpus: Runs | None) -> None:
        self.drafter, self.runs = drafter, runs
        self.own: dict[int, Newest] = {}
        self.later = [Counted(drafter.longest, one.texts()) for one in (runs, corpus) if one is not None]

    def propose(self, written: Written) -> Draft:
        ids = written.ids.tolist()
        own = self.own.setdefault(written.row, Newest(self.drafter.longest))
        own.read(ids)
        tables: Sequence[Newest | Counted] = [own, *self.later]
        return branches(tables, ids, min(self.drafter.tokens, written.most), self.drafter.drafts)

    def finish(self, row: int, ids: torch.Tensor) -> None:
        if self.runs is not None:
            self.runs.add(ids.tolist())
