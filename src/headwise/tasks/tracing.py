"""Chains of places: a thing is in a container, the container in a room; told in any order."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from headwise.knobs import Ge, Le, Word
from headwise.models.embedded.tasks import Chain, draw_chains, fits
from headwise.tasks.base import Ask, Item, Space, Task, register
from headwise.tasks.haystack import buried, hay


@dataclass(frozen=True)
class Chains(Task):
    """Links of several chains, each a sentence of its own at a random place of a text; every chain is asked about.

    chains: how many. hops: links of each. haystack: "novel", "noise", or a text file's path.
    """

    family: ClassVar[str] = "tracing"
    source: ClassVar[str] = "own; chains as in RULER's variable tracking, 2404.06654, section 3"
    chains: Annotated[int, Ge(1), Le(26)] = 6
    hops: Annotated[int, Ge(1), Le(16)] = 2
    haystack: Word = "novel"

    def conflict(self) -> str | None:
        if not fits(self.chains, self.hops):
            return f"{self.chains} chains of {self.hops} hops need more containers or rooms than there are; give fewer"
        return None

    def item(self, room: Space, rng: Random, number: int) -> Item:
        drawn = draw_chains(rng, self.chains, self.hops, self.held)
        sentences = [sentence for chain in drawn for sentence in chain.sentences]
        depths = [rng.random() for _ in sentences]
        asks = tuple(self._ask(room, chain, depths[i * self.hops]) for i, chain in enumerate(drawn))
        return Item(buried(room, hay(self.haystack, self.split, rng, room.context), sentences, depths, asks), asks)

    @abstractmethod
    def _ask(self, room: Space, chain: Chain, depth: float) -> Ask:
        """What is asked about a chain."""


@register
@dataclass(frozen=True)
class TraceRoom(Chains):
    """Asks for the room at once: no step is written."""

    name: ClassVar[str] = "trace_room"

    def _ask(self, room: Space, chain: Chain, depth: float) -> Ask:
        return room.ask(chain.question(), chain.answer, offered=self.chains, depth=depth)


@register
@dataclass(frozen=True)
class TraceSteps(Chains):
    """Asks for all links in order."""

    name: ClassVar[str] = "trace_steps"

    def _ask(self, room: Space, chain: Chain, depth: float) -> Ask:
        return room.ask(chain.trace_question, chain.trace, offered=self.chains**self.hops, depth=depth)


@register
@dataclass(frozen=True)
class TraceFirst(Chains):
    """Asks for the first link: a recall among links of the same form."""

    name: ClassVar[str] = "trace_first"

    def _ask(self, room: Space, chain: Chain, depth: float) -> Ask:
        first = f" {chain.links[0][1]}"
        return room.ask(chain.trace_question, first, offered=self.chains * self.hops, depth=depth)
