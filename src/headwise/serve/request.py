"""A request as the scheduler takes it, and what it tells back while it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.serve.sampling import Chance, Sampling

if TYPE_CHECKING:
    from headwise.decoding.drafters.lookup import Lookup
    from headwise.seams.transformers.pooling import Pooling
    from headwise.serve.guides import Form

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """A prompt, and how its answer is written.

    ids: tokens of the prompt. plan: what its cache follows. choices: answers to write. max_tokens: of each at most.
    stops: texts before which an answer ends. logprobs: None, or how many likeliest tokens are told beside each.
    watched: whether it is told what heads keep. form: that its answers must have. scored: whether the chances of the
    prompt's own tokens are told too, as many beside each; then all of it is read. draft: how its answers are guessed
    ahead; "auto" leaves it to the scheduler. evict_after: tokens of the prompt that are evicted of by themselves, down
    to the end of a piece; see `marks`.
    pooled: how the states of the prompt's tokens become one vector, which is told, and nothing is written.
    """

    ids: tuple[int, ...]
    plan: Plan
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    choices: int = 1
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    watched: bool = False
    form: Form | None = None
    scored: bool = False
    draft: Lookup | Literal["auto"] | None = None
    evict_after: int = 0
    pooled: Pooling | None = None

    @property
    def reads_all(self) -> bool:
        """Whether all of the prompt is read, also where its beginning is known."""
        return self.scored or self.pooled is not None


@dataclass(frozen=True)
class Look:
    """What the cache of a watched request's first choice holds after `seen` tokens: of every attending layer the tokens
    that each KV head keeps, and bytes beside those of an uncompressed cache."""

    seen: int
    kept: tuple[tuple[int, ...], ...]
    kv_bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class Scored:
    """The chances of more tokens of a scored prompt, in their order, from its second token on."""

    chances: tuple[tuple[Chance, ...], ...]


@dataclass(frozen=True)
class Embedded:
    """The vector of a prompt whose states are pooled."""

    vector: tuple[float, ...]


@dataclass(frozen=True)
class Piece:
    """More of a choice: text that its newest token made certain, and the chances of that token where they were asked
    for."""

    choice: int
    text: str
    token: int
    chances: tuple[Chance, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A choice is complete; `text` is what was left to tell."""

    choice: int
    text: str
    reason: Reason


@dataclass(frozen=True)
class Guesses:
    """Tokens that were guessed ahead, and those of them that were right. off: why no more were, or None."""

    proposed: int
    accepted: int
    off: str | None

    @property
    def counts(self) -> dict[str, int]:
        """What is counted of it."""
        off = self.off is not None
        return {"drafted": self.proposed, "drafts_accepted": self.accepted, "drafts_switched_off": off}


@dataclass(frozen=True)
class Usage:
    """What a request took. cached: tokens of the prompt that were not read again. kv_bytes: held at the end by all its
    choices; dense_bytes: what an uncompressed cache would have held. guesses: what became of drafts, where there were
    any."""

    prompt: int
    written: int
    cached: int
    kv_bytes: int
    dense_bytes: int
    guesses: Guesses | None = None


@dataclass(frozen=True)
class Failed:
    """The request was ended by an error."""

    error: HeadwiseError


Event: TypeAlias = "Look | Scored | Embedded | Piece | Ended | Usage | Failed"  # Usage or Failed comes last, and once
Tell = Callable[[Event], None]


class Full(HeadwiseError):
    """The queue is full, or the server is stopping: the same request may be taken later."""


@dataclass
class Ticket:
    """A request that was accepted. tell: is called with what happens, in the scheduler's thread."""

    request: Request
    tell: Tell
    cancelled: bool = field(default=False, init=False)

    def say(self, event: Event) -> None:
        """Tell of an event; where nobody can be told, the request is cancelled."""
        try:
            self.tell(event)
        except Exception:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answer any more: before the next step its memory is freed."""
        self.cancelled = True
