"""The way of one token: files entered and Python calls made in a decoding step, and what of its time is Python.

    python benchmarks/token_path.py --models embedded 1b --recipes "" "quest(256)"

Counted are calls of Python functions of this package, by a profiler, from the attention function that transformers
calls to its return, in one step in the middle of decoding, which evicts nothing: of a layer that is neither the first
nor the last, and, as `all`, the mean over all layers, with what a step does once. Outside: the share of a step that is
neither inside the kernels of attention nor inside linear layers, each timed where it is called.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import models
import torch
from transformers import PreTrainedModel

import headwise
from headwise.bench.provenance import machine, versions
from headwise.kernels.native.decode import Decode

PACKAGE = str(Path(headwise.__file__).parent)
ENTRY = "_attention"  # what transformers calls, in seams/transformers/door.py


class Way:
    """Calls and files of the package below the attention function, by `sys.setprofile`."""

    def __init__(self, layers: int) -> None:
        self._last, self._layer, self._inside = layers - 1, -1, False
        self.inner, self.all, self.files = 0, 0, set[str]()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """A profiler."""
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            if code.co_name == ENTRY:
                self._layer, self._inside = self._layer + 1, True
            if self._inside:
                self.all += 1
                if 0 < self._layer < self._last:
                    self.inner += 1
                    self.files.add(code.co_filename)
        elif event == "return" and code.co_name == ENTRY:
            self._inside = False

    @property
    def calls(self) -> float:
        """Of an inner layer, in the mean."""
        return self.inner / max(1, self._last - 1)

    @property
    def mean(self) -> float:
        """Of all layers, with what a step does once."""
        return self.all / (self._last + 1)


@contextmanager
def clocked(model: PreTrainedModel) -> Iterator[list[float]]:
    """Seconds spent meanwhile in linear layers and in the native kernels of attention."""
    spent, own = [0.0], Decode.over
    begun: list[float] = []

    def before(*_: Any) -> None:
        begun.append(time.perf_counter())

    def after(*_: Any) -> None:
        spent[0] += time.perf_counter() - begun.pop()

    def timed(kernel: Any) -> Any:
        def run(*arguments: Any, **how: Any) -> Any:
            before()
            found = kernel(*arguments, **how)
            after()
            return found

        return run

    hooks = [
        hook
        for one in model.modules()
        if isinstance(one, torch.nn.Linear)
        for hook in (one.register_forward_pre_hook(before), one.register_forward_hook(after))
    ]
    Decode.over = timed(own)
    try:
        yield spent
    finally:
        Decode.over = own
        for hook in hooks:
            hook.remove()


def measured(name: str, recipe: str, tokens: int, steps: int) -> dict[str, Any]:
    """One recipe on one model."""
    model = models.load(name)
    cache, ids = headwise.Cache(model, recipe), models.prompt(model, tokens)
    logits = headwise.prefill(model, cache, ids)
    headwise.decode(model, cache, logits, 4)
    counted = Way(model.config.num_hidden_layers)
    sys.setprofile(counted)
    headwise.generate(model, cache, ids[:, :1], 1)
    sys.setprofile(None)
    taken, outside = [], []
    for _ in range(steps):
        with clocked(model) as spent:
            start = time.perf_counter()
            headwise.generate(model, cache, ids[:, :1], 1)
            taken.append(time.perf_counter() - start)
        outside.append(1 - spent[0] / taken[-1])
    return {
        "model": name,
        "recipe": recipe or "dense",
        "tokens": tokens,
        "files": len(counted.files),
        "calls": counted.calls,
        "all": counted.mean,
        "step_s": statistics.median(taken),
        "outside": statistics.median(outside),
    }


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["embedded"], help="embedded, 1b, 0.5b, small or tiny")
    parser.add_argument("--recipes", nargs="+", default=["", "quest(256)"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the rows as JSON")
    return parser


def main() -> None:
    """Count, clock, print a line for every row."""
    given = arguments().parse_args()
    rows = []
    print(f"{'model':10} {'recipe':30} files  calls    all  ms/step  outside kernels and linear layers")
    for name in given.models:
        for recipe in given.recipes:
            row = measured(name, recipe, given.tokens, given.steps)
            rows.append(row)
            print(
                f"{row['model']:10} {row['recipe']:30} {row['files']:5} {row['calls']:6.1f} {row['all']:6.1f} "
                f"{1e3 * row['step_s']:8.2f}  {row['outside']:.1%}", flush=True,
            )  # fmt: skip
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine(), "versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
