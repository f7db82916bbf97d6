"""headwise.EncoderDecoderCache: a decoder's own keys and values under one recipe, the encoder's under another."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from headwise.engine.across import refuse_across
from headwise.errors import UnsupportedModel
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.attach import attach_both
from headwise.seams.transformers.cache import Cache, as_plan
from headwise.seams.transformers.cross_cache import CrossCache
from headwise.seams.transformers.door import Told
from headwise.seams.transformers.probe import Seam, refuse_positions


class DecoderCache(Cache):
    """The part of an EncoderDecoderCache that holds what the decoder itself has read."""

    attached = staticmethod(attach_both)


class EncoderDecoderCache(Told, transformers.EncoderDecoderCache):
    """A transformers EncoderDecoderCache of two recipes; hand it to `generate` or a forward of a T5, BART or Whisper as
    `cache` (older transformers: `past_key_values`).

    recipe: for what the decoder itself has read, as for `Cache`. cross: for the keys and values of the encoder's
    output, which are stored once: what it evicts and how it compresses is settled when the decoder's first tokens have
    read them, by their queries; what it selects, every token anew. One cache serves one batch of inputs.
    """

    self_attention_cache: DecoderCache  # type: ignore[assignment]
    cross_attention_cache: CrossCache  # type: ignore[assignment]

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: str | Path | Recipe | Plan = "",
        cross: str | Path | Recipe | Plan = "",
        *,
        seed: int = 0,
    ) -> None:
        across = attach_both(model).across
        assert across is not None, "attach_both refuses models without an encoder"
        plan = as_plan(across, cross)
        refuse_across(plan)
        refuse_positions(plan, across.ropes, ())
        own = DecoderCache(model, recipe, seed=seed)
        if any(one.evict is not None and one.evict.rehearsal is not None for row in own.plan.recipes for one in row):
            raise UnsupportedModel(
                "the recipe has the model read its prompt again, which is not done beside an encoder; use another "
                "eviction, such as snapkv"
            )
        super().__init__(own, CrossCache(across, plan, seed=seed))

    @property
    def doors(self) -> tuple[DecoderCache, CrossCache]:
        """Both parts."""
        return self.self_attention_cache, self.cross_attention_cache

    @cached_property
    def seam(self) -> Seam:
        """What is known of the model."""
        return self.self_attention_cache.seam

    def reads(self, ids: torch.Tensor | None) -> None:
        """A forward over this cache begins."""
        self.self_attention_cache.reads(ids)

    def succeeded(self, model: torch.nn.Module) -> None:
        """A forward of `model` over this cache has succeeded."""
        self.self_attention_cache.succeeded(model)
        self.cross_attention_cache.succeeded()

    def abort(self) -> None:
        """After an error or interrupt anywhere in a forward: everything is as it was before that forward."""
        for part in self.doors:
            part.abort()
        for layer in self.is_updated:
            self.is_updated[layer] = self.cross_attention_cache.get_seq_length(layer) > 0

    def crop(self, max_length: int) -> None:
        """Go back in what the decoder has read, as `Cache.crop` does."""
        self.self_attention_cache.crop(max_length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows alone, in this order."""
        self.reorder_cache(indices.long())  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let every row go on as `repeats` rows, one after the other."""
        rows = range(self.self_attention_cache.batch_size)
        self.batch_select_indices(torch.tensor([row for row in rows for _ in range(repeats)], dtype=torch.int64))

    def fork(self) -> EncoderDecoderCache:
        """An independent copy: go on two ways."""
        other = object.__new__(EncoderDecoderCache)
        transformers.EncoderDecoderCache.__init__(other, *(part.fork() for part in self.doors))
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> EncoderDecoderCache:
        return self.fork()

    @property
    def nbytes(self) -> int:
        """Bytes that both parts hold now."""
        return sum(part.nbytes for part in self.doors)

    def report(self) -> str:
        """What both parts hold, as text."""
        across = self.cross_attention_cache.session
        told = "nothing was read yet" if across is None else across.report()
        return f"what the decoder read:\n{self.self_attention_cache.report()}\n\nwhat the encoder gave:\n{told}"
