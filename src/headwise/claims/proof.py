"""Whether a host can tell methods apart: dense attention answers on it, and what chooses by no knowledge does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwise.bench.judging.intervals import of_strata
from headwise.claims.claim import Asked
from headwise.claims.on_host import OnHost

MOST_KEPT = 0.8  # of dense attention's answers, that nothing which knows nothing may keep: the interval's end
KNOW_NOTHING: Mapping[Asked, tuple[str, ...]] = {
    "after": (
        "random(0.25)",
        "random(0.25, skip_layers=2)",
        "streaming(0.25)",
        "random_read(0.1)",
        "random_read(0.1, skip_layers=2)",
        "recent_read(0.1)",
    ),
    "before": ("random(0.25)", "random(0.25, skip_layers=2)", "streaming(0.25)"),
    "along": ("bigbird(first=1, local=1, drawn=1, size=16)", "a_shape(4, window=64)"),
}


def proof(stage: OnHost, asked: Asked) -> dict[str, Any]:
    """What dense attention and KNOW_NOTHING answer on a host; `fails`: why claims cannot be shown on it, or ""."""
    count = stage.documents(asked)
    stage.measure_all(asked, KNOW_NOTHING[asked], range(count))
    dense = stage.dense(asked, count)
    kept = {sentence: _share(stage, asked, count, sentence) for sentence in KNOW_NOTHING[asked]}
    return {"dense": round(dense, 4), "kept": kept, "fails": _fails(stage.host.least_dense, dense, kept)}


def _share(stage: OnHost, asked: Asked, count: int, sentence: str) -> list[float]:
    """Share of dense attention's answers, with its 95 % interval over documents."""
    right = stage.right(asked, count, sentence)
    share = of_strata([[sum(own) / len(own) for own in right if own]])
    return [round(value, 4) for value in (share.mean, share.low, share.high)]


def _fails(least: float, dense: float, kept: Mapping[str, list[float]]) -> str:
    if dense < least:
        return f"dense attention answers {dense:.2f} of the questions here, {least} are needed"
    for sentence, (mean, _, high) in kept.items():
        if high > MOST_KEPT:
            return f"{sentence} keeps {mean:.2f} of the answers here, up to {high:.2f}: too many to tell methods apart"
    return ""
