"""Prompt lookup: what followed the last few tokens when they stood in the text before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.ngrams import Newest, branches
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive


@register("lookup")
@dataclass(frozen=True)
class Lookup(Drafter):
    """Guesses that the text goes on as it did after its last few tokens before.

    tokens: most that are guessed one after the other. longest: most last tokens that are looked up; a shorter end
    serves where the longer one has not come before. drafts: guesses of how it goes on that are verified together, as a
    tree; where the text went on in several ways.
    """

    tokens: Positive = 10
    longest: Positive = 3
    drafts: Positive = 1

    card = DrafterCard(
        title="Prompt lookup decoding",
        paper="A. Saxena, Prompt Lookup Decoding (2023); the first level of Hierarchy Drafting, section 3",
        systems=(144,),
        deviations="the newest place where the longest known end stood is followed, and looked up anew after every "
        "token, so that a guess goes on beyond the end of the text",
    )

    def start(self, model: Any) -> Proposer:
        return _Looking(self)


class _Looking(Proposer):
    def __init__(self, drafter: Lookup) -> None:
        self.drafter, self.tables = drafter, dict[int, Newest]()

    def propose(self, written: Written) -> Draft:
        ids = written.ids.tolist()
        table = self.tables.setdefault(written.row, Newest(self.drafter.longest))
        table.read(ids)
        return branches([table], ids, min(self.drafter.tokens, written.most), self.drafter.drafts)
