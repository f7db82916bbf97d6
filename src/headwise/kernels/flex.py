"""FlexAttention (arXiv 2412.05496), compiled for a GPU: windows, blocks and lists of keys over the queries of a prompt.

A form is told twice: by pair, as a function of tensors that the kernel asks inside a tile, and by tile, as a map of the
tiles that hold a visible pair, made without drawing t x n. The numbers of a form are tensors too, so that one compiled
kernel serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwise.forms import Attended, Blocks, Indices, Rule, Scoring, Union, Until, VerticalSlash, Where, Window
from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.reference import attention as reference
from headwise.kernels.request import EDITED, Request

if TYPE_CHECKING:  # torch takes its time to import it, and a CPU never needs it
    from torch.nn.attention.flex_attention import BlockMask

TILE = 128  # queries and keys of a tile, as FlexAttention has them
FEWEST_QUERIES = 17  # of a prompt; fewer are decoding
Pairs = Callable[[Tensor, Tensor, Tensor], Tensor]  # (head, query, key) -> whether it is seen


@dataclass(frozen=True)
class Mask:
    """A form over t queries and n keys. pairs: of stored places; tiles: bool `[h or 1, query tiles, key tiles]`."""

    pairs: Pairs
    tiles: Tensor


@dataclass(frozen=True)
class Frame:
    """Of t queries at the end of n keys the first and last stored places of each tile, int64."""

    t: int
    n: int
    device: torch.device

    def edges(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First and last query `[query tiles, 1]`, first and last key `[1, key tiles]`."""
        q, k = (torch.arange(0, count, TILE, device=self.device) for count in (self.t, self.n))
        first = q[:, None] + self.n - self.t
        return first, (first + TILE - 1).clamp(max=self.n - 1), k[None], (k[None] + TILE - 1).clamp(max=self.n - 1)


def mask_of(where: Where, frame: Frame) -> Mask | None:
    """The form as FlexAttention is told it; None where that is not known."""
    match where.lowered:
        case Rule() as rule:
            return _rule(rule, frame)
        case Blocks() as blocks:
            return _causal(_blocks(blocks, frame), frame)
        case VerticalSlash() as lines:
            return _causal(_lines(lines, frame), frame)
        case Indices(bias=None) as chosen:
            return _causal(_listed(chosen, frame), frame)
    match where:
        case Until():
            return _causal(_until(where, frame), frame)
        case Union():
            parts = [mask_of(part, frame) for part in where.parts]
            return _any([part for part in parts if part is not None]) if None not in parts else None
    return None


def _causal(mask: Mask, frame: Frame) -> Mask:
    """Of a form what lies not after a query."""
    _, last, first, _ = frame.edges()
    return Mask(lambda h, q, k: mask.pairs(h, q, k) & (k <= q), mask.tiles & (first <= last))


def _any(parts: list[Mask]) -> Mask:
    """What any of the parts shows."""
    one, *others = parts
    if not others:
        return one
    more = _any(others)
    return Mask(lambda h, q, k: one.pairs(h, q, k) | more.pairs(h, q, k), one.tiles | more.tiles)


def _rule(rule: Rule, frame: Frame) -> Mask:
    first_q, _, first_k, last_k = frame.edges()
    if rule.left is None and not rule.causal:
        return Mask(lambda h, q, k: k >= 0, torch.ones_like(first_q + first_k, dtype=torch.bool)[None])
    left, sinks = (
        torch.tensor(min(number, frame.n), device=frame.device)
        for number in (frame.n if rule.left is None else rule.left, rule.sinks)
    )
    tiles = (last_k >= first_q - left) | (first_k < sinks)
    near = Mask(lambda h, q, k: (q - k <= left) | (k < sinks), tiles[None])
    return _causal(near, frame) if rule.causal else near


