"""The letter legend, and the shape checks made at public doors.

Letters, everywhere: b batch rows, h KV heads, g query heads per KV head, t new tokens, n stored tokens, d key width,
e value width, w window of last queries, p pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

import torch

from headwise.errors import HeadwiseError, ShapeError, shorten, shown
from headwise.schema import SEEDS, Count


def want(x: torch.Tensor, pattern: str, **sizes: int) -> dict[str, int]:
    """Check that `x` has one dimension per letter of `pattern` and the given `sizes`; return all sizes by letter.

    >>> want(torch.zeros(8, 4, 1, 64), "h g t d", h=8)
    {'h': 8, 'g': 4, 't': 1, 'd': 64}
    """
    letters = pattern.split()
    shape = tuple(x.shape)
    found = dict(zip(letters, shape, strict=False))
    if len(shape) != len(letters) or any(found[k] != n for k, n in sizes.items()):
        expected = " ".join(f"{k}={sizes[k]}" if k in sizes else k for k in letters)
        raise ShapeError(f"expected a tensor [{expected}], got {list(shape)}; see the letters in headwise.shapes")
    return found


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of one layer: how a key or query was turned by its position.

    `frequencies [r/2]` in radians per position turn the first r channels of a head (partial rotary when r < d).
    `interleaved` pairs channels (0,1),(2,3),...; otherwise channel c pairs with c + r/2, as Llama does.
    `scale` multiplies the rotated channels (attention scaling of YaRN and longrope; 1 otherwise).
    """

    frequencies: torch.Tensor
    interleaved: bool = False
    scale: float = 1.0

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Turn `x [..., n, d]` by `positions [n]` or `[..., n]`, and scale it."""
        return self._turn(x, positions, self.scale)

    def unrotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Undo `rotate` by the same positions."""
        return self._turn(x, -positions, 1.0 / self.scale)

    def move(self, x: torch.Tensor, positions: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Turn `x [..., n, d]`, rotated by `positions [n]` or `[..., n]`, on to `places` of the same shape."""
        return self._turn(x, places - positions, 1.0)

    def mean(self, start: int, count: int, width: int) -> torch.Tensor:
        """The mean [width, width] of the rotations by positions start, ..., start + count - 1."""
        angles = torch.arange(start, start + count)[:, None] * self.frequencies.cpu().float()
        cos, sin = self.scale * angles.cos().mean(0), self.scale * angles.sin().mean(0)
        pair = torch.arange(len(cos))
        first, second = (2 * pair, 2 * pair + 1) if self.interleaved else (pair, pair + len(cos))
        turn = torch.eye(width)
        turn[first, first], turn[first, second] = cos, -sin
        turn[second, first], turn[second, second] = sin, cos
        return turn

    def _turn(self, x: torch.Tensor, positions: torch.Tensor, factor: float) -> torch.Tensor:
        width = 2 * self.frequencies.numel()
        angles = positions[..., None].to(torch.float32) * self.frequencies.to(x.device)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        turned, rest = x[..., :width].float(), x[..., width:]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
            out = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            out = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((out.to(x.dtype), rest), dim=-1)


@dataclass(frozen=True)
class Mark:
    """A named range of a prompt: tokens [start, end) by true position are of a `kind`, such as "example" or "image".

    Several marks of a kind are several things: three examples are three marks. row: the batch row it is in; its
    positions do not count left padding.
    """

    kind: str
    start: Count
    end: Count
    row: Count = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise HeadwiseError(f"a mark from {self.start} to {self.end} is empty or negative; give 0 <= start < end")
        if self.row < 0 or not self.kind:
            raise HeadwiseError(f"a mark needs a kind and a row of 0 or more, got '{self.kind}' in row {self.row}")

    @classmethod
    def of_text(cls, kind: str, offsets: Sequence[tuple[int, int]], first: int, last: int, row: int = 0) -> Mark:
        """The tokens that write characters [first, last) of a text, by the tokenizer's `offset_mapping` of it."""
        inside = [place for place, (start, end) in enumerate(offsets) if start < last and end > first]
        if not inside:
            raise HeadwiseError(f"no token writes characters {first} to {last}; give a range inside the text")
        return cls(kind, inside[0], inside[-1] + 1, row)


def check_marks(marks: Iterable[Mark], rows: int) -> None:
    """Refuse marks of rows that a batch of `rows` does not have, and marks of one kind that overlap."""
    last: Mark | None = None
    for mark in sorted(marks, key=lambda one: (one.row, one.kind, one.start)):
        if mark.row >= rows:
            raise HeadwiseError(f"{mark} is of row {mark.row}, but rows are 0 to {rows - 1}; set its row")
        if last is not None and (last.row, last.kind) == (mark.row, mark.kind) and mark.start < last.end:
            raise HeadwiseError(f"{last} and {mark} overlap; marks of one kind must not, give them ends apart")
        last = mark


def check_seed(seed: int) -> None:
    """Refuse what random numbers cannot be drawn from."""
    if not isinstance(seed, int) or not -SEEDS <= seed < SEEDS:
        raise HeadwiseError(f"seed = {shorten(repr(seed))} is no whole number of 64 bits; give one such as 0")


BYTE_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}
SIZE = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*((?:[KMG]I?)?)B\s*", re.IGNORECASE | re.ASCII)
MOST_BYTES = 2**62
MOST_TOKENS = 2**40


