"""Directions that neighbouring layers share hold more of their keys than as many of each layer's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.cache.codecs.lowrank import LowRank
from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, register
from headwise.theory.fitting import generator

LAYERS, WIDTH = 4, 64  # taken together; channels of one


@register("shared_directions")
@dataclass(frozen=True, kw_only=True)
class SharedDirections(Experiment):
    """Keys of four layers that are views of the same few causes, each with noise of its own, written by the codec of
    `xkv` for all layers at once and of `low_rank` layer by layer, with as many coefficients a token.

    causes: behind the keys of all layers. rank: coefficients of a token in one layer. noise: of each layer, over the
    size of what is shared.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="xKV's shared directions",
        statement="At full rank keys come back; at rank G r the decomposition of G layers together errs no more than "
        "those of rank r of each layer, and less where layers are alike",
        paper="xKV: Cross-Layer SVD for KV-Cache Compression, arXiv 2503.18893, sections 3 and 4",
        setting="G = 4, ranks 512 and 768 of 4096 channels, keys before the rotary embedding",
        seconds=10,
        systems=(277,),
        differs="keys are drawn; a model's are compressed by the claim on `xkv`",
        leaves_out="answers at 6 times fewer bytes, which the claim on `xkv` measures",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("at full rank, relative error", "full", "partial", "at the rank of the rest", below=1e-4),
        Part("error together over error apart", "together", "unrelated",
             "layers that share nothing", below=0.9),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"relative error": Panel("coefficients of a token and layer", "error")}

    causes: Size = 24
    rank: Size = 8
    noise: Annotated[float, Ge(0.0), Le(1.0)] = 0.1

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors together and apart."""
        chance = generator(self.name, seed)
        alike, unrelated = self._keys(chance, shared=True), self._keys(chance, shared=False)
        ranks = sorted({self.rank, 2 * self.rank})
        lines = {
            "together": [[rank, _together(alike, rank)] for rank in ranks],
            "apart": [[rank, _apart(alike, rank)] for rank in ranks],
        }
        return {
            "measures": {
                "full": _together(alike, WIDTH),
                "partial": _together(alike, self.rank),
                "together": _together(alike, self.rank) / _apart(alike, self.rank),
                "unrelated": _together(unrelated, self.rank) / _apart(unrelated, self.rank),
            },
            "lines": {"relative error": lines},
        }

    def _keys(self, chance: torch.Generator, shared: bool) -> list[torch.Tensor]:
        """Keys [tokens, width] of each layer."""
        tokens, found = 512, []
        causes = torch.randn(tokens, self.causes, generator=chance)
        for _ in range(LAYERS):
            causes = causes if shared else torch.randn(tokens, self.causes, generator=chance)
            seen = causes @ torch.randn(self.causes, WIDTH, generator=chance) / self.causes**0.5
            found.append(seen + self.noise * torch.randn(tokens, WIDTH, generator=chance))
        return found


def _together(keys: list[torch.Tensor], rank: int) -> float:
    """Relative error of all layers side by side at `rank` coefficients a layer."""
    return _written(torch.cat(keys, 1), rank * len(keys))


def _apart(keys: list[torch.Tensor], rank: int) -> float:
    """Relative error of the layers one by one."""
    errors = [_written(one, rank) ** 2 * float(one.square().sum()) for one in keys]
    return float((sum(errors) / sum(float(one.square().sum()) for one in keys)) ** 0.5)


def _written(vectors: torch.Tensor, rank: int) -> float:
    """Relative error of vectors [tokens, width] that come back from `rank` coefficients."""
    codec = LowRank(rank / vectors.shape[1], "plain", False)
    basis = codec.fit(vectors)
    back = codec.decode(codec.encode(vectors, basis), basis, vectors.dtype)
    return float((back - vectors).norm() / vectors.norm())
