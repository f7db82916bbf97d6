"""The result of attention over a set of keys, which adds to the result over another set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError


@dataclass(frozen=True)
class Attended:
    """`out [h, g, t, e]` in the input's dtype and `lse [h, g, t]`, the log-sum-exp of the scores (natural log, scaled).

    `lse` is float32 (float64 for float64 inputs). A query that saw no key has out 0 and lse -inf.
    Results over disjoint key sets add exactly: `window + pages + tail`. Keys in both sets would count twice.
    with_sinks: whether sink logits have joined the softmax (`Scoring.sinks`), and `lse` with it. They count once, so of
    results that are added at most one has them.
    """

    out: Tensor
    lse: Tensor
    with_sinks: bool = False

    def __add__(self, other: Attended) -> Attended:
        return join((self, other))

    def without(self, channels: int) -> Attended:
        """The same without the first `channels` of out."""
        return replace(self, out=self.out[..., channels:]) if channels else self

    @classmethod
    def empty(cls, like: Tensor, width: int) -> Attended:
        """What queries `like [h, g, t, d]` get from no keys at all: the zero of the addition. `width` is e."""
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        out = like.new_zeros(*like.shape[:3], width)
        return cls(out, torch.full(like.shape[:3], float("-inf"), dtype=kind, device=like.device))


def join(parts: Sequence[Attended]) -> Attended:
    """The sum of results over disjoint key sets, rounded to out's dtype once at the end.

    Online softmax (arXiv 1805.02867) as in split-key decoding: each part weighs exp(lse - joint lse), computed in
    float32 as a sigmoid of the difference of two log-sum-exps, which cannot overflow.
    """
    if not parts:
        raise HeadwiseError("join() of no parts has no shape; give it at least one Attended")
    first = parts[0]
    if len(parts) == 1:
        return first
    joined = sum(part.with_sinks for part in parts)
    if joined > 1:
        raise HeadwiseError(f"sink logits joined {joined} of the parts to add; read parts by `Scoring.of_keys`")
    lse = first.lse
    out = first.out.to(lse.dtype)
    for part in parts[1:]:
        if part.out.shape != first.out.shape or part.lse.shape != first.lse.shape:
            raise ShapeError(
                f"cannot add attention results of shapes {list(first.out.shape)} and {list(part.out.shape)}: "
                "both must come from the same queries"
            )
        # two empty sides differ by -inf - -inf = nan: any finite weight will do, since both outs are 0
        share = (part.lse - lse).nan_to_num_(0.0).sigmoid_()
        out = torch.lerp(out, part.out.to(lse.dtype), share.unsqueeze(-1))
        lse = torch.logaddexp(lse, part.lse)
    return Attended(out.to(first.out.dtype), lse, bool(joined))
