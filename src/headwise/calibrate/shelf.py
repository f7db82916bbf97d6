"""A document under every recipe a head may follow, and its questions in one forward with any mixture of them.

A plan's cache is not made anew for each plan: one cache for each recipe is made of the document's recording, with all
heads under it, and a head is read from the cache of its own recipe. Questions are rows of one batch that share the
document and see nothing of each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from headwise.attention import attend
from headwise.cache.factory import new_store
from headwise.cache.kv_store import Segment
from headwise.cache.states import States
from headwise.engine.group import Group
from headwise.errors import PlanError
from headwise.forms import Attended, Causal, Full, near
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.probe import Asked
from headwise.seams.transformers.replay import Recording, replay

CACHES = 8  # of a document that are held at once: together about as large as its recording
WIDTH = 16  # tokens: questions whose lengths round up to the same multiple share a batch


def shelved(recipe: Recipe) -> bool:
    """Whether a recipe is all told by what a head holds after a document: it computes the prompt as dense attention
    does, reads all it holds, and holds it by layer."""
    spans = recipe.compress is not None and recipe.compress.span is not None
    return recipe.prefill is None and recipe.select is None and recipe.steer is None and not spans


@dataclass(frozen=True)
class Batch:
    """Questions with their answers, `ids [b, t]`, filled up at the end. rows: which of the document's questions they
    are. said: by row the places from which its answer's tokens are said."""

    ids: Tensor
    rows: tuple[int, ...]
    said: tuple[Tensor, ...]

    @property
    def places(self) -> Tensor:
        """Places [p], ascending, from which any row says a token of its answer."""
        return torch.cat(self.said).unique()

    def said_of(self, logits: Tensor) -> list[Tensor]:
        """By row, logits [m, vocab] at its answer's tokens, of logits [b, p, vocab] at all `places`."""
        return [own[torch.searchsorted(self.places, said)] for own, said in zip(logits, self.said, strict=True)]

    def only(self, rows: Collection[int]) -> Batch:
        """The rows of some of the document's questions."""
        own = [place for place, row in enumerate(self.rows) if row in rows]
        return Batch(self.ids[own], tuple(self.rows[i] for i in own), tuple(self.said[i] for i in own))

    def split(self, rows: int) -> Iterator[Batch]:
        """Batches of at most so many of the rows."""
        for first in range(0, len(self.rows), rows):
            own = slice(first, first + rows)
            yield Batch(self.ids[own], self.rows[own], self.said[own])


