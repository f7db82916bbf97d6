"""How a query and a key become a score, and what joins their softmax beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.attended import Attended
from headwise.forms.edit import Edit


@dataclass(frozen=True, eq=False)
class Sinks:
    """Learned logits `[h, g]`, one a query head, that join its softmax as a key without a value would (gpt-oss, arXiv
    2508.10925, section 2.3). What a sink gets is lost to the tokens, whose probabilities then sum to less than 1."""

    logits: Tensor

    def of(self, heads: Sequence[int]) -> Sinks:
        """Those of these KV heads, in this order; a head may come again, as it does in every row of a batch."""
        return Sinks(self.logits[torch.tensor([*heads], device=self.logits.device)])

    def joint(self, lse: Tensor) -> Tensor:
        """The log-sum-exp of scores `[h, g, t]` and of the sink of each query head."""
        return torch.logaddexp(lse, self.logits.to(lse)[..., None])

    def entropy(self, keys: Tensor, lse: Tensor) -> Tensor:
        """Entropy of a softmax `[h, g, t]` in which the sink is one more outcome, from that over keys alone and their
        log-sum-exp."""
        joint = self.joint(lse)
        share = torch.exp(lse - joint).nan_to_num(0.0)
        return share * keys + torch.special.entr(share) + torch.special.entr(1 - share)

    def join(self, keys: Attended) -> Attended:
        """Attention to keys `[h, g, t, ...]` once the sinks have taken their share of it. HeadwiseError where they have
        done so before: they join what all keys gave, once, and no part of it."""
        if keys.with_sinks:
            raise HeadwiseError("sink logits join attention once, after all keys; add parts read without them")
        lse = self.joint(keys.lse)
        share = torch.exp(keys.lse - lse).nan_to_num(0.0)  # sinks of -inf beside no keys: -inf - -inf
        return Attended((keys.out.to(lse.dtype) * share[..., None]).to(keys.out.dtype), lse, with_sinks=True)


@dataclass(frozen=True)
class Scoring:
    """Scores are softcap * tanh(q . k * scale / softcap), and q . k * scale where softcap is None.

    The cap is that of Gemma 2 (arXiv 2408.00118, section 2). Their softmax, which `sinks` join where a model has them,
    weighs the values. edit: what a steering method changes of the scores of this call's keys; kernels without it refuse
    the call. Raises HeadwiseError for a cap that is not positive.
    """

    scale: float
    softcap: float | None = None
    sinks: Sinks | None = None
    edit: Edit | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not self.softcap > 0:
            raise HeadwiseError(f"softcap={self.softcap} must be positive; None means no cap")

    def capped(self, scaled: Tensor) -> Tensor:
        """Scores from products `[...]` that were scaled already."""
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    @property
    def of_keys(self) -> Scoring:
        """Without the sinks: how parts are read that are added up before these join."""
        return self if self.sinks is None else replace(self, sinks=None)

    def of(self, heads: Sequence[int]) -> Scoring:
        """The scoring of these KV heads, in this order."""
        sinks = None if self.sinks is None else self.sinks.of(heads)
        edit = None if self.edit is None else self.edit.of(heads)
        return self if sinks is None and edit is None else replace(self, sinks=sinks, edit=edit)

    def joint(self, lse: Tensor) -> Tensor:
        """The log-sum-exp `[h, g, t]` of a softmax over keys of log-sum-exp `lse`."""
        return lse if self.sinks is None else self.sinks.joint(lse)

    def joined(self, keys: Attended) -> Attended:
        """Attention of this softmax, from what `of_keys` gave of all keys."""
        return keys if self.sinks is None else self.sinks.join(keys)

    def check(self, q: Tensor) -> None:
        """Raise ShapeError unless sinks and edit are of the query heads of `q [h, g, t, d]`."""
        if self.edit is not None:
            self.edit.check(q)
        if self.sinks is not None and self.sinks.logits.shape != q.shape[:2]:
            raise ShapeError(
                f"sink logits {list(self.sinks.logits.shape)} are not those of queries {list(q.shape)}: one for each "
                "query head, [h, g]"
            )
