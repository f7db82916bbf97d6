"""Speed and memory beside dense attention: interleaved repetitions, medians, and whether this machine can tell."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from headwise.bench.frame import Frame
from headwise.errors import HeadwiseError
from headwise.kept import once
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, as_plan, attach
from headwise.seams.transformers.forward import forward
from headwise.watch import Watch

BATCHES = 3  # times that the largest batch is run
TIMES = ("first_token_s", "token_s", "end_to_end_s")


@dataclass(frozen=True)
class Timing:
    """One prompt read and continued: seconds to the first token, median seconds of each next one, seconds in all,
    tokens written in a second over all rows, bytes of the real storages at the end and at their most."""

    first_token_s: float
    token_s: float
    end_to_end_s: float
    tokens_per_s: float
    cache_bytes: int
    peak_bytes: int


def time_prompt(model: PreTrainedModel, plan: Plan, ids: torch.Tensor, new_tokens: int, seed: int = 0) -> Timing:
    """Read `ids [b, n]` in one pass under `plan` and write `new_tokens` greedily, whatever they are."""
    cache = Cache(model, plan, seed=seed)
    start = perf_counter()
    marks, step = [], ids
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = forward(model, cache, step, logits_to_keep=1).logits
        step = logits[:, -1].argmax(-1, keepdim=True)
        step[0, 0].item()  # waits for an accelerator
        marks.append(perf_counter())
    assert cache.session is not None, "a prompt was read"
    gaps = [later - one for one, later in pairwise(marks)]
    whole = marks[-1] - start
    rate = ids.shape[0] * new_tokens / whole
    return Timing(marks[0] - start, median(gaps), whole, rate, cache.nbytes, cache.session.ledger.peak_bytes)


def verdict(plan: Sequence[float], dense: Sequence[float], again: Sequence[float]) -> dict[str, Any]:
    """What seconds of a plan, of dense attention and of dense attention measured once more say.

    gain: median dense seconds over the plan's, above 1 where the plan is faster. noise: how far two measurements of
    the same thing differ, the larger of the difference of the two dense medians and half the spread of the quartiles
    of both, over the median. A gain within the noise says nothing.
    """
    both = sorted([*dense, *again])
    middle = median(both)
    spread = both[(3 * len(both)) // 4] - both[len(both) // 4]
    noise = max(abs(median(dense) - median(again)), spread / 2) / middle
    gain = middle / median(plan)
    if abs(1 - 1 / gain) <= noise:
        words = f"too noisy to tell (A/A differs by {noise:.0%})"
    else:
        words = f"{gain:.2f}x faster" if gain > 1 else f"no gain here ({1 / gain:.2f}x slower)"
    return {"gain": gain, "noise": noise, "words": words, "faster": gain > 1 and abs(1 - 1 / gain) > noise}


def check_repetitions(new_tokens: int, repetitions: int) -> None:
    """Refuse too few of either to take a median of."""
    if new_tokens < 2 or repetitions < 3:
        raise HeadwiseError(f"{new_tokens} new tokens, {repetitions} repetitions: medians need at least 2 and 3")


@dataclass(frozen=True)
class Timer:
    """Times a recipe or plan beside dense attention. memory: bytes the caches of the largest batch may take. folder:
    where finished contexts are kept; those that are there are not timed again."""

    model: PreTrainedModel
    recipe: str | Plan
    new_tokens: int
    repetitions: int
    memory: int
    seed: int = 0
    folder: Path | None = None

    def measure(
        self, contexts: Sequence[int], watch: Watch, each: Callable[[dict[str, Any]], None] = lambda found: None
    ) -> dict[str, Any]:
        """Every context at batch 1, the longest also at the largest batch each side can hold; plain JSON data.

        each: shown what was found of every context, then of the batch, as it is done.
        """
        check_repetitions(self.new_tokens, self.repetitions)
        turns = 3 * (self.repetitions + 1)
        works = [turns * context for context in contexts]  # tokens read, which is what takes the time
        total = sum(works) + BATCHES * sum(self._rows(max(contexts)).values()) * max(contexts)
        found, done = [], 0
        for context, work in zip(contexts, works, strict=True):
            tell = partial(_stepped, watch, f"{context} tokens", done, total, context)
            found.append(once(self.folder, f"context-{context}", partial(self._context, context, tell)))
            each(found[-1])
            done += work
        watch("largest batch", done, total)
        batch = once(self.folder, "batch", partial(self._batch, max(contexts)))
        each(batch)
        faster = [one["context"] for one in found if one["token_s"]["faster"]]
        return {
            "contexts": found,
            "break_even": min(faster, default=None),
            "batch": batch,
            "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
        }

    def _context(self, context: int, tell: Callable[[int], None]) -> dict[str, Any]:
        ids = self._ids(1, context)
        arms = {"dense": "", "plan": self.recipe, "again": ""}
        timings: dict[str, list[Timing]] = {name: [] for name in arms}
        for turn in range(self.repetitions + 1):
            for place, (name, recipe) in enumerate(arms.items()):
                tell(turn * len(arms) + place)
                one = self._timing(recipe, ids)
                if turn:  # the first turn pays for first calls
                    timings[name].append(one)
        sides = {name: [asdict(one) for one in own] for name, own in timings.items()}
        told = {
            key: verdict(*([one[key] for one in sides[name]] for name in ("plan", "dense", "again"))) for key in TIMES
        }
        medians = {name: {key: median(one[key] for one in own) for key in own[0]} for name, own in sides.items()}
        return {"context": context, "medians": medians, **told}

    def _rows(self, context: int) -> dict[str, int]:
        """The most sequences of `context` tokens whose caches fit into `memory`, for dense attention and the plan."""
        seam = attach(self.model)
        frame = Frame(seam, context + self.new_tokens, self.model.dtype)
        sides = {"dense": "", "plan": self.recipe}
        return {name: self.memory // frame.bytes_of(as_plan(seam, recipe)) for name, recipe in sides.items()}

    def _batch(self, context: int) -> dict[str, Any]:
        """The largest batch of both sides within `memory`, and the tokens each writes in a second."""
        told: dict[str, Any] = {"context": context, "memory": self.memory}
        for name, rows in self._rows(context).items():
            recipe, ids = "" if name == "dense" else self.recipe, self._ids(rows, context)
            rates = [self._timing(recipe, ids).tokens_per_s for _ in range(BATCHES)] if rows else [0.0]
            told[name] = {"rows": rows, "tokens_per_s": median(rates)}
        return told

    def _timing(self, recipe: str | Plan, ids: torch.Tensor) -> Timing:
        return time_prompt(self.model, as_plan(attach(self.model), recipe), ids, self.new_tokens, self.seed)

    def _ids(self, rows: int, context: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        vocabulary = self.model.config.get_text_config(decoder=True).vocab_size
        return torch.randint(vocabulary, (rows, context), generator=draw).to(self.model.device)


def _stepped(watch: Watch, what: str, before: int, total: int, size: int, step: int) -> None:
    watch(what, before + step * size, total)