def _blocks(blocks: Blocks, frame: Frame) -> Mask:
    """Blocks of any size: of each tile whether a listed block has a part in it, counted by sums over the map."""
    device, size = frame.device, blocks.size
    rows, columns = blocks.offsets.shape[1] - 1, -(-frame.n // size)
    offsets, listed = blocks.offsets.to(device), blocks.columns.to(device)
    row = torch.arange(blocks.heads * rows, device=device).repeat_interleave(offsets.diff(dim=1).flatten())
    map = torch.zeros(blocks.heads * rows, columns, dtype=torch.bool, device=device)
    map[row, listed] = True
    map = map.view(blocks.heads, rows, columns)
    first_q, last_q, first_k, last_k = (edge.flatten() for edge in frame.edges())
    low_q, high_q = ((edge - (frame.n - frame.t)) // size for edge in (first_q, last_q))  # blocks count the t queries
    low_k, high_k = first_k // size, last_k // size
    sums = torch.nn.functional.pad(map.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, bottom = sums[:, low_q], sums[:, high_q + 1]
    inside = bottom[:, :, high_k + 1] - bottom[:, :, low_k] - top[:, :, high_k + 1] + top[:, :, low_k]
    before, block = (torch.tensor(number, device=device) for number in (frame.n - frame.t, size))
    return Mask(lambda h, q, k: map[h, (q - before) // block, k // block], inside > 0)


def _marked(lists: tuple[Tensor, ...], frame: Frame) -> Tensor:
    """Lists drawn: bool `[h, n]`."""
    drawn = torch.zeros(len(lists), frame.n, dtype=torch.bool, device=frame.device)
    for own, entries in zip(drawn, lists, strict=True):
        own[entries.to(frame.device)] = True
    return drawn


def _within(drawn: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Whether any of `drawn [h, n]` lies between each low and high, both included: `[h, ...]`."""
    sums = torch.nn.functional.pad(drawn.long().cumsum(1), (1, 0))
    return sums[:, high + 1] > sums[:, low]


def _listed(chosen: Indices, frame: Frame) -> Mask:
    drawn = _marked(chosen.lists, frame)
    _, _, low, high = frame.edges()
    return Mask(lambda h, q, k: drawn[h, k], _within(drawn, low, high).expand(-1, -(-frame.t // TILE), -1))


def _lines(lines: VerticalSlash, frame: Frame) -> Mask:
    """Columns, and diagonals by their distance."""
    columns, distances = _marked(lines.verticals, frame), _marked(lines.slashes, frame)
    first_q, last_q, first_k, last_k = frame.edges()
    crossed = _within(distances, (first_q - last_k).clamp(min=0), (last_q - first_k).clamp(min=0))
    tiles = _within(columns, first_k, last_k) | crossed
    return Mask(lambda h, q, k: columns[h, k] | distances[h, (q - k).clamp(min=0)], tiles)


def _until(where: Until, frame: Frame) -> Mask:
    last = where.last.to(frame.device)
    padded = torch.nn.functional.pad(last, (0, -frame.n % TILE), value=-1)
    latest = padded.unflatten(1, (-1, TILE)).amax(2)[:, None]  # of each tile's keys
    return Mask(lambda h, q, k: q <= last[h, k], latest >= frame.edges()[0])


def block_mask(mask: Mask, frame: Frame) -> BlockMask:
    """FlexAttention's own form of it: of each tile of queries the tiles of keys that it reads."""
    from torch.nn.attention.flex_attention import BlockMask

    tiles = mask.tiles[:, None]
    counts = tiles.sum(-1, dtype=torch.int32)
    order = tiles.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    before = torch.tensor(frame.n - frame.t, device=frame.device)
    shared = mask.tiles.shape[0] == 1

    def seen(lane: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Heads of keys lie along the batch."""
        return mask.pairs(lane * 0 if shared else lane, query + before, key)

    return BlockMask.from_kv_blocks(
        counts, order, BLOCK_SIZE=TILE, mask_mod=seen, seq_lengths=(frame.t, frame.n), compute_q_blocks=False
    )


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@dataclass(frozen=True)
class Flex:
    """Attention of prompts. compiled: as it is on a GPU; tests run it uncompiled, which a CPU can."""

    compiled: bool = True

    def available(self) -> tuple[bool, str]:
        """Whether there is a GPU to compile for."""
        found = torch.cuda.is_available()
        return found, "compiled when it is first asked" if found else "no CUDA device"

    def refuse(self, request: Request) -> list[str]:
        """Reasons not to take this request; empty to accept."""
        q, k, v = request.q, request.k, request.v
        device = "cuda" if self.compiled else "cpu"
        if q.device.type != device:
            return [f"FlexAttention is compiled for {device}, not for {q.device.type}"]
        if self.compiled and (why := trial(str(q.device), q.dtype)):
            return [why]
        reasons = []
        if q.shape[2] < FEWEST_QUERIES:
            reasons.append(f"{q.shape[2]} queries: it reads prompts, of {FEWEST_QUERIES} and more")
        if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            reasons.append(f"no FlexAttention for {q.dtype}")
        if self.compiled and not (k.shape[2] >= 16 and v.shape[2] >= 16):
            reasons.append(f"keys of {k.shape[2]} and values of {v.shape[2]} channels: its tiles have 16 and more")
        if request.scoring.edit is not None:
            reasons.append(EDITED)
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            reasons.append("gradients: the log-sum-exp's are not asked for")
        if not self._known(request.where):
            reasons.append(f"{type(request.where).__name__}: no form that its tiles are known of")
        return reasons

    def _known(self, where: Where) -> bool:
        if isinstance(where, Union):
            return all(map(self._known, where.parts))
        lowered = where.lowered
        listed = isinstance(lowered, Indices) and lowered.bias is None
        return listed or isinstance(lowered, Rule | Blocks | VerticalSlash) or isinstance(where, Until)

    def attend(self, request: Request) -> Attended:
        """Attention of a request: KV heads along the batch, so that the queries of a group share their keys."""
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention

        q, k, v, scoring = request.q, request.k, request.v, request.scoring
        frame = Frame(q.shape[2], k.shape[1], q.device)
        mask = mask_of(request.where, frame)
        assert mask is not None, f"{type(request.where).__name__} is not known: ask `refuse` first"
        cap = torch.tensor(scoring.softcap or 1.0, device=q.device)

        def capped(score: Tensor, lane: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return cap * torch.tanh(score / cap)

        run = _compiled() if self.compiled else flex_attention
        out, aux = run(
            q,
            k[:, None],
            v[:, None],
            score_mod=None if scoring.softcap is None else capped,
            block_mask=block_mask(mask, frame),
            scale=scoring.scale,
            enable_gqa=q.shape[1] > 1,
            return_aux=AuxRequest(lse=True),
        )
        return Attended(out, aux.lse)


@cache
def trial(device: str, dtype: torch.dtype) -> str:
    """Why it cannot be used for this device and type, by compiling it once; empty if it can."""
    with torch.no_grad():
        q = torch.linspace(-1, 1, 130 * 32, device=device).view(1, 1, 130, 32).to(dtype)
        request = Request(q, q[0], q[0], Window(40, 3), Scoring(0.5))
        try:
            got = Flex().attend(request)
        except Exception as error:  # whatever a compiler, a driver or a device has to say
            told = (str(error).splitlines() or [type(error).__name__])[0]
            return f"FlexAttention fails for {dtype} on {device}: {told}"
        want = reference.attend(request)
        off = max(float((got.out - want.out).abs().max()), float((got.lse - want.lse).abs().max()))
    return "" if off < 0.03 else f"FlexAttention is wrong for {dtype} on {device} ({off:.2g} off)"


_flex = Flex()
BACKENDS.add("flex", Backend("flex", 30, _flex.available, {"attend": Kernel(_flex.refuse, _flex.attend)}))
