"""What drafting heads are, and how they lie in a file that is bound to their model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from headwise.errors import FileError, HeadwiseError
from headwise.files import copied, read_tensors, write_tensors
from headwise.rooms import Room
from headwise.schema import Facts

FORMAT = "headwise-drafting-heads-1"
RANKS = 8  # best guesses of a head whose hits are measured


@dataclass(frozen=True)
class Taught:
    """What a model made of the tokens that are to be guessed, from which heads learn.

    tokens: [n], as they stand in the text. logits: [n, vocab], the model's own in their place. states: [n, d], what its
    last layer made of them. middle: [n, d], what heads asked for beside it, see `Heads.middle`.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    states: torch.Tensor
    middle: torch.Tensor | None = None


class Carry(Protocol):
    """What guesses of n texts begin with: a tensor [n, d], or anything else whose rows can be taken by a list."""

    def __getitem__(self, rows: Any) -> Any: ...


class Heads(torch.nn.Module, ABC):
    """Guesses of the `depth` tokens after the newest of a text, from what the model's last layer made of the tokens
    before that one, at most `sees` of them. They are a module of float32 numbers, made for one model."""

    kind: ClassVar[str]  # given by `heads`
    sees: ClassVar[int] = 1
    depth: int

    def begin(
        self,
        states: torch.Tensor,
        following: torch.Tensor,
        places: torch.Tensor,
        encoded: torch.Tensor | None = None,
    ) -> Carry:
        """What the first guesses of n texts begin with, which end behind the places [n] of one text.

        states: [m, d], what the model made of tokens of that text. following: [m], the token after each of them.
        encoded: [columns, d], what the encoder of a model that has one made of its input.
        """
        return states[places]

    @abstractmethod
    def step(self, place: int, carry: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, Carry]:
        """What guess number `place` is read from, [n, d], of n texts; and what the next guess begins with.

        carry: what `begin` gave, later what the guess before gave. tokens: [n], the newest of each text.
        """

    def middle(self, model: Any, ids: torch.Tensor) -> torch.Tensor | None:
        """What to learn from of a text ids [n] beside the model's last states, [n, d]; None for nothing."""
        return None

    @abstractmethod
    def words(self, place: int, out: torch.Tensor) -> torch.Tensor:
        """The logits [n, vocab] of guess number `place` from out [n, d]."""

    @abstractmethod
    def loss(self, place: int, out: torch.Tensor, taught: Taught) -> torch.Tensor:
        """How far guess number `place`, read from out [n, d], is from what was to be guessed."""


HEADS: Room[type[Heads]] = Room("kind of drafting heads", "headwise.decoding.heads")
Kind = TypeVar("Kind", bound=type[Heads])


def heads(kind: str) -> Any:
    """Class decorator: makes drafting heads known by their kind. They are made of a model and a depth."""

    def add(cls: Kind) -> Kind:
        cls.kind = kind
        HEADS.add(kind, cls)
        return cls

    return add


def made(kind: str, model: Any, depth: int) -> Heads:
    """Untrained heads of a kind for a model, on its device."""
    return HEADS.get(kind)(model, depth).float().to(model.device)


@dataclass(frozen=True)
class Trained:
    """Drafting heads with what was measured of them on text that they were not trained on.

    model: the fingerprint of the one that they are for. steps, tokens: of training. hits: by guess, of its best RANKS
    tokens the share that was the model's own next token, where all guesses before were right.
    """

    heads: Heads
    model: str
    steps: int
    tokens: int
    hits: tuple[tuple[float, ...], ...]

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        facts = {
            "kind": self.heads.kind,
            "depth": self.heads.depth,
            "model": self.model,
            "steps": self.steps,
            "tokens": self.tokens,
            "hits": [list(one) for one in self.hits],
        }
        write_tensors(path, FORMAT, facts, dict(self.heads.state_dict()))

    @classmethod
    def load(cls, path: Path, kind: str, model: Any, fingerprint: str) -> Trained:
        """Read a file of heads of a kind for `model`; FileError where it is missing, altered, of another kind or of
        another model."""
        facts, tensors = read_tensors(path, FORMAT, HeadsFacts, FileError)
        if facts.model != fingerprint:
            raise FileError(
                f"{path} holds drafting heads of model {facts.model}, this one is {fingerprint}; train heads for it "
                "with `headwise train-drafter`"
            )
        if facts.kind != kind:
            raise FileError(f"{path} holds '{facts.kind}' heads; write {facts.kind}('{path}')")
        trained = made(kind, model, facts.depth)
        try:
            trained.load_state_dict(copied(tensors, model.device))
        except RuntimeError as error:
            raise FileError(f"{path} does not hold the weights of '{kind}' heads ({error}); train them anew") from None
        hits = tuple(map(tuple, facts.hits))
        if len(hits) != facts.depth or any(len(one) != RANKS for one in hits):
            raise FileError(f"{path} does not say how often each of its {facts.depth} guesses hit; train them anew")
        return cls(trained.eval(), facts.model, facts.steps, facts.tokens, hits)


class HeadsFacts(Facts):
    """What a file of drafting heads says beside its tensors."""

    kind: str
    depth: int
    model: str
    steps: int
    tokens: int
    hits: list[list[float]]


def best_tree(hits: tuple[tuple[float, ...], ...], nodes: int) -> list[tuple[int, int]]:
    """The tree of at most `nodes` guesses that are right most often: by node the one that it follows, -1 for the text,
    and which of the best tokens of its guess it is (Medusa, arXiv 2401.10774, section 2.3.3).

    A node is right where all before it are and its token is: the product of their hits. The best come first.
    """
    if nodes < 1:
        raise HeadwiseError(f"a tree of {nodes} guesses guesses nothing; give nodes= 1 or more")
    chosen: list[tuple[int, int]] = []
    depths: list[int] = []
    open_: list[tuple[float, int, int, int]] = [(hits[0][rank], -1, 0, rank) for rank in range(len(hits[0]))]
    while open_ and len(chosen) < nodes:
        best = max(open_, key=lambda one: one[0])
        open_.remove(best)
        chance, parent, depth, rank = best
        if chance <= 0:
            break
        node = len(chosen)
        chosen.append((parent, rank))
        depths.append(depth)
        if depth + 1 < len(hits):
            open_ += [(chance * hit, node, depth + 1, own) for own, hit in enumerate(hits[depth + 1])]
    return chosen
