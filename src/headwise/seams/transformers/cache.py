"""headwise.Cache, a transformers Cache that follows a recipe or a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from headwise.cache.states import States
from headwise.cache.tiers import given_tier
from headwise.engine.budget import in_tokens
from headwise.engine.persist import load_session, save_session
from headwise.engine.rows import select_rows
from headwise.engine.steered import refuse_unmarked
from headwise.errors import PlanError, SessionError, UnsupportedModel
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.attach import attach, detach
from headwise.seams.transformers.by_itself import refuse_reading
from headwise.seams.transformers.door import NAME, Attention, Door, register
from headwise.seams.transformers.images import IMAGE
from headwise.seams.transformers.probe import Asked, Seam, attend_once, refuse_positions
from headwise.seams.transformers.session_door import DECODE_TOKENS, SessionDoor
from headwise.shapes import Mark

__all__ = [
    "DECODE_TOKENS", "NAME", "Attention", "Cache", "PreTrainedModel", "Seam", "Through", "as_plan", "attach", "detach",
    "register",
]  # fmt: skip


def followed(model: PreTrainedModel) -> Seam:
    """Attach a model whose attention headwise computes; UnsupportedModel for one that attends by itself."""
    seam = attach(model)
    if seam.by_itself is not None:
        raise UnsupportedModel(f"{seam.by_itself}: the model attends by itself, so that its attention cannot be seen")
    return seam


class Through(Door):
    """A cache for one forward from its start, which stores nothing: attention is `attention(layer, q, k, v, asked)`
    with its gradients, q [b, H, t, d], k [b, h, t, d], v [b, h, t, e] -> [b, H, t, e]."""

    def __init__(self, model: PreTrainedModel, attention: Attention) -> None:
        self.seam = followed(model)
        self.windows, self.kinds = self.seam.geometry.windows, tuple(one.kind for one in self.seam.geometry.layers)
        self.attention = attention
        self.lending = self.seam.geometry.lending

    @property
    def states(self) -> States:  # type: ignore[override]
        """None, whoever asks: every layer begins anew, also where it is computed once more for its gradients."""
        return States()

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        return self.attention(layer, q, k, v, asked)

    def follow(
        self, layer: int, source: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked
    ) -> torch.Tensor:
        """Densely: what is measured, or put in the place of attention, is that of layers that have keys of their
        own."""
        return torch.cat([attend_once(q[row, None], k[row, None], v[row, None], asked) for row in range(len(q))])


class Cache(SessionDoor):
    """A transformers Cache that follows a recipe or a plan; hand it to `generate` or a forward as
    `cache` (older transformers: `past_key_values`).

    recipe: a sentence such as "snapkv(0.2) | int8", a Recipe, a Plan, or the path of a .plan file; "" is dense. The
    model is attached (see `attach`) on first use. One cache serves one batch of sequences; rows are fixed by the first
    call.
    marks: named ranges of the prompt, for methods that treat examples or images as wholes; images are found by
    themselves where none is marked and the model is given ids. resident: bytes of keys and
    values held near, such as "64MiB"; the rest lies in a file in `folder` (None: the folder for temporary files) or,
    for a GPU, in host memory. None holds all of them.
    gather: whether recipes evict of a prompt that comes in pieces once all of it was read, not after every piece.
    """

    attached = staticmethod(attach)  # how a model is made to run through it

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: str | Path | Recipe | Plan = "",
        *,
        seed: int = 0,
        marks: Iterable[Mark] = (),
        resident: str | int | None = None,
        folder: str | Path | None = None,
        gather: bool = False,
    ) -> None:
        seam = self.attached(model)
        plan = as_plan(seam, recipe)
        refuse_unmarked(plan, marks := tuple(marks), () if seam.image_token is None else (IMAGE,))
        if seam.by_itself is not None:
            refuse_reading(plan, seam.by_itself)
        in_tokens(plan, model.dtype)  # refuses too few bytes before any work
        kinds = {str(getattr(module, "rope_type", "")) for module in model.modules()}
        refuse_positions(plan, seam.ropes, kinds)
        super().__init__(seam, plan, seed=seed, marks=marks, tier=given_tier(resident, folder), gather=gather)

    def crop(self, max_length: int) -> None:
        """Go back: a negative number removes so many tokens, a positive one is the length to keep, 0 does nothing."""
        if self.session is not None and max_length:
            length = self.get_seq_length()
            self.truncate(length + max_length if max_length < 0 else min(max_length, length))

    def truncate(self, seen: int) -> None:
        """Go back to `seen` tokens, counted as `get_seq_length` counts them."""
        if self.session is None:
            raise SessionError("the cache is empty; there is nothing to truncate")
        self.refuse_other_ropes(self.session.passed, seen)
        removed = self.session.passed - seen
        self.session.truncate([max(0, have - removed) for have in self.session.seen])
        self.session.passed = seen  # columns that are padding in all rows go too

    def keep_states(self) -> None:
        """Keep the states of layers that pass one on, so that `truncate` can come back to this length. Layers that keep
        tokens need no such thing."""
        if self.session is None:
            raise SessionError("the cache is empty; there are no states to keep")
        self.session.between_steps("keep states")
        self.states.keep(self.session.passed)

    def fork(self) -> Cache:
        """An independent copy: continue a conversation two ways."""
        other = object.__new__(Cache)  # the model is attached and the plan in tokens: Cache's own beginning is done
        SessionDoor.__init__(
            other, self.seam, self.plan, seed=self.seed, marks=self.marks, tier=self.tier, gather=self.gather
        )
        other.total, other.undo = self.total, self.undo
        other.session = None if self.session is None else self.session.fork()
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return self.fork()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i go on as a copy of what row beam_idx[i] was, as beam search does after every step."""
        if self.session is None:
            raise SessionError("the cache is empty; there are no rows to reorder")
        select_rows(self.session, beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows alone, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let every row go on as `repeats` rows, one after the other."""
        rows = range(self.batch_size)
        self.reorder_cache(torch.tensor([row for row in rows for _ in range(repeats)], dtype=torch.int64))

    @property
    def nbytes(self) -> int:
        """Bytes the cache holds now, by walking its storages."""
        return 0 if self.session is None else self.session.nbytes()

    def report(self) -> str:
        """Bytes, and by layer and KV head the tokens kept and the attention lost, as text."""
        return "nothing was read yet" if self.session is None else self.session.report()

    def save(self, path: str | Path) -> None:
        """Write the conversation to one file; `Cache.load` continues it token-identically."""
        if self.session is None:
            raise SessionError("the cache is empty; run a prompt through it before saving")
        if self.seam.by_itself is not None and self.states:
            raise SessionError("what the model's indexer chooses by is no part of a file; keep the cache, or fork() it")
        save_session(self.session, path)

    @classmethod
    def load(cls, model: PreTrainedModel, recipe: str | Path | Recipe | Plan, path: str | Path, **where: Any) -> Cache:
        """Continue a saved conversation; refused unless model and plan are those it was made with.

        where: `resident` and `folder`, as for a new cache.
        """
        cache = cls(model, recipe, **where)
        cache.session, _ = load_session(path, cache.plan, device=model.device, ropes=cache.seam.ropes, tier=cache.tier)
        return cache

    def __repr__(self) -> str:
        return f"headwise.Cache(seen={self.get_seq_length()}, bytes={self.nbytes})"


def as_plan(seam: Seam, recipe: str | Path | Recipe | Plan) -> Plan:
    """The plan for this model that `recipe` means: a recipe for all heads, a plan, or the path of a plan file, which
    ends in .plan; a plan of another model is refused."""
    if isinstance(recipe, Path) or (isinstance(recipe, str) and recipe.endswith(".plan")):
        recipe = Plan.load(recipe)
    if not isinstance(recipe, Plan):
        return Plan.uniform(seam.geometry, recipe, seam.fingerprint)
    if recipe.model and recipe.model != seam.fingerprint:
        raise PlanError(
            f"the plan was made for model {recipe.model}, this one is {seam.fingerprint}; make a plan for this model"
        )
    if recipe.geometry != seam.geometry:
        raise PlanError(f"the plan is for {recipe.geometry}, the model has {seam.geometry}; make a plan for this model")
    return replace(recipe, model=seam.fingerprint)