def batches(recall: Recall) -> tuple[Batch, ...]:
    """All questions of a document, those of like length together."""
    texts = [torch.cat(pair, dim=1)[0, :-1] for pair in recall.asked]
    by_width: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        by_width.setdefault(-(-len(text) // WIDTH), []).append(row)
    return tuple(_batch(recall, texts, rows) for _, rows in sorted(by_width.items()))


def _batch(recall: Recall, texts: Sequence[Tensor], rows: Sequence[int]) -> Batch:
    longest = max(len(texts[row]) for row in rows)
    said = [torch.arange(len(texts[row]) - recall.asked[row][1].shape[1], len(texts[row])) for row in rows]
    return Batch(torch.stack([pad(texts[row], (0, longest - len(texts[row]))) for row in rows]), (*rows,), (*said,))


@dataclass(frozen=True)
class Shelf:
    """A document's caches by recipe, made of its recording when first asked for, and what their heads hold, decoded; of
    the `CACHES` used last, or of all recipes of the plan that is wanted.

    seed: of evictions that draw. calibration: tensors by name that recipes are shown, as a plan holds them.
    """

    model: PreTrainedModel
    recording: Recording
    seed: int = 0
    calibration: dict[str, Tensor] = field(default_factory=dict)

    _caches: dict[Recipe, Cache] = field(default_factory=dict, init=False, repr=False)
    _wanted: set[Recipe] = field(default_factory=set, init=False, repr=False)
    _held: dict[Recipe, dict[tuple[int, int], Segment]] = field(default_factory=dict, init=False, repr=False)

    @property
    def tokens(self) -> int:
        """Length of the document."""
        return self.recording.calls[0].k.shape[2]

    def want(self, plan: Plan) -> None:
        """Hold the caches of this plan together, as every layer asks for them in turn."""
        self._wanted.clear()
        self._wanted.update(recipe for row in plan.recipes for recipe in row)

    def cache(self, recipe: Recipe) -> Cache:
        """What the document leaves with all heads under `recipe`."""
        if recipe in self._caches:
            self._caches[recipe] = self._caches.pop(recipe)  # the last one used
        else:
            if not shelved(recipe):
                raise PlanError(
                    f"'{recipe}' cannot be measured head by head: prefill patterns, selections and codecs of several "
                    "layers are no matter of what one head holds; give evict and compress parts only"
                )
            plan = replace(Plan.uniform(attach(self.model).geometry, recipe), calibration=self.calibration)
            cache = Cache(self.model, plan, seed=self.seed)
            replay(self.model, self.recording, cache)
            self._caches[recipe] = cache
            unused = [one for one in self._caches if one not in self._wanted and one != recipe]
            if unused and len(self._caches) > max(CACHES, len(self._wanted)):
                del self._caches[unused[0]]
                self._held.pop(unused[0], None)
        return self._caches[recipe]

    def group(self, recipe: Recipe, layer: int, head: int) -> tuple[Group, int]:
        """The group that a head is in with all heads under `recipe`, and its lane there."""
        session = self.cache(recipe).session
        assert session is not None, "a document was replayed into it"
        group = next(group for group in session.layers[layer] if head in group.heads)
        return group, group.heads.index(head)

    def held(self, recipe: Recipe, layer: int, head: int) -> Segment:
        """What a head holds with all heads under `recipe`, read out once."""
        group, lane = self.group(recipe, layer, head)
        own = self._held.setdefault(recipe, {})
        if (layer, head) not in own:
            own[layer, head] = group.store.segment(lane, lane + 1)
        return own[layer, head]


class Mixture(Door):
    """Attention of rows of new tokens to a document and to themselves, each head as its recipe in `plan` holds both.

    Stores nothing of its own, and gradients pass through it.
    """

    def __init__(self, shelf: Shelf, plan: Plan) -> None:
        self.windows = attach(shelf.model).geometry.windows
        self.shelf, self.plan = shelf, plan
        self._passed_on = shelf.recording.states
        shelf.want(plan)

    def reads(self, ids: Tensor | None) -> None:
        """A forward of ids [b, t] begins: each row goes on from what the document passed on."""
        if ids is not None:
            self._passed_on = self.shelf.recording.states.fork()
            self._passed_on.select([0] * len(ids))

    @property
    def states(self) -> States:  # type: ignore[override]
        """Those after the document, whoever asks, also where a layer is computed once more for its gradients."""
        return self._passed_on.fork()

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """The document's tokens."""
        return self.shelf.tokens

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, asked: Asked) -> Tensor:
        """One layer: q [b, H, t, d], k [b, h, t, d], v [b, h, t, e] -> [b, H, t, e]."""
        grouped = q.unflatten(1, (k.shape[1], -1))
        heads = [
            read_head(self.shelf, recipe, (layer, head), (grouped[:, head], k[:, head], v[:, head]), asked)
            for head, recipe in enumerate(self.plan.recipes[layer])
        ]
        return torch.stack(heads, dim=1).flatten(1, 2)


def read_head(
    shelf: Shelf, recipe: Recipe, place: tuple[int, int], new: tuple[Tensor, Tensor, Tensor], asked: Asked
) -> Tensor:
    """What the KV head at `place` (layer, head) gives under `recipe` for rows of new q [b, g, t, d], k [b, t, d] and
    v [b, t, e]: [b, g, t, e]."""
    group, lane = shelf.group(recipe, *place)
    old, (q, k, v) = shelf.held(recipe, *place), new
    k, v = (x + (held - x).detach() for x, held in zip((k, v), _as_held(group, k, v), strict=True))
    rows, tokens = q.shape[0], q.shape[2]
    whole = asked.scoring.of([place[1]] * rows)
    scoring = whole.of_keys
    if asked.window is not None:
        keys, values = (torch.cat((x.expand(rows, -1, -1), y), 1) for x, y in ((old.keys, k), (old.values, v)))
        where = near(asked.window, asked.chunked, shelf.tokens + tokens, tokens, keys.shape[1])
        return attend(q, keys, values, where, whole).out
    shared = q.transpose(0, 1).flatten(1, 2)[None]  # [1, g, b * t, d]: all rows read one document
    before = attend(shared, old.keys, old.values, Full(), scoring)
    if group.evicted_mean is not None:
        before += group.evicted_mean.attended(shared, slice(lane, lane + 1), scoring)
    out, lse = (x[0].unflatten(1, (rows, tokens)).transpose(0, 1) for x in (before.out, before.lse))
    return whole.joined(attend(q, k, v, Causal(), scoring) + Attended(out, lse)).out


def _as_held(group: Group, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """New keys [b, t, d] and values [b, t, e] of one head as the group's codec gives them back right after."""
    if group.recipe.compress is None:
        return k, v
    rows, tokens = k.shape[:2]
    empty = replace(group.store.shape, lanes=rows, rows=rows)
    fresh = new_store(empty, group.recipe.compress.levels, group.store.device)
    fresh.append(k.detach(), v.detach(), torch.arange(tokens).expand(rows, -1))
    held = fresh.segment(0, rows)
    return held.keys, held.values
