"""What a machine works on, a session or a cache over a model: one step, and all that can be done between two."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import headwise
from headwise.engine.group import Phase
from headwise.engine.persist import load_session, save_session
from headwise.engine.rows import select_rows
from headwise.engine.session import Session
from headwise.plan import Plan
from headwise.seams.transformers.forward import forward
from tests.contract.drive import Text, columns, layer_by_layer, rehearse


@dataclass(frozen=True)
class Step:
    """One forward: `tokens` columns, the last live[row] of which are no padding. extra: prompt tokens still to come."""

    tokens: int
    phase: Phase
    live: tuple[int, ...]
    seed: int
    extra: int | None = None

    @property
    def mask(self) -> torch.Tensor:
        """True for tokens, False for padding: [b, tokens]."""
        return torch.arange(self.tokens, 0, -1) <= torch.tensor(self.live)[:, None]


class Subject(Protocol):
    """What can go on, go back, and be copied. Two made alike and treated alike are alike."""

    session: Session | None

    def step(self, step: Step) -> torch.Tensor:
        """One forward that succeeds."""

    def abort(self) -> None:
        """Take back a forward that failed."""

    def truncate(self, back: int) -> None:
        """Forget the last `back` columns."""

    def fork(self) -> Subject:
        """An independent copy."""

    def select(self, rows: Sequence[int]) -> None:
        """Row i goes on as row rows[i]."""

    def reload(self, path: Path) -> None:
        """Go on from a file."""


@dataclass
class Tensors:
    """A session, fed with random vectors. options: of `Session`."""

    plan: Plan
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.session: Session = Session(self.plan, **self.options)

    def text(self, step: Step) -> Text:
        """The vectors of a step."""
        session = self.session
        return Text.random(session.plan.geometry, step.tokens, session.rows, step.seed, session.dtype)

    def begin(self, step: Step) -> None:
        """Announce a step."""
        live = None if min(step.live) == step.tokens else step.mask
        total = None if step.extra is None else self.session.passed + step.tokens + step.extra
        ids = columns(self.session.rows, self.session.passed, step.tokens)
        self.session.begin(step.tokens, step.phase, live=live, total=total, ids=ids)

    def step(self, step: Step) -> torch.Tensor:
        self.begin(step)
        out = torch.stack(list(layer_by_layer(self.session, self.text(step), 0, step.tokens)))
        if self.session.rehearsals.waiting:
            rehearse(self.session, self.text(replace(step, tokens=self.session.passed)))
        self.session.commit()
        return out

    def abort(self) -> None:
        self.session.abort()

    def truncate(self, back: int) -> None:
        self.session.truncate([max(0, seen - back) for seen in self.session.seen])

    def fork(self) -> Tensors:
        other = object.__new__(Tensors)
        other.plan, other.options, other.session = self.plan, self.options, self.session.fork()
        return other

    def select(self, rows: Sequence[int]) -> None:
        select_rows(self.session, rows)

    def reload(self, path: Path) -> None:
        save_session(self.session, path)
        how = {name: self.options[name] for name in ("ropes", "tier")}
        self.session, _ = load_session(path, self.plan, **how)


@functools.cache
def tiny_model() -> LlamaForCausalLM:
    """A random model of two layers, which all caches share."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@dataclass
class Tokens:
    """A cache over the tiny model, fed with random ids. options: of `headwise.Cache`."""

    plan: Plan
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.cache = headwise.Cache(tiny_model(), self.plan, **self.options)
        self.mask: torch.Tensor | None = None

    @property
    def session(self) -> Session | None:  # type: ignore[override]
        """The cache's, once it has seen a token."""
        return self.cache.session

    def step(self, step: Step) -> torch.Tensor:
        ids = torch.randint(2, 64, step.mask.shape, generator=torch.Generator().manual_seed(step.seed))
        mask = step.mask if self.mask is None else torch.cat((self.mask, step.mask), dim=1)
        self.cache.total = None if step.extra is None else mask.shape[1] + step.extra
        with torch.no_grad():
            logits = forward(tiny_model(), self.cache, ids, attention_mask=mask.long()).logits
        self.mask = mask
        return logits

    def abort(self) -> None:
        self.cache.abort()

    def truncate(self, back: int) -> None:
        self.cache.truncate(self.cache.get_seq_length() - back)
        if self.mask is not None:
            self.mask = self.mask[:, : self.mask.shape[1] - back]

    def fork(self) -> Tokens:
        other = object.__new__(Tokens)
        other.plan, other.options, other.cache, other.mask = self.plan, self.options, self.cache.fork(), self.mask
        return other

    def select(self, rows: Sequence[int]) -> None:
        self.cache.reorder_cache(torch.tensor(rows))
        if self.mask is not None:
            self.mask = self.mask[list(rows)]

    def reload(self, path: Path) -> None:
        self.cache.save(path)
        where = {name: self.options[name] for name in ("resident", "folder") if name in self.options}
        seed = self.cache.seed
        self.cache = headwise.Cache.load(tiny_model(), self.plan, path, **where)
        self.cache.seed = seed
