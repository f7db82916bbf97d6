"""An empty store for tokens at some levels of precision, of the kinds that their codecs ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from headwise.cache.balanced import BalancedStore
from headwise.cache.codecs.balanced import Balanced
from headwise.cache.codecs.channels import Channels
from headwise.cache.codecs.lowrank import LowRank, Spanned
from headwise.cache.codecs.pruned import Pruned
from headwise.cache.codecs.sharing import sharing
from headwise.cache.grouped import GroupedStore
from headwise.cache.kv_store import KVStore
from headwise.cache.levelled import LevelledStore
from headwise.cache.paged import PagedStore
from headwise.cache.projected import ProjectedStore
from headwise.cache.pruned import PrunedStore
from headwise.cache.shape import Shape
from headwise.cache.span import Span, factor_shape
from headwise.cache.tiers import Tier
from headwise.cache.tiers.store import TieredStore
from headwise.errors import HeadwiseError

Codecs = tuple[str, ...]  # of keys and of values, or of keys alone, where values are parts of them
KINDS: dict[type | None, type[PagedStore]] = {
    None: PagedStore,
    Channels: GroupedStore,
    LowRank: ProjectedStore,
    Pruned: PrunedStore,
    Balanced: BalancedStore,
}
ALONE = (None, Balanced)  # kinds that need no finer level before them


def new_store(
    shape: Shape, levels: Sequence[Codecs], device: torch.device | str = "cpu", tier: Tier | None = None
) -> KVStore:
    """An empty store for tokens at these levels of precision, the finest first; with a tier, it holds little near."""
    if tier is not None:
        if len(levels) > 1 or _kind(levels[0]) is not None:
            raise HeadwiseError(
                f"resident= takes keys and values of one precision, token by token; this recipe writes {[*levels]}; "
                "leave resident= out, or compress by int8 or int4"
            )
        return TieredStore(replace(shape, codecs=levels[0]), tier, device)
    if any(_kind(codecs) is Spanned for codecs in levels):
        return new_span([shape], levels, device).stores[0]
    parts = []
    for codecs in levels:
        kind = _kind(codecs)
        if kind not in ALONE and len(levels) == 1:
            raise _unfit(codecs)
        parts.append(KINDS[kind](replace(shape, codecs=codecs), device))
    return parts[0] if len(parts) == 1 else LevelledStore(parts)


def new_span(shapes: Sequence[Shape], levels: Sequence[Codecs], device: torch.device | str = "cpu") -> Span:
    """An empty span of layers of these shapes: one plain level in each, and behind it one that they share."""
    if len(levels) != 2 or [_kind(codecs) for codecs in levels] != [None, Spanned] or shapes[0].extras:
        raise HeadwiseError(
            f"levels {[*levels]}: layers that share tokens have one plain level before them, and no eviction that "
            "notes anything of tokens"
        )
    plain = [PagedStore(replace(shape, codecs=levels[0]), device) for shape in shapes]
    return Span(plain, ProjectedStore(factor_shape(shapes, levels[1]), device))


def _kind(codecs: Codecs) -> type | None:
    """The type of the codecs whose tokens share numbers, None where each token is on its own."""
    kinds = {type(one) for one in map(sharing, codecs) if one is not None}
    if len(kinds) > 1 or any(isinstance(sharing(name), Channels) for name in codecs[1:]):
        raise _unfit(codecs)
    return kinds.pop() if kinds else None


def _unfit(codecs: Codecs) -> HeadwiseError:
    return HeadwiseError(
        f"codecs {codecs}: tokens share numbers only behind a finer level, values none by channel, and keys and values "
        "in one way"
    )