def parse_bytes(text: str) -> int:
    """`"512MiB"` -> 536870912. Units: B, KB, MB, GB, KiB, MiB, GiB. A part of a byte is left out."""
    match = SIZE.fullmatch(text)
    count = int(Fraction(match[1]) * BYTE_UNITS[match[2].upper()]) if match else MOST_BYTES + 1
    if count > MOST_BYTES:
        raise HeadwiseError(f"'{shorten(text)}' is not an amount of memory; write it like 512MiB or 2GB")
    return count


def format_bytes(count: int) -> str:
    """536870912 -> `"512.0 MiB"`."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def exact_bytes(count: int) -> str:
    """67108864 -> `"64MiB"`, which `parse_bytes` reads back."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}B"


@dataclass(frozen=True)
class Amount:
    """How much of a context is kept or read: a share of the tokens (0 < x <= 1), a number of tokens, or their sum; or
    bytes.

    Ratios are turned into counts once, at the plan's edge, by `tokens_of`, and bytes when a session opens, as they
    depend on geometry and element type; below that only counts exist.
    """

    share: float | None = None
    tokens: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        # 0 of one adds nothing to the others, and is left out
        share, tokens, size = float(self.share or 0) or None, self.tokens or None, self.bytes or None
        tokens = tokens and min(tokens, MOST_TOKENS)  # no sequence has more
        for name, value in (("share", share), ("tokens", tokens), ("bytes", size)):
            object.__setattr__(self, name, value)
        if not share and not tokens and not size:
            raise HeadwiseError(
                "a budget of 0 tokens or bytes keeps nothing; give 1 or more, or a share: 0.2 keeps a fifth"
            )
        if share and not 0 < share <= 1:
            raise HeadwiseError(f"a budget share must be above 0 and at most 1.0, got {share}; 0.2 keeps a fifth")
        if tokens and tokens < 0:
            raise HeadwiseError(f"a budget of {shown(tokens)} tokens keeps nothing; give 1 or more, or 0.2")
        if size and (share or tokens or size < 0):
            raise HeadwiseError(f"a budget of bytes stands alone and is 1 or more, got {self!r}")

    @classmethod
    def of(cls, value: float | int | str | Amount) -> Amount:
        """0.2 is a share, 1024 a number of tokens, "64MiB" bytes, 1.0 the whole context. 0, negatives and 1.5 are
        refused."""
        if isinstance(value, Amount):
            return value
        if isinstance(value, str):
            return cls(bytes=parse_bytes(value))
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            raise HeadwiseError(
                f"{shown(value)} is not a budget; give a share such as 0.2, tokens such as 1024, or bytes such as 64MiB"
            )
        if value > MOST_TOKENS:
            raise HeadwiseError(f"{shown(value)} tokens are more than any sequence has; 1.0 keeps them all")
        return cls(tokens=int(value)) if isinstance(value, Integral) else cls(share=float(value))

    def tokens_of(self, seen: int) -> int:
        """The count that this amount means for a context of `seen` tokens, at least 1 and at most `seen`."""
        if self.bytes is not None:
            raise HeadwiseError(
                f"{self} are no number of tokens yet: that depends on the model and its element type; ask "
                "headwise.engine.budget.in_tokens for the plan that a session follows"
            )
        return max(1, min(seen, (self.tokens or 0) + round((self.share or 0.0) * seen)))

    def __str__(self) -> str:
        """As a recipe has it: `0.25`, `1024`, `1024 + 0.25` or `64MiB`."""
        if self.bytes is not None:
            return exact_bytes(self.bytes)
        return " + ".join(repr(one) for one in (self.tokens, self.share) if one is not None)
