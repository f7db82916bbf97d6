"""The subject of a measurement: a model as measures see it, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from headwise.attention.attend import attend
from headwise.forms import Causal, Scoring, Where, Window, near
from headwise.geometry import Geometry
from headwise.observe.material import Recall
from headwise.observe.observer import Observer
from headwise.shapes import Rope


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """What one layer attends with in a forward of one sequence: q [1, H, t, d], k [1, h, t, d], v [1, h, t, e], by
    which scores, within a sliding `window` of keys, where `chunked` one that begins anew every so many, or None."""

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scoring: Scoring
    window: int | None = None
    chunked: bool = False

    @property
    def where(self) -> Where:
        """Which tokens each query sees."""
        t = self.q.shape[2]
        return Causal() if self.window is None else near(self.window, self.chunked, t, t, t)

    def full(self) -> torch.Tensor:
        """The model's own attention [1, H, t, e], with gradients in memory linear in t where torch's fused kernel knows
        the layer's kind."""
        if self._own_scores or self.window is not None:
            return self._attended(self.where)
        return scaled_dot_product_attention(
            self.q, self.k, self.v, is_causal=True, scale=self.scoring.scale, enable_gqa=True
        )

    def streaming(self, sinks: int, recent: int) -> torch.Tensor:
        """Attention [1, H, t, e] to sinks and the latest `recent` tokens, itself among them, differentiable. Memory is
        linear in t."""
        where, tokens, outs = Window(recent - 1, sinks), self.k.shape[2], []
        for start in range(0, tokens, recent):
            stop = min(start + recent, tokens)
            late = max(min(sinks, start), start - recent + 1)  # sinks among the latest are not read twice
            k, v = (torch.cat((x[:, :, : min(sinks, late)], x[:, :, late:stop]), dim=2) for x in (self.k, self.v))
            outs.append(replace(self, q=self.q[:, :, start:stop], k=k, v=v)._masked(where))
        return torch.cat(outs, dim=2)

    def _masked(self, where: Where) -> torch.Tensor:
        """Attention over few keys, by torch's fused kernel where it knows the layer's kind."""
        if self._own_scores:
            return self._attended(where)
        mask = where.dense(self.q.shape[2], self.k.shape[2], self.q.device)
        return scaled_dot_product_attention(
            self.q, self.k, self.v, attn_mask=mask, scale=self.scoring.scale, enable_gqa=True
        )

    @property
    def _own_scores(self) -> bool:
        """Whether torch's fused kernel does not know how the layer scores or normalises."""
        return self.scoring != Scoring(self.scoring.scale)

    def _attended(self, where: Where) -> torch.Tensor:
        grouped = self.q[0].unflatten(0, (self.k.shape[1], -1))
        found = attend(grouped, self.k[0], self.v[0], where, self.scoring)
        return found.out.flatten(0, 1)[None]


Attention = Callable[[LayerAttention], torch.Tensor]  # what a layer is to give in place of its own attention


class Subject(ABC):
    """A model that is measured. What runs it hands it to measures, so that these name neither engine nor library.

    fingerprint: of the model, as plans and calibrations name it. ropes: None where how it rotates its keys was not
    recognised. vocabulary: number of token ids.
    """

    geometry: Geometry
    fingerprint: str
    ropes: tuple[Rope | None, ...] | None
    vocabulary: int
    device: torch.device

    @abstractmethod
    def observe(self, observer: Observer, documents: Sequence[torch.Tensor]) -> None:
        """Read each of `documents`, ids [1, n], densely under the observer's eyes: once, in pieces, so that of reading
        nothing but keys and values grows with a document."""

    @abstractmethod
    def hidden(self, ids: torch.Tensor, places: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Final hidden states [places, width] of `ids [1, n]`, with gradients, when layers attend by `attention`."""

    @abstractmethod
    def logits(self, ids: torch.Tensor, places: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Logits [places, vocabulary] of `ids [1, n]`, with gradients, when layers attend by `attention`."""

    @abstractmethod
    def recomputed(self) -> AbstractContextManager[None]:
        """Within, a forward keeps each layer's input alone, and going back computes the layer again."""

    @abstractmethod
    def own_answers(self, recall: Recall) -> Recall:
        """The same questions with what the model answers by dense attention, as long as the answers given."""
