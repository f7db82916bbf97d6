"""What a model is looked at on: a text, random tokens repeated, and documents to recall from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.observe import Recall, Subject

REPEATED = 256  # random tokens, which are read twice


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens `ids [1, n]` that are looked at, and which of them delimit, bool [n]: punctuation and line ends, tokens
    that stand for no text."""

    ids: torch.Tensor
    delimiters: torch.Tensor

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or len(self.ids) != 1 or self.ids.shape[1] < 2:
            raise HeadwiseError(f"a text is ids [1, n] of 2 tokens or more, got {list(self.ids.shape)}")
        if self.delimiters.shape != self.ids.shape[1:] or self.delimiters.dtype != torch.bool:
            raise HeadwiseError(
                f"delimiters are bool [{self.ids.shape[1]}], one for each token, got {self.delimiters.dtype} "
                f"{list(self.delimiters.shape)}"
            )

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.ids.shape[1]

    @cached_property
    def earlier(self) -> torch.Tensor:
        """Where each token stood last before, int64 [n]; -1 for one that is new."""
        last: dict[int, int] = {}
        found = []
        for place, token in enumerate(self.ids[0].tolist()):
            found.append(last.get(token, -1))
            last[token] = place
        return torch.tensor(found)


@dataclass(frozen=True, eq=False)
class Scene:
    """A model and what it is looked at on. recalls: documents with questions, for what heads do while a model recalls;
    none where nothing is to be recalled. seed: of the random tokens."""

    subject: Subject
    text: Text
    recalls: Sequence[Recall] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        most = self.subject.geometry.max_positions
        if self.text.tokens > most:
            raise ContextError(
                f"the text has {self.text.tokens} tokens, the model was trained on {most}; give that many or fewer"
            )

    @cached_property
    def random(self) -> Text:
        """Random tokens read twice, each of them once in a half where the vocabulary allows: what is at a place can
        only be foretold from the first half (Olsson et al. 2022, In-context Learning and Induction Heads)."""
        generator = torch.Generator().manual_seed(self.seed)
        count = min(REPEATED, self.subject.vocabulary, self.subject.geometry.max_positions // 2)
        half = torch.randperm(self.subject.vocabulary, generator=generator)[:count]
        return Text(half.repeat(2)[None], torch.zeros(2 * count, dtype=torch.bool))
