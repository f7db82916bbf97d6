"""Decoding over pages, written in Triton's language: keys are split over programs, and what they found is joined.

The way of FlashDecoding (Dao et al. 2023): each program keeps a running softmax (arXiv 1805.02867) over its keys. All
grouped queries of a lane are the rows of one product, so that a key is read once for them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _vectors(side, slots, seen, channels, width, BITS: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The vectors `[slots, channels]` of a side (data, scale, minimum) of `width` channels: as they lie where BITS is
    0, else codes of so many bits, decoded to float32. What is not `seen` is not read, and 0."""
    data, scale, minimum = side
    there = seen[:, None] & (channels < width)[None, :]
    if BITS == 0:
        return tl.load(data + slots[:, None] * width + channels[None, :], mask=there, other=0.0)
    share: tl.constexpr = 8 // BITS  # codes of a byte
    codes = tl.load(data + slots[:, None] * (width // share) + (channels // share)[None, :], mask=there, other=0)
    if BITS < 8:
        codes = (codes.to(tl.int32) >> ((channels % share) * BITS)[None, :]) & ((1 << BITS) - 1)
    numbers = slots[:, None] * ((width + GROUP - 1) // GROUP) + (channels // GROUP)[None, :]
    x = codes.to(tl.float32) * tl.load(scale + numbers, mask=there, other=0.0).to(tl.float32)
    if BITS < 8:
        x += tl.load(minimum + numbers, mask=there, other=0.0).to(tl.float32)
    return x


@triton.jit
def _product(a, b, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """a times b in float32. WIDE: made so before, as the interpreter has no product of bfloat16."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _entries(number, first, early, low, chosen, have, CHOSEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which stored tokens are the ones to read with these numbers: listed ones, or the `early` sinks and those from
    `low` on."""
    if CHOSEN:
        return tl.load(chosen + first + number, mask=have, other=0)
    return tl.where(number < early, number, low + number - early).to(tl.int64)


@triton.jit
def _slots(entry, start, table, have, PAGE: tl.constexpr, TABLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the entries of a lane lie, whose pages begin at the logical page `start`."""
    page = start + entry // PAGE
    if TABLE:
        page = tl.load(table + page, mask=have, other=0)
    return page * PAGE + entry % PAGE


@triton.jit
def _stretch(count, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of `count` tokens to read the first and the end of those of one split: whole tiles, spread evenly."""
    each = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK_N) * BLOCK_N
    return split * each, tl.minimum(split * each + each, count)


# fmt: off
@triton.jit(do_not_specialize=["left", "sinks", "groups", "tokens"])
def _decode(  # type: ignore[no-untyped-def]  # pointers and numbers of Triton's
    q,  # (pointer, step by lane, by group, by token): channels lie side by side
    key, value,  # (data, scale, minimum) of pages; scale and minimum None where there are none
    lanes,  # of each its length and first logical page; the page table or None; where among all queries its own lie
    chosen,  # (listed tokens of all lanes, where each lane's begin), or None
    found,  # (out [lanes, rows, SPLITS, e], lse [lanes, rows, SPLITS]) in float32
    groups, tokens, left, sinks, scale, cap,  # left: keys before a query's own place that it sees, -1: all
    D: tl.constexpr, E: tl.constexpr,  # widths
    KEY_BITS: tl.constexpr, KEY_GROUP: tl.constexpr, VALUE_BITS: tl.constexpr, VALUE_GROUP: tl.constexpr,
    CAUSAL: tl.constexpr, CAP: tl.constexpr, TABLE: tl.constexpr, CHOSEN: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):
    """One split of the keys of one lane, for a block of its query rows: their softmax, and its log-sum-exp."""
    lane, split, rows = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    length, start = tl.load(lanes[0] + lane), tl.load(lanes[1] + lane)
    place = length - tokens + rows % tokens
    asked, channels, width = rows < groups * tokens, tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    row = q[0] + tl.load(lanes[3] + lane) * q[1] + (rows // tokens) * q[2] + (rows % tokens) * q[3]
    query = tl.load(row[:, None] + channels[None, :], mask=asked[:, None] & (channels < D)[None, :], other=0.0)
    first, early, low = length * 0, length * 0, length * 0
    if CHOSEN:
        first = tl.load(chosen[1] + lane)
        count = (tl.load(chosen[1] + lane + 1) - first).to(tl.int32)
    else:
        low = tl.where(left < 0, 0, tl.maximum(length - tokens - left, 0))
        early = tl.minimum(sinks, low)
        count = early + length - low
    at, end = _stretch(count, split, SPLITS, BLOCK_N)
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    total, out = tl.zeros([BLOCK_R], tl.float32), tl.zeros([BLOCK_R, BLOCK_E], tl.float32)
    for tile in range(at, end, BLOCK_N):
        number = tile + tl.arange(0, BLOCK_N)
        have = number < end
        entry = _entries(number, first, early, low, chosen[0] if CHOSEN else None, have, CHOSEN)
        slots = _slots(entry, start, lanes[2], have, PAGE, TABLE)
        keys = _vectors(key, slots, have, channels, D, KEY_BITS, KEY_GROUP).to(query.dtype)
        score = _product(query, tl.trans(keys), WIDE) * scale
        if CAP:
            score = cap - 2 * cap / (tl.exp(2 * score / cap) + 1)  # cap * tanh(score / cap)
        seen = have[None, :] & ((left < 0) | (entry[None, :] >= place[:, None] - left) | (entry[None, :] < sinks))
        if CAUSAL:
            seen = seen & (entry[None, :] <= place[:, None])
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight, fade = tl.exp(score - base[:, None]), tl.exp(top - base)
        values = _vectors(value, slots, have, width, E, VALUE_BITS, VALUE_GROUP).to(query.dtype)
        out = out * fade[:, None] + _product(weight.to(query.dtype), values, WIDE)
        total, top = total * fade + tl.sum(weight, 1), higher
    spot = (lane.to(tl.int64) * groups * tokens + rows) * SPLITS + split
    any_key = total > 0
    tl.store(found[1] + spot, tl.where(any_key, top + tl.log(tl.where(any_key, total, 1.0)), -float("inf")), mask=asked)
    out = out / tl.where(any_key, total, 1.0)[:, None]
    tl.store(found[0] + spot[:, None] * E + width[None, :], out, mask=asked[:, None] & (width < E)[None, :])
# fmt: on


@triton.jit(do_not_specialize=["rows"])
def _join(found, places, out, lse, rows, E: tl.constexpr, SPLITS: tl.constexpr, BLOCK_E: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds the splits of one query row, and puts them where its lane has its place among all: out [lanes, rows, e]."""
    lane, row, width = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK_E)
    splits = (lane.to(tl.int64) * rows + row) * SPLITS + tl.arange(0, SPLITS)
    each = tl.load(found[1] + splits)
    top = tl.max(each, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    weight = tl.exp(each - base)
    total = tl.sum(weight, 0)
    parts = tl.load(found[0] + splits[:, None] * E + width[None, :], mask=(width < E)[None, :], other=0.0)
    whole = tl.sum(parts * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    spot = tl.load(places + lane) * rows + row
    tl.store(out + spot * E + width, whole.to(out.dtype.element_ty), mask=width < E)
    tl.store(lse + spot, tl.where(total > 0, base + tl.log(tl.where(total > 0, total, 1.0)), -float("inf")))


decode, join = _decode, _join
