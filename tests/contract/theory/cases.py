"""Every experiment at a size that takes seconds, and a wrong implementation of each that its own check must refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from headwise.experiments import Experiment, experiment
from headwise.forms import VerticalSlash
from headwise.theory import (
    attention_svm,
    attention_training,
    blocks_by_lot,
    cache_sizes,
    complex_positions,
    cost_law,
    deconstructed,
    dual_encoders,
    dynamical,
    efficient_probe,
    explanations,
    frame_grid,
    gaussian_pooling,
    half_space,
    head_size,
    hierarchy,
    hyper_attention,
    latent_alignment,
    locality,
    low_rank_pooling,
    matching_pursuit,
    merged_models,
    nearest,
    one_step,
    passes,
    power_reach,
    several_sources,
    shared_directions,
    skim_attention,
    softmax_icl,
    text_depth,
)
from headwise.theory import random_features as features
from tests.contract.context import trials as context_trials
from tests.contract.lens import trials
from tests.contract.theory import trained
from tests.vision import trials as vision_trials

# Sizes for tests; an experiment that is not named runs as it is by default, on three seeds.
SMALL = {
    "head_size": "tokens=6, narrow=2, width=10, steps=30",
    "explanations": "texts=8, tokens=5",
    "one_step_gd": "prompts=2000, turns=20",
    "attention_svm": "problems=2, texts=3, tokens=3, dim=8, steps=60",
    "random_features": "samples=128, heads=32, dim=4, keys=4",
    "softmax_icl": "steps=20, examples=6, batch=16",
    "locality": "steps=20, instances=50",
    "nearest_neighbour": "steps=20, points=2, batch=16",
    "cache_sizes": "longest=8",
    "deconstructed": "tokens=8, batch=2, steps=2",
    "hierarchy": "steps=10, batch=16",
    "dynamical_systems": "pairs=2, steps=2, batch=4, held=8",
    "hyper_attention": "tokens=2048, samples=128",
    "half_space": "longest=4096, tokens=1024",
    "power_reach": "tokens=256, layers=6",
    "frame_grid": "tokens=512",
    "blocks_by_lot": "tokens=256, lots=8",
    "cost_law": "context=128, generated=32, budget=16",
    "dual_encoders": "questions=64",
    "merged_models": "steps=40",
    "matching_pursuit": "steps=20, parents=4, dim=8",
    "text_depth": "corpora=64",
    "gaussian_pooling": "steps=2",
    "complex_positions": "dim=16, heads=4",
    "latent_alignment": "steps=5",
    "low_rank_pooling": "steps=2",
    "several_sources": "steps=3",
    "efficient_probe": "steps=3, probing=3",
    "attention_training": "steps=3",
    "skim_attention": "steps=3",
    **trials.SMALL,
    **context_trials.SMALL,
    **vision_trials.SMALL,
    **trained.SMALL,
}


def made(name: str) -> Experiment:
    """An experiment at its small size."""
    return experiment(f"{name}({', '.join(filter(None, [SMALL.get(name, ''), 'seeds=3']))})")


@cache
def figures(name: str) -> dict[str, Any]:
    """Its figures, made once."""
    torch.set_num_threads(1)
    return made(name).run()


def _built(patch: pytest.MonkeyPatch) -> None:
    def wrong(target: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        inverse = torch.linalg.pinv(inputs)
        return head_size.attention(inputs, inverse @ target, inverse)  # no logarithm

    patch.setattr(head_size, "built", wrong)


def _gradient(patch: pytest.MonkeyPatch) -> None:
    right = explanations.gradient
    patch.setattr(explanations, "gradient", lambda model, texts, scores=True: right(model, texts, scores=False))


def _untrained(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: one_step.OneStep, prompts: Any, chance: torch.Generator) -> one_step.Layer:
        return one_step.Layer(*(torch.randn(shape, generator=chance) for shape in ((5,), (5, 4))))

    patch.setattr(one_step.OneStep, "trained", wrong)


def _machine(patch: pytest.MonkeyPatch) -> None:
    right = attention_svm.solved
    patch.setattr(attention_svm, "solved", lambda problems, chosen: right(problems, problems.gains.argmin(-1)))


def _places(patch: pytest.MonkeyPatch) -> None:
    right = features.attention_features

    def wrong(weights: torch.Tensor) -> features.Features:
        def by_place(inputs: features.Inputs) -> torch.Tensor:
            places = torch.linspace(0.5, 1.5, inputs[1].shape[1], dtype=torch.float64)[:, None]
            return right(weights)((inputs[0], inputs[1] * places))

        return by_place

    patch.setattr(features, "attention_features", wrong)


def _uniform(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: softmax_icl.Heads, tokens: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return torch.einsum("pnd,ahd->ap", tokens, self.ov) / tokens.shape[1] + 0 * self.kq.sum()

    patch.setattr(softmax_icl.Heads, "predict", wrong)


def _dial(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locality, "DIAL", tuple(reversed(locality.DIAL)))


def _farthest(patch: pytest.MonkeyPatch) -> None:
    def wrong(context: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return context[torch.arange(len(context)), (context @ query[..., None])[..., 0].argmin(-1)]

    patch.setattr(nearest, "wanted", wrong)


def _uncorrected(patch: pytest.MonkeyPatch) -> None:
    right = passes.one_pass
    patch.setattr(passes, "one_pass", lambda q, k, v, memory, corrects=True: right(q, k, v, memory, corrects=False))


def _segments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache_sizes, "SEGMENT_BYTES", 0)  # counted as keys and values are


def _inputs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deconstructed, "FIXED", ("static", "fixed text"))  # whose maps follow the input


def _late(patch: pytest.MonkeyPatch) -> None:
    right = dynamical.linear_system
    patch.setattr(dynamical, "linear_system", lambda q, k, value: right(q, k, value).late())


def _alone(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: hierarchy.Tree, texts: torch.Tensor, places: torch.Tensor, level: int = 0) -> torch.Tensor:
        return torch.full((len(texts), hierarchy.SYMBOLS), 1 / hierarchy.SYMBOLS)  # without the other leaves

    patch.setattr(hierarchy.Tree, "leaf", wrong)


def _unfair(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hyper_attention.Hyper, "luck", hyper_attention.FirstKeys.luck)


def _inexact(patch: pytest.MonkeyPatch) -> None:
    right = half_space.HalfSpaceReLU.reported

    def wrong(self: half_space.HalfSpaceReLU, view: Any) -> list[torch.Tensor]:
        return [one[::2] for one in right(self, view)]

    patch.setattr(half_space.HalfSpaceReLU, "reported", wrong)


def _gaps(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: power_reach.Power, view: Any) -> VerticalSlash:
        place = torch.arange(view.count)
        return VerticalSlash((place[:0],), (place[(place & (place - 1)) == 0][::2],))  # every other power

    patch.setattr(power_reach.Power, "where", wrong)


def _out_of_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frame_grid.FrameGrid, "_lattices", lambda self, columns, along: (columns[:, :1], along[:, :1].long()))


def _near_lot(patch: pytest.MonkeyPatch) -> None:
    right = blocks_by_lot.PrFlash.probability

    def wrong(self: blocks_by_lot.PrFlash, distance: torch.Tensor, farthest: torch.Tensor) -> torch.Tensor:
        return right(self, farthest + 1 - distance, farthest)  # the near blocks are left out

    patch.setattr(blocks_by_lot.PrFlash, "probability", wrong)


def _linear(patch: pytest.MonkeyPatch) -> None:
    right = cost_law.Decoding.dense
    patch.setattr(cost_law.Decoding, "dense", lambda self, context, generated: right(self, context, generated // 2))


def _weakest(patch: pytest.MonkeyPatch) -> None:
    right = shared_directions.LowRank.fit

    def wrong(self: shared_directions.LowRank, x: torch.Tensor) -> torch.Tensor:
        return right(self, x) if x.shape[1] == shared_directions.WIDTH else right(self, torch.rand_like(x))

    patch.setattr(shared_directions.LowRank, "fit", wrong)


def _first_stretch(patch: pytest.MonkeyPatch) -> None:
    right = dual_encoders.best_of
    patch.setattr(dual_encoders, "best_of", lambda query, project, text, kind, chance: right(
        query, project, text, "scattered" if kind == "stretches" else kind, chance))  # fmt: skip


def _at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(matching_pursuit.Coder, "pursuit", matching_pursuit.Coder.topk)


def _undecided(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(merged_models, "adam", lambda parameters, loss, steps, rate: None)


def _shallow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(text_depth, "depth", lambda texts, corpus: (1 - texts @ corpus.T).mean(1))


def _unnormed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gaussian_pooling, "gaussian_weights", lambda x, head: gaussian_pooling.densities(x, head).exp())


def _sizes(patch: pytest.MonkeyPatch) -> None:
    right = complex_positions.scores
    patch.setattr(complex_positions, "scores", lambda *parts: right(*parts).abs())  # the phase is lost


def _added(patch: pytest.MonkeyPatch) -> None:
    right = latent_alignment.Reader.soft
    patch.setattr(latent_alignment.Reader, "soft", lambda self, texts: -right(self, texts))  # as a baseline


def _over_components(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: low_rank_pooling.LowRank, states: torch.Tensor) -> torch.Tensor:
        return ((states @ self.q) * (self.context @ self.p)).softmax(2).mT  # and not over tokens

    patch.setattr(low_rank_pooling.LowRank, "weights", wrong)


def _sharper(patch: pytest.MonkeyPatch) -> None:
    right = several_sources.attention
    patch.setattr(several_sources, "attention", lambda x, source, weights: right(2 * x, source, weights))


def _with_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(efficient_probe.Probe, "efficient", efficient_probe.Probe.multi_head)


def _any_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention_training, "normalize", lambda x, **_: x)


def _by_words(patch: pytest.MonkeyPatch) -> None:
    right = skim_attention.Skimmer.__init__
    patch.setattr(skim_attention.Skimmer, "__init__", lambda self, own, places: right(self, True, places))


# By experiment: the measure that is wrong then, and how it is planted.
MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "head_size": ("built", _built),
    "explanations": ("gradient", _gradient),
    "one_step_gd": ("excess", _untrained),
    "attention_svm": ("cosine", _machine),
    "random_features": ("permuted", _places),
    "softmax_icl": ("two_over_one", _uniform),
    "locality": ("rise", _dial),
    "nearest_neighbour": ("built", _farthest),
    "passes": ("agree", _uncorrected),
    "cache_sizes": ("deepseek", _segments),
    "deconstructed": ("maps", _inputs),
    "dynamical_systems": ("match", _late),
    "hierarchy": ("hidden", _alone),
    "hyper_attention": ("slope", _unfair),
    "half_space": ("relu", _inexact),
    "power_reach": ("missed", _gaps),
    "frame_grid": ("permuted", _out_of_step),
    "blocks_by_lot": ("falling", _near_lot),
    "cost_law": ("dense", _linear),
    "shared_directions": ("together", _weakest),
    "dual_encoders": ("several", _first_stretch),
    "matching_pursuit": ("grows", _at_once),
    "merged_models": ("over_uniform", _undecided),
    "text_depth": ("deepest", _shallow),
    "gaussian_pooling": ("sums", _unnormed),
    "complex_positions": ("equal", _sizes),
    "latent_alignment": ("variance", _added),
    "low_rank_pooling": ("rank_one", _over_components),
    "several_sources": ("one", _sharper),
    "efficient_probe": ("weights", _with_keys),
    "attention_training": ("length", _any_length),
    "skim_attention": ("still", _by_words),
    **trials.MUTANTS,
    **context_trials.MUTANTS,
    **vision_trials.MUTANTS,
    **trained.MUTANTS,
}
