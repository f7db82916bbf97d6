"""Beginnings of prompts that were read before: a tree over pieces of tokens, with copies of caches to go on from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache
from headwise.serve.pieces import cuts
from headwise.serve.prefix_folder import PrefixFolder

LOG = logging.getLogger("headwise.serve")
_Piece = tuple[int, ...]


def why_not_shared(plan: Plan, gathered: bool, piece: int) -> str:
    """Why what a plan makes of a beginning cannot be another prompt's too, exactly; "" where it can. gathered: whether
    prompts, in pieces of `piece` tokens, are read to their end before anything of them is evicted."""
    if any(layer.window is not None for layer in plan.geometry.layers):
        return "layers with a sliding window, in which there is no going back"
    for recipe in {one for row in plan.recipes for one in row}:
        if why := _evicts_early(recipe, gathered, piece) or _why_not(recipe):
            return why
    return ""


def _evicts_early(recipe: Recipe, gathered: bool, piece: int) -> str:
    """The same of what a recipe evicts, and notes for that while it reads."""
    evict = recipe.evict
    if evict is None:
        return ""
    if not gathered:
        return f"'{evict.name}' evicts by what the rest of the prompt, or its length, says"
    if "mass" in evict.view_needs or evict.notes or evict.rehearsal is not None:
        return f"'{evict.name}' notes beside a token what came after it"
    if evict.last_queries > piece:
        return f"'{evict.name}' looks at the last {evict.last_queries} queries, more than a piece has"
    return ""


def _why_not(recipe: Recipe) -> str:
    """The same of what a recipe does besides."""
    if recipe.prefill is not None:
        return f"'{recipe.prefill.name}' reads a prompt by a pattern of the whole of it"
    if recipe.steer is not None:
        return f"'{recipe.steer.name}' steers by what it found in the whole prompt"
    if recipe.compress is not None and len(recipe.compress.levels) > 1:
        return f"'{recipe.compress.name}' rounds tokens by how many came after them"
    if recipe.select is not None and ({"memory"} & recipe.select.view_needs or recipe.select.learns):
        return f"'{recipe.select.name}' remembers what it saw of the whole prompt"
    return ""


def _looks_back(plan: Plan) -> bool:
    """Whether what is kept of the newest queries is lost by going back, so that the last piece is read once more."""
    parts = [part for row in plan.recipes for one in row for part in (one.evict, one.compress) if part is not None]
    return any(part.last_queries for part in parts)


@dataclass
class _Node:
    """A place in the tree: all prompts that begin with the pieces that lead here."""

    parent: _Node | None
    piece: _Piece
    children: dict[_Piece, _Node] = field(default_factory=dict)
    cache: Cache | None = None
    used: int = 0
    plan: Plan | None = None  # of the cache
    evicted: bool = False  # whether the cache was evicted of

    @property
    def ids(self) -> list[int]:
        """The tokens that lead here."""
        return [] if self.parent is None else [*self.parent.ids, *self.piece]

    def caches(self) -> Iterator[_Node]:
        """Places from here on that hold a cache."""
        if self.cache is not None:
            yield self
        for child in self.children.values():
            yield from child.caches()


class Prefixes:
    """Copies of caches that have read the beginning of a prompt up to a multiple of `piece` tokens, of at most `limit`
    bytes together; those used longest ago go first. A copy serves every beginning of its own too, as it can go back.

    Only plans of which `why_not_shared` says nothing are kept, and of others what was evicted of by itself (`marks`).
    Beginnings are told apart by plan, of which the model's
    fingerprint is a part. folder: where copies are that survive a restart; those in it are read at once, and new ones
    written by `write_next`.
    """

    def __init__(self, limit: int, piece: int, folder: PrefixFolder | None = None) -> None:
        self.limit, self.piece, self.folder = limit, piece, folder
        self._unwritten: list[_Node] = []
        self.hits = self.misses = 0
        self.nbytes = 0  # of all copies
        self._roots: dict[tuple[str, int], _Node] = {}  # by plan, and after how many tokens it has evicted
        self._uses = 0
        for plan, ids, cache, evicted in () if folder is None else folder.read():
            before = self._uses
            self.put(plan, ids, cache, evicted)
            if self._uses == before and folder is not None:  # a longer one serves it, or it is too large
                folder.forget(plan, ids, evicted)
        self._unwritten.clear()

    def find_evicted(self, plan: Plan, ids: Sequence[int], mark: int) -> Cache | None:
        """A cache of its own that has read `mark` tokens of `ids` and was evicted of then; None where there is none."""
        node, depth = self._walk(plan, ids, mark)
        if node is None or node.cache is None or depth * self.piece != mark:
            self.misses += 1
            return None
        self.hits += 1
        self._touch(node)
        return node.cache.fork()

    def find(self, plan: Plan, ids: Sequence[int]) -> Cache | None:
        """A cache of its own that has read as much of the beginning of `ids` as is known, its last piece left out;
        None where nothing is."""
        node, depth = self._walk(plan, ids, 0)
        held = next(node.caches(), None) if node is not None and depth else None
        if held is None or held.cache is None:
            self.misses += 1
            return None
        cache = held.cache.fork()
        if cache.get_seq_length() > depth * self.piece:
            back = depth - _looks_back(plan)
            if not back:
                self.misses += 1
                return None
            cache.truncate(back * self.piece)
        self.hits += 1
        self._touch(held)
        return cache

    def put(self, plan: Plan, ids: Sequence[int], cache: Cache, evicted: bool = False) -> None:
        """Keep a copy of a cache that has read `ids` up to now, a multiple of `piece`. Not kept where it is known, or
        would take more than there is room for. evicted: whether it was evicted of; it then serves no other length."""
        read = cache.get_seq_length()
        mark = read if evicted else 0
        known, depth = self._walk(plan, ids[: read + 1 + self.piece], mark)
        if cache.nbytes > self.limit or (known is not None and depth * self.piece >= read and any(known.caches())):
            return
        node = self._roots.setdefault((plan.digest, mark), _Node(None, ()))
        for start in range(0, read, self.piece):
            piece = tuple(ids[start : start + self.piece])
            node = node.children.setdefault(piece, _Node(node, piece))
            self._forget(node)  # the longer copy serves it
        node.cache, node.plan, node.evicted = cache.fork(), plan, evicted
        if self.folder is not None:
            self._unwritten.append(node)
        self.nbytes += node.cache.nbytes
        self._touch(node)
        self.shrink(self.limit)

    def write_next(self) -> bool:
        """Write a copy that is not in the folder yet, and is still kept; whether there was one. A disk that takes
        nothing more stops no answers."""
        while self._unwritten:
            node = self._unwritten.pop(0)
            if self.folder is None or node.cache is None or node.plan is None:
                continue
            try:
                self.folder.write(node.plan, node.ids, node.cache, node.evicted)
            except (HeadwiseError, OSError) as error:
                LOG.warning("prefix_not_written", extra={"told": {"error": str(error)}})
            return True
        return False

    def shrink(self, limit: int) -> None:
        """Let copies go, those used longest ago first, until all take at most `limit` bytes."""
        if self.nbytes > limit:
            for node in sorted(self._held(), key=lambda one: one.used):
                self._drop(node)
                if self.nbytes <= limit:
                    return

    def _held(self) -> list[_Node]:
        return [node for root in self._roots.values() for node in root.caches()]

    def _walk(self, plan: Plan, ids: Sequence[int], mark: int) -> tuple[_Node | None, int]:
        """The deepest place that `ids` lead to, and in how many pieces; None where nothing of the plan is known. mark:
        where those are that are looked for were evicted of, 0: which were not."""
        node, depth = self._roots.get((plan.digest, mark)), 0
        for end in cuts(len(ids), self.piece)[:-1]:
            child = None if node is None else node.children.get(tuple(ids[end - self.piece : end]))
            if child is None:
                break
            node, depth = child, depth + 1
        return node, depth

    def _touch(self, node: _Node) -> None:
        self._uses += 1
        node.used = self._uses

    def _drop(self, node: _Node) -> None:
        """Forget a copy, and the way that led to nothing else."""
        self._forget(node)
        while node.parent is not None and node.cache is None and not node.children:
            del node.parent.children[node.piece]
            node = node.parent

    def _forget(self, node: _Node) -> None:
        if node.cache is not None:
            self.nbytes -= node.cache.nbytes
            if self.folder is not None and node.plan is not None:
                self.folder.forget(node.plan, node.ids, node.evicted)
            node.cache = None
