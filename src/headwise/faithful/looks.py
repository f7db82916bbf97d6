"""What a decoder may look at: the first look of a model at the newest token, and second ones that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from headwise.decoders import Decoder
from headwise.engine.aside import attention_aside, refuse_aside
from headwise.errors import SessionError
from headwise.faithful.exits import Exits
from headwise.faithful.sights import Sight, token_of
from headwise.geometry import Geometry
from headwise.seams.transformers.beside import Beside, Head, look_again, read_session
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.forward import forward, padding
from headwise.seams.transformers.images import image_marks
from headwise.seams.transformers.probe import Asked

CONTEXT = "context"  # the kind of mark that names the passage


@dataclass
class Cost:
    """What second looks have cost so far.

    passes: forwards over one token of every row, over the cache of the first look. read: tokens that these read of it,
    by KV head in the mean, all rows together. prompts: tokens of prompts of their own. own: forwards over one token
    beside caches of their own.
    """

    passes: int = 0
    read: float = 0.0
    prompts: int = 0
    own: int = 0


class Looks:
    """The looks at one generation of `model` over `cache`, of a batch `ids [b, n]`, by which `decoder` decides.

    Places are true positions, as padding is not stored: [b, n] tensors begin with a row's first token, and what is
    behind its last one means nothing. Refused before any work: a cache of another kind or model, or that cannot be
    looked at again; a context that is not marked.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, decoder: Decoder) -> None:
        if not isinstance(cache, Cache):
            raise SessionError(
                f"the cache is a {type(cache).__name__}, which cannot be looked at a second time; give "
                "headwise.Cache(model), which a decoder looks at again as it is"
            )
        if attach(model) is not cache.seam:
            raise SessionError("the cache is of another model; give headwise.Cache(model) of the one that generates")
        _refuse_plan(cache, decoder)
        self.model, self.cache, self.decoder, self.cost = model, cache, decoder, Cost()
        self.ids = torch.zeros(0, 0, dtype=torch.int64)
        self._exits = Exits(model) if "exits" in decoder.needs else None
        self._queries: dict[int, tuple[torch.Tensor, Asked]] = {}
        self._states: dict[int, torch.Tensor] = {}
        self._without: Cache | None = None
        self.pixels: torch.Tensor | None = None  # of the prompt's images [b, 3, height, width], for decoders of these
        self.given: dict[str, Any] = {}  # what the prompt's forward is given beside its ids
        self._sights: dict[str, Sight] = {}
        decoder.prepare(self)

    @property
    def geometry(self) -> Geometry:
        """The attention shape of the model."""
        return self.cache.seam.geometry

    def read(self, ids: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """The first look: read what of ids [b, n] the cache has not read; the logits [b, vocab] after it. left: by row,
        columns of left padding."""
        passed = self.cache.get_seq_length()
        if passed >= ids.shape[1]:
            raise SessionError(f"the cache holds {passed} tokens of a text of {ids.shape[1]}; give those and more")
        told = _padded(left, ids.shape[1], passed) if bool(left.any()) else {}
        own = {} if passed else self.given
        with torch.no_grad(), self.cache.noting() as queries, self._noting_states() as states:
            new = ids[:, passed:]
            logits: torch.Tensor = forward(self.model, self.cache, new, logits_to_keep=1, **told, **own).logits
        self.follow(ids)
        self._queries, self._states = queries, states
        return logits[:, -1].float()

    def follow(self, ids: torch.Tensor) -> None:
        """Take over a first look at ids [b, n] that somebody else had: nothing of it is noted."""
        self.ids, self._queries, self._states = ids, {}, {}
        for name in ("tokens", "context"):
            self.__dict__.pop(name, None)

    def fork(self, decoder: Decoder) -> Looks:
        """The same first look, over a copy of the cache, for another decoder to go on from."""
        other = Looks(self.model, self.cache.fork(), decoder)
        other.pixels, other.given = self.pixels, self.given
        other.ids, other._queries, other._states = self.ids, self._queries, self._states
        return other

    def step(self, logits: torch.Tensor) -> torch.Tensor:
        """The logarithms of the probabilities [b, vocab] that the decoder makes of the model's logits."""
        return self.decoder.step(logits, self)

    @property
    def told(self) -> str:
        """What the second looks took, in a line."""
        cost = self.cost
        told = f"decoder {self.decoder.name}: {cost.passes} second looks that read {cost.read:.0f} tokens of this cache"
        if cost.prompts:
            told += f", and {cost.own} beside a cache of its own, for which {cost.prompts} tokens were read"
        return told

    # what there is to see of the text

    @cached_property
    def tokens(self) -> torch.Tensor:
        """The ids [b, n] by true position; 0 behind a row's last token."""
        seen, columns = read_session(self.cache).seen, self.ids.shape[1]
        return torch.stack([row.roll(have - columns) * (torch.arange(columns, device=row.device) < have)
                            for row, have in zip(self.ids, seen, strict=True)])  # fmt: skip

    @cached_property
    def context(self) -> torch.Tensor:
        """Which places [b, n] are marked as the context."""
        marked, seen = torch.zeros_like(self.ids, dtype=torch.bool), read_session(self.cache).seen
        for mark in self.cache.marks:
            if mark.kind == CONTEXT:
                if mark.end > (have := seen[mark.row]):
                    raise SessionError(
                        f"{mark} ends beyond the {have} tokens of row {mark.row}; mark the passage itself"
                    )
                marked[mark.row, mark.start : mark.end] = True
        if missing := (~marked.any(1)).nonzero()[:, 0].tolist():
            raise SessionError(
                f"{self.decoder.name}: row {missing[0]} has no context; mark the passage: "
                f"headwise.Cache(model, marks=[headwise.Mark('context', first, after_last, row={missing[0]})])"
            )
        return marked

    # the first look

    def attention(self, layer: int) -> torch.Tensor:
        """The probability [b, H, n] that the newest token gives to each place in a layer, to what the cache holds."""
        if layer not in self._queries:
            self._note()
        q, asked = self._queries[layer]
        return attention_aside(read_session(self.cache), layer, q, asked.scoring)

    def exits(self, counts: Sequence[int]) -> torch.Tensor:
        """What the model would say after so many of its layers: log-probabilities [b, counts, vocab]."""
        assert self._exits is not None, "the decoder's needs name exits"
        if not self._states:
            self._note()
        return self._exits.logits([self._states[count] for count in counts]).log_softmax(-1)

    # second looks

    def masked(self, heads: Collection[Head]) -> torch.Tensor:
        """The logits [b, vocab] where these heads, (layer, query head) each, say nothing of the newest token."""
        return self._again(Beside(self.cache, heads))

    def hidden(self, places: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The logits [b, vocab] where the newest token gives no attention to places [b, n], by layer."""
        return self._again(Beside(self.cache, hidden=places))

    def raised(self, scores: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The logits [b, vocab] where these are added to the newest token's scores of places, [b, H, n], by layer."""
        return self._again(Beside(self.cache, raised=scores))

    def without(self, places: torch.Tensor) -> torch.Tensor:
        """The logits [b, vocab] where places [b, n] are no part of the text: the rest is read into a cache of its own
        when first asked for, and a token at a time from then on."""
        if self._without is None:
            return self._without_prompt(places)
        session = read_session(self._without)
        new = self.ids[:, -1:]
        self.cost.own += 1
        with torch.no_grad():
            told = padding(session, [1] * len(new), 1)
            logits: torch.Tensor = forward(self.model, self._without, new, **told).logits
        return logits[:, -1].float()

    @property
    def image(self) -> torch.Tensor:
        """Which places [b, n] are of an image; refused where a row has none."""
        places = self.tokens == token_of(self.model)
        if missing := (~places.any(1)).nonzero()[:, 0].tolist():
            raise SessionError(f"{self.decoder.name} looks at images, and row {missing[0]} has none; give it one")
        return places

    def images(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The prompt's ids by row, without padding, and the pixels of its images. Refused: rows without an image, with
        several, or whose pixels were not given."""
        token, seen = token_of(self.model), read_session(self.cache).seen
        rows = [row[:have] for row, have in zip(self.tokens, seen, strict=True)]
        found = [len(image_marks(row[None], token, [0], None)) for row in rows]
        if self.pixels is None or set(found) != {1} or len(self.pixels) != len(rows):
            raise SessionError(
                f"{self.decoder.name}: the rows have {found} images and "
                f"{0 if self.pixels is None else len(self.pixels)} are given; it looks at one image a row: "
                "headwise.contrast(model, cache, decoder, pixels=pixel_values)"
            )
        return rows, self.pixels

    def sight(self, name: str, make: Callable[[], Sight]) -> torch.Tensor:
        """The logits [b, vocab] of another sight of the images, which is made when first asked for by this name and
        read a token at a time from then on."""
        if name not in self._sights:
            self._sights[name] = made = make()
            self.cost.prompts += made.tokens
            return made.open()
        self.cost.own += 1
        return self._sights[name].step(self.ids[:, -1:])

    def _without_prompt(self, places: torch.Tensor) -> torch.Tensor:
        seen = read_session(self.cache).seen
        rows = [row[:have][~gone[:have]] for row, have, gone in zip(self.tokens, seen, places, strict=True)]
        if not all(map(len, rows)):
            raise SessionError(f"{self.decoder.name}: the mark covers the whole prompt; leave a question outside of it")
        longest = max(map(len, rows))
        left = torch.tensor([longest - len(row) for row in rows], device=self.ids.device)
        ids = torch.stack([torch.cat((row.new_zeros(longest - len(row)), row)) for row in rows])
        self._without = Cache(self.model, "")
        self.cost.prompts += sum(map(len, rows))
        told = _padded(left, longest, 0) if bool(left.any()) else {}
        with torch.no_grad():
            logits: torch.Tensor = forward(self.model, self._without, ids, logits_to_keep=1, **told).logits
        return logits[:, -1].float()

    def _note(self) -> None:
        """Have the first look once more, with notes."""
        beside = Beside(self.cache)
        with self._noting_states() as states:
            self._again(beside)
        self._queries, self._states = beside.queries, states

    def _noting_states(self) -> AbstractContextManager[dict[int, torch.Tensor]]:
        return nullcontext({}) if self._exits is None else self._exits.noting()

    def _again(self, beside: Beside) -> torch.Tensor:
        session = beside.session
        heads = [session.lengths(layer).float().mean(1).sum() for layer in self.geometry.attending]
        self.cost.passes += 1
        self.cost.read += float(sum(heads)) / len(heads)
        return look_again(self.model, beside, self.ids[:, -1:])


def _padded(left: torch.Tensor, columns: int, passed: int) -> dict[str, torch.Tensor]:
    """What tells a forward of the columns after the first `passed` of so many which of them are left padding."""
    place = torch.arange(columns, device=left.device)[None] - left[:, None]
    return {"attention_mask": (place >= 0).long(), "position_ids": place.clamp(min=0)[:, passed:]}


def _refuse_plan(cache: Cache, decoder: Decoder) -> None:
    """Refuse before anything is read what a second look cannot be had beside, or a context that is not marked."""
    if "context" in decoder.needs and not any(mark.kind == CONTEXT for mark in cache.marks):
        raise SessionError(
            f"{decoder.name} looks at a passage, and none is marked; give headwise.Cache(model, "
            "marks=[headwise.Mark('context', first, after_last)])"
        )
    if decoder.needs & {"again", "attention", "exits"}:
        refuse_aside(cache.plan)
