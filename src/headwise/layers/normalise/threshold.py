"""Keys of negative score are gone, and distance is counted over those that are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.norms import wide
from headwise.layers.pairs import Block, Normalise, Row


@layer_part("normalise", "threshold")
@dataclass(frozen=True)
class Threshold(Normalise):
    """A softmax over the keys of positive score alone. From a score is taken how many of these lie from its key to the
    query, times a rate that the query's own token gives. Where no score is positive, all weights are 0."""

    card: ClassVar[LayerCard] = LayerCard(
        "Threshold relative attention",
        "TRA, 2503.23174, section 3; with `qk_norm` as its score",
        "keys that do not matter have neither weight nor place",
        "w_ij = softmax over {s_ij > 0} of s_ij + c_ij log sigmoid(w_h . x_i), c_ij = #{l : j <= l <= i, s_il > 0}",
        systems=(230,),
        deviations="written from the paper, whose repository holds no code yet; RMS norms of queries and keys are the "
        "score part `qk_norm`",
    )

    def gates(self, dims: Dims, shape: StreamShape) -> dict[str, nn.Module]:
        return {"threshold_rate": Rate(dims.width, shape.heads)}

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        left = block.seen & (scores > 0)
        ahead = left.flip(-1).cumsum(-1).flip(-1).to(scores.dtype)
        placed = scores + ahead * block.gates["threshold_rate"][..., None]
        top = placed.masked_fill(~left, float("-inf")).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        risen = (placed - top).masked_fill(~left, float("-inf")).exp()
        return risen / risen.sum(-1, keepdim=True).clamp_min(1e-30)

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        weights = scores * 0
        left = [place for place in range(len(scores)) if scores[place] > 0]
        if left:
            counts = scores.new_tensor(range(len(left), 0, -1))
            weights[left] = (scores[left] + counts * row.gates["threshold_rate"]).softmax(0)
        return weights


class Rate(nn.Module):
    """log sigmoid(W x), a number a head that is at most 0."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens]."""
        return F.logsigmoid(wide(self.proj(x))).transpose(1, 2)
