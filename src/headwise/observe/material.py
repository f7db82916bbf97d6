"""What a model is measured on: documents to read, and documents to recall from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch

from headwise.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.observe.subject import Subject


@dataclass(frozen=True)
class Recall:
    """A document `ids [1, n]` and what to recall from it: pairs of a question's and its answer's ids [1, m]."""

    ids: torch.Tensor
    asked: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def with_answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [1, n] of the document with all its questions and answers, and the places from which answers are said."""
        pieces, places, at = [self.ids], [], self.ids.shape[1]
        for question, answer in self.asked:
            pieces += [question, answer]
            at += question.shape[1]
            places.append(torch.arange(at - 1, at + answer.shape[1] - 1))
            at += answer.shape[1]
        return torch.cat(pieces, dim=1), torch.cat(places)


def check_recalls(recalls: Sequence[Recall]) -> None:
    """Raise HeadwiseError unless something is asked of every document, and there is one."""
    if not recalls or not all(recall.asked for recall in recalls):
        raise HeadwiseError("there is nothing to recall; give documents with at least one question each")


@dataclass(frozen=True)
class GateTraining:
    """How gates are trained. sinks, recent: tokens that a closed head still sees. steps: of AdamW at `rate`, which
    rises over the first fifth and falls over the last. weight: of the mean gate beside the hidden states' distance."""

    sinks: int = 128
    recent: int = 256
    steps: int = 60
    rate: float = 0.05
    weight: float = 0.05


@dataclass(frozen=True, eq=False)
class Material:
    """What a model is measured on, and how. documents: ids [1, n] to read. recalls: documents to recall from. ladder:
    three or more of ascending lengths, for spans. trained: documents to recall from that gates are trained on, where
    `recalls` are too long for that; the same where there are none.

    training: of DuoAttention's gates. density: mean share of the context that spans may take. share: of the causal
    pairs that the patterns compared may compute. block_steps: of training SeerAttention's gates and DHSA's networks.
    type_steps: of training NAtS's heads.
    """

    subject: Subject
    documents: Sequence[torch.Tensor]
    recalls: Sequence[Recall]
    ladder: Sequence[Recall]
    trained: Sequence[Recall] = ()
    training: GateTraining = field(default_factory=GateTraining)
    density: float = 0.5
    share: float = 0.25
    block_steps: int = 200
    type_steps: int = 60

    @property
    def data(self) -> str:
        """A short hash of all that is read and asked, and of how."""
        settings = (asdict(self.training), self.density, self.share, self.block_steps, self.type_steps)
        digest = hashlib.sha256(repr(settings).encode())
        for one in (*self.documents, *(x for r in (*self.recalls, *self.ladder, *self.trained) for x in _texts(r))):
            digest.update(repr(one.tolist()).encode())
        return digest.hexdigest()[:16]


def _texts(recall: Recall) -> list[torch.Tensor]:
    return [recall.ids, *(ids for pair in recall.asked for ids in pair)]
