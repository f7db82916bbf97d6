"""Trials of layers and recipes that are trained, at a size that takes seconds, and a wrong implementation of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from headwise.layers.attend import Attend
from headwise.layers.heads.routed_heads import Routed
from headwise.layers.out.gin import Isomorphic
from headwise.layers.pairs import Block
from headwise.layers.project.mhe import Embedded
from headwise.layers.projections import merged
from headwise.theory import (
    diff_qkv,
    expert_mixture,
    optimised_attention,
    pointing,
    recurrent_memory,
    reweaving,
    score_operator,
    set_transformer,
    transnormer,
    trees,
)

SMALL = {
    "set_transformer": "steps=10",
    "recurrent_memory": "steps=5, questions=64",
    "reweaving": "steps=5, questions=64",
    "transnormer": "tokens=12, steps=9000",
    "linearised": "steps=4, more=2, batch=2, texts=2",
    "pair_scores": "steps=3",
    "pointing": "steps=3",
    "optimised_attention": "steps=3",
    "head_embeddings": "steps=3",
    "score_operator": "steps=3, fitting=3",
    "diff_qkv": "steps=2",
    "expert_mixture": "steps=2, apart=2, together=2, texts=4",
    "head_routing": "steps=2, more=2",
    "graph_adapter": "steps=2, more=2",
}


def _placed(patch: pytest.MonkeyPatch) -> None:
    right = set_transformer.Isab.forward
    patch.setattr(set_transformer.Isab, "forward", lambda self, x: right(self, x + torch.arange(x.shape[1])[:, None]))


def _never_empty(patch: pytest.MonkeyPatch) -> None:
    right = recurrent_memory.Recurrent.forward

    def wrong(self: recurrent_memory.Recurrent, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        return right(self, x, torch.zeros_like(x[:, :1]) if memory is None else memory)

    patch.setattr(recurrent_memory.Recurrent, "forward", wrong)


def _whole_past(patch: pytest.MonkeyPatch) -> None:
    right = reweaving.Woven.weave

    def wrong(self: reweaving.Woven, x: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        patch.setattr(self, "window", 1)  # tokens in the window are woven, too
        return right(self, x, kept)

    patch.setattr(reweaving.Woven, "weave", wrong)


def _unrelated(patch: pytest.MonkeyPatch) -> None:
    right = trees.Tree.above
    patch.setattr(trees.Tree, "above", lambda self, back: right(self, max(0, back - 1)))  # a parent counts twice


def _faded(patch: pytest.MonkeyPatch) -> None:
    def wrong(q: torch.Tensor, written: torch.Tensor, memory: torch.Tensor, decay: torch.Tensor, place: int) -> object:
        memory = decay * (memory + written)  # what a token writes fades before it is read
        return q @ memory, memory

    patch.setattr(transnormer, "robust", wrong)


def _short_sighted(patch: pytest.MonkeyPatch) -> None:
    right = Attend._blocks

    def wrong(self: Attend, *streams: Any) -> Iterator[Block]:
        for block in right(self, *streams):
            yield replace(block, seen=block.seen & (block.distance < block.q.shape[2]))  # no further than its block

    patch.setattr(Attend, "_blocks", wrong)


def _beyond(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pointing, "pad", lambda x, gap, value: torch.nn.functional.pad(x, gap, value=-3.0))


def _values_alone(patch: pytest.MonkeyPatch) -> None:
    right = optimised_attention.folded

    def wrong(layer: Any, dims: Any, keys: bool) -> Any:
        made = right(layer, dims, keys)
        if keys:
            made.get_parameter("project.q.weight").copy_(layer.get_parameter("project.q.weight"))  # keys are forgotten
        return made

    patch.setattr(optimised_attention, "folded", wrong)


def _numbered(patch: pytest.MonkeyPatch) -> None:
    right = Embedded.forward

    def wrong(self: Embedded, *inputs: Any) -> Any:
        streams, state = right(self, *inputs)
        return replace(streams, v=streams.v + torch.arange(streams.v.shape[1])[:, None, None]), state

    patch.setattr(Embedded, "forward", wrong)


def _each_its_own(patch: pytest.MonkeyPatch) -> None:
    right = score_operator.size
    patch.setattr(
        score_operator, "size", lambda count, hidden: right(count, hidden * count)
    )  # channels for every score


def _values_as_keys(patch: pytest.MonkeyPatch) -> None:
    right = diff_qkv.cached

    def wrong(text: str, dims: Any) -> int:
        return right(text.replace(", 16", ", 4"), dims)  # as many heads of values as of keys

    patch.setattr(diff_qkv, "cached", wrong)


def _unweighed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(expert_mixture, "weighed", lambda made, shares: (made @ shares[..., None])[..., 0])


def _halved(patch: pytest.MonkeyPatch) -> None:
    right = Routed.gates
    patch.setattr(Routed, "gates", lambda self, x: right(self, x) / 2)  # as the paper's text has them, unscaled


def _whole_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Isomorphic, "node", lambda self, read, x: x + (1 + self.eps) * self.o(merged(read)))  # eps misplaced


# By experiment: the measure that is wrong then, and how it is planted.
MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "set_transformer": ("moved", _placed),
    "recurrent_memory": ("empty", _never_empty),
    "reweaving": ("off", _whole_past),
    "transnormer": ("late", _faded),
    "linearised": ("tree", _unrelated),
    "pair_scores": ("blocks", _short_sighted),
    "pointing": ("outside", _beyond),
    "optimised_attention": ("folded_twice", _values_alone),
    "head_embeddings": ("alike", _numbered),
    "score_operator": ("growth", _each_its_own),
    "diff_qkv": ("cache", _values_as_keys),
    "expert_mixture": ("identical", _unweighed),
    "head_routing": ("equal", _halved),
    "graph_adapter": ("node", _whole_tokens),
}
