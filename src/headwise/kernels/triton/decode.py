"""A few new tokens over pages that lie on a GPU: what the kernels of `kernel.py` are told, and calls made again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from headwise.forms import Attended, Indices, Paged, Rule, Scoring, Side, Where, join
from headwise.kernels.request import Part

MOST_TOKENS = 16  # new tokens of a lane; more is a prompt
MOST_ROWS = 64  # query rows that a program takes; others go to programs of their own
WIDEST = 256  # channels
PROGRAMS = 512  # that are wanted at least, where keys are long enough: a GPU has about 130 processors
TILE = 64  # keys that a program takes at a time; half as many of wide heads
FEWEST = 4  # tiles of keys worth a program


def fits(q: Tensor, where: Where) -> bool:
    """Whether `q [h, g, t, d]` is a step of decoding: few new tokens, by one rule or over chosen tokens."""
    lowered = where.lowered
    known = isinstance(lowered, Rule) or (isinstance(lowered, Indices) and lowered.bias is None)
    return known and q.shape[2] <= MOST_TOKENS


def bits_of(side: Side) -> int:
    """Bits of a code of a side; 0 where it holds the vectors themselves."""
    return 0 if side.codec == "plain" else int(side.codec.removeprefix("int").split("/")[0])


def _side(side: Side) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return side.planes["data"], side.planes.get("scale"), side.planes.get("minimum")


def _group(side: Side) -> int:
    """Channels that share a scale."""
    return int(side.codec.split("/")[1]) if "/" in side.codec else side.width


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


class _Held:
    """Pages of some lanes, with what of them a kernel has to be told on the device."""

    def __init__(self, paged: Paged, lanes: Sequence[int], level: int) -> None:
        self.paged, self.level, device = paged, level, paged.keys.planes["data"].device
        self.places = torch.tensor(list(lanes), dtype=torch.int64, device=device)
        self.starts = torch.tensor(paged.starts, dtype=torch.int64, device=device)
        self.lengths, self.left = list(paged.lengths), -1
        self._told: tuple[list[int], Tensor] | None = None

    @property
    def on_device(self) -> Tensor:
        """The lengths, int32; copied there when they have changed."""
        if self._told is None or self._told[0] != self.lengths:
            lengths = torch.tensor(self.lengths, dtype=torch.int32, device=self.starts.device)
            self._told = list(self.lengths), lengths
        return self._told[1]


@dataclass(frozen=True)
class _Seen:
    """What queries see of each part, beside how far back: up to their own place where causal, the first `sinks`; or
    `chosen` (tokens of all lanes, where those of each begin), of which a lane has `most`."""

    causal: bool
    sinks: int = 0
    chosen: tuple[Tensor, Tensor] | None = None
    most: int = 0

    def longest(self, held: _Held, tokens: int) -> int:
        """The most tokens that a lane has to read."""
        if self.chosen is not None:
            return self.most
        stored = max(held.lengths, default=0)
        return stored if held.left < 0 else min(stored, held.left + tokens + self.sinks)


@dataclass(frozen=True)
class Ready:
    """A call that is told all it needs: queries, what of every part they see, and where the result goes."""

    decode: Decode
    q: Tensor
    seen: _Seen
    out: Tensor
    lse: Tensor

    backend: ClassVar[str] = "triton"

    def run(self, *others: Ready) -> list[Attended]:
        """This call and others, one after the other; the device goes on to the next while the host prepares it."""
        for one in (self, *others):
            one.decode.launch(one)
        return [one.whole() for one in (self, *others)]

    def whole(self) -> Attended:
        """What was read of all levels."""
        return Attended(self.out, self.lse[0]).without(self.decode.skip)


class Decode:
    """The kernels over pages in parts, as `kernels.native.decode.Decode` is: a call can be made again while the pages
    lie where they do; lanes may lengthen meanwhile."""

    backend = "triton"

    def __init__(self, parts: Sequence[Part], scoring: Scoring) -> None:
        self._parts = [_Held(part.paged, part.lanes, part.level) for part in parts]
        self._levels = 1 + max(part.level for part in parts)
        self._scoring, self.skip = scoring, parts[0].paged.skip
        self._width = parts[0].paged.values.width

    def lengthen(self, part: int, lengths: list[int]) -> None:
        """The lanes of a part hold so many tokens now."""
        self._parts[part].lengths[:] = lengths

    def reach(self, part: int, left: int) -> None:
        """A query of a call that is made again sees `left` keys of a part before the newest one; -1: all."""
        self._parts[part].left = left

    def __call__(self, q: Tensor, where: Where) -> Attended | None:
        """As `where` shows; None where it reads no such form. Chosen tokens are those of a single part."""
        lowered = where.lowered
        if isinstance(lowered, Rule):
            left = -1 if lowered.left is None else lowered.left
            return self._made(q, _Seen(lowered.causal, lowered.sinks), [left] * len(self._parts)).run()[0]
        if not isinstance(lowered, Indices) or lowered.bias is not None:
            return None
        return self._made(q, _chosen(lowered, q.device), [-1] * len(self._parts)).run()[0]

    def over(self, q: Tensor, causal: bool, lefts: Sequence[int] | None = None, out: Tensor | None = None) -> Ready:
        """Over everything, or what of level 0 is not after a query; of each part the keys in `lefts` before the newest
        one of a query, and that one, where not -1. out: where the result goes, [h, g, t, e] without gaps."""
        return self._made(q, _Seen(causal), [-1] * len(self._parts) if lefts is None else lefts, out)

    def _made(self, q: Tensor, seen: _Seen, lefts: Sequence[int], out: Tensor | None = None) -> Ready:
        h, g, t, _ = q.shape
        for held, left in zip(self._parts, lefts, strict=True):
            held.left = left
        out = q.new_empty(h, g, t, self._width) if out is None else out
        return Ready(self, q, seen, out, q.new_empty(self._levels, h, g, t, dtype=torch.float32))

    def launch(self, call: Ready) -> None:
        """Start the kernels of a call; its result lies in `call.out` and `call.lse[0]` when they ended."""
        outs = [call.out, *(torch.zeros_like(call.out) for _ in range(self._levels - 1))]
        call.lse[1:] = -torch.inf  # of a level that not every lane has a part of
        with torch.cuda.device(call.q.device) if call.q.is_cuda else nullcontext():
            for held in self._parts:
                _read(call.q, held, call.seen, self._scoring, (outs[held.level], call.lse[held.level]))
        if self._levels > 1:
            whole = join([Attended(out, lse) for out, lse in zip(outs, call.lse, strict=True)])
            call.out.copy_(whole.out)
            call.lse[0] = whole.lse


def _chosen(lowered: Indices, device: torch.device) -> _Seen:
    """Listed tokens, and where the list of each lane begins."""
    counts = [len(one) for one in lowered.lists]
    edges = torch.tensor([0, *accumulate(counts)], dtype=torch.int64, device=device)
    return _Seen(True, 0, (torch.cat(lowered.lists).to(device), edges), max(counts, default=0))


def _read(q: Tensor, held: _Held, seen: _Seen, scoring: Scoring, to: tuple[Tensor, Tensor]) -> None:
    """One part: its keys in splits, and the splits joined into out [h, g, t, e] and lse [h, g, t] at its lanes."""
    from headwise.kernels.triton import kernel  # needs triton, which few machines have

    (_, g, t, d), (keys, values) = q.shape, (held.paged.keys, held.paged.values)
    lanes, rows, e, table = len(held.lengths), g * t, values.width, held.paged.table
    block_r, block_n = max(16, min(MOST_ROWS, _power(rows))), TILE if max(d, e) <= 128 else TILE // 2
    blocks, tiles = -(-rows // block_r), -(-seen.longest(held, t) // block_n)
    splits = min(_power(-(-PROGRAMS // (lanes * blocks))), _power(-(-tiles // FEWEST)))
    found = q.new_empty(lanes, rows, splits, e, dtype=torch.float32), q.new_empty(lanes, rows, splits).float()
    kernel.decode[lanes, splits, blocks](
        (q, *q.stride()[:3]),
        _side(keys),
        _side(values),
        (held.on_device, held.starts, table, held.places),
        seen.chosen,
        found,
        *(g, t, held.left, seen.sinks, scoring.scale, scoring.softcap or 1.0),
        D=d,
        KEY_BITS=bits_of(keys),
        KEY_GROUP=_group(keys),
        BLOCK_D=_power(max(16, d)),
        E=e,
        VALUE_BITS=bits_of(values),
        VALUE_GROUP=_group(values),
        BLOCK_E=_power(max(16, e)),
        CAUSAL=seen.causal and not held.level,
        CHOSEN=seen.chosen is not None,
        WIDE=not q.is_cuda,
        CAP=scoring.softcap is not None,
        TABLE=table is not None,
        PAGE=held.paged.page,
        SPLITS=splits,
        BLOCK_R=block_r,
        BLOCK_N=block_n,
    )
    kernel.join[lanes, rows](found, held.places, *to, rows, E=e, SPLITS=splits, BLOCK_E=_power(max(16, e)))
