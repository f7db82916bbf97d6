"""Fit: peak memory and time of a model under a plan, before anything is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from headwise.attention import Causal, attend
from headwise.engine.budget import available_bytes, predicted_bytes
from headwise.engine.drive import LEAST_CHUNK
from headwise.engine.evict import WITNESSES
from headwise.engine.hollow import Hollow, Work
from headwise.errors import ContextError
from headwise.plan import Plan
from headwise.shapes import format_bytes

CHUNK = 2048  # tokens of a piece of prompt, as in engine/drive.py


@dataclass(frozen=True)
class Machine:
    """Constants of this machine in one element type, each measured for a moment: see `measure_machine`.

    flops: floating-point operations a second in a matrix product. attention: the same in causal attention.
    bandwidth: bytes a second read by a product with one vector. call_s: seconds of an operation that does nothing.
    """

    flops: float
    attention: float
    bandwidth: float
    call_s: float


@dataclass(frozen=True)
class Fit:
    """Predicted bytes at the worst moment of a prompt, and seconds.

    tokens, batch: what was asked. runtime: Python with its libraries. weights, cache: as held at the end.
    workspace: activations of one piece of prompt and what is held twice while a layer changes. free: bytes it may take.
    prompt_s: seconds until the first token; token_s: of each later one.
    """

    tokens: int
    batch: int
    runtime: int
    weights: int
    cache: int
    workspace: int
    free: int | None
    prompt_s: float
    token_s: float

    @property
    def peak(self) -> int:
        """All of it."""
        return self.runtime + self.weights + self.cache + self.workspace

    @property
    def fits(self) -> bool:
        """Whether the peak is at most what is free; True where nobody can say what is."""
        return self.free is None or self.peak <= self.free

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"peak": self.peak, "fits": self.fits}


def resident_bytes() -> int:
    """Resident memory of this process: all of it the price of Python and its libraries, as no model is loaded."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure_machine(dtype: torch.dtype) -> Machine:
    """A few products, a few scans of memory, a piece of attention and empty operations; about a second in all."""
    a, b = torch.ones(1024, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    flops = 2 * 1024 * 2048 * 2048 / _seconds(lambda: a @ b)
    wide, vector = torch.ones(16384, 2048, dtype=dtype), torch.ones(2048, 1, dtype=dtype)
    bandwidth = wide.nbytes / _seconds(lambda: wide @ vector)
    q, k = torch.ones(4, 2, 1024, 64, dtype=dtype), torch.ones(4, 1024, 64, dtype=dtype)
    attention = 4 * 8 * 64 * 1024 * 1024 / 2 / _seconds(lambda: attend(q, k, k, Causal(), scale=0.125))
    small = torch.ones(1, 8)
    return Machine(flops, attention, bandwidth, _seconds(lambda: small + small))


def _seconds(work: Callable[[], object], repetitions: int = 5) -> float:
    """The shortest of a few runs, after one that warms up."""
    work()
    taken = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@dataclass
class Predictor:
    """Fits of one model under one plan, read in pieces of `chunk` tokens (0: in one pass).

    memory: bytes the process may take; None for what the system has free.
    """

    hollow: Hollow
    weights: int
    plan: Plan
    batch: int = 1
    chunk: int = CHUNK
    memory: int | None = None

    _works: dict[int, Work] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ContextError(f"--batch {self.batch}: give 1 or more sequences")
        if self.chunk and self.chunk < LEAST_CHUNK:
            raise ContextError(f"--chunk {self.chunk} is too small; give {LEAST_CHUNK} or more, or 0 for one pass")

    @property
    def dtype(self) -> torch.dtype:
        """Element type of weights and cache."""
        return self.hollow.model.dtype

    @cached_property
    def free(self) -> int | None:
        """Bytes that a process may take that does what this one predicts, this one being gone."""
        available = available_bytes()
        return self.memory or (None if available is None else available + self.runtime)

    @cached_property
    def runtime(self) -> int:
        """Bytes of Python with its libraries."""
        return resident_bytes()

    @cached_property
    def machine(self) -> Machine:
        """Measured at first use, after `runtime`, which it would change."""
        return measure_machine(self.dtype)

    def fit(self, tokens: int) -> Fit:
        """What a prompt of `tokens` in each of the sequences costs. ContextError beyond the trained positions."""
        limit = self.hollow.geometry.max_positions
        if not 1 <= tokens <= limit:
            raise ContextError(f"--context {tokens}: the model was trained on {limit} positions; give 1 to {limit}")
        bare = self._bytes(tokens)
        return replace(bare, prompt_s=self._prompt_seconds(tokens), token_s=self._token_seconds(bare.cache))

    def largest(self) -> Fit:
        """The longest context that fits; ContextError when not even one token does."""
        low, high = 1, self.hollow.geometry.max_positions
        if not (least := self._bytes(low)).fits:
            raise ContextError(
                f"one token already takes {format_bytes(least.peak)}, {format_bytes(least.free or 0)} are free; "
                "give --memory, a smaller --batch or a smaller model"
            )
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._bytes(middle).fits else (low, middle - 1)
        return self.fit(low)

    def _piece(self, tokens: int) -> int:
        """Tokens of the longest piece of a prompt."""
        return min(tokens, self.chunk) if self.chunk else tokens

    def _work(self, tokens: int) -> Work:
        """Of a forward of `tokens`."""
        if tokens not in self._works:
            self._works[tokens] = self.hollow.work(tokens, self.batch)
        return self._works[tokens]

    def _bytes(self, tokens: int) -> Fit:
        runtime = self.runtime
        cache = self.batch * predicted_bytes(self.plan, tokens, self.dtype)
        work = self._work(self._piece(tokens))
        workspace = max(work.peak, work.attending + self.batch * self._beside(tokens))
        return Fit(tokens, self.batch, runtime, self.weights, cache, workspace, self.free, 0.0, 0.0)

    def _beside(self, tokens: int) -> int:
        """Most bytes of one sequence beside cache and activations while a layer attends, or changes what it holds."""
        return max(self._layer_beside(layer, tokens) for layer in range(self.hollow.geometry.layers))

    def _layer_beside(self, layer: int, tokens: int) -> int:
        geometry, size, piece = self.hollow.geometry, self.dtype.itemsize, self._piece(tokens)
        window, width = geometry.windows[layer], geometry.key_width + geometry.value_width
        joined = 0 if piece == tokens else 3 * geometry.query_heads * piece * geometry.value_width * 4
        most = [joined]
        for recipe, heads in self.plan.groups(layer):
            kept = self.plan.count(recipe, layer, tokens) if window is None else min(window, tokens)
            lane = min(tokens, kept + piece)
            most.append(
                len(heads) * lane * width * size
            )  # the old pool while a new one is filled, or all in one tensor
            if recipe.evict is not None:
                seen = max(WITNESSES, recipe.evict.remembers) * geometry.group
                most.append(len(heads) * lane * 4 * (2 * seen + geometry.key_width))  # scores, and keys in float32
        return max(most)

    def _prompt_seconds(self, tokens: int) -> float:
        piece, geometry = self._piece(tokens), self.hollow.geometry
        pairs = sum(tokens * tokens / 2 if w is None else tokens * min(w, tokens) for w in geometry.windows)
        width = geometry.key_width + geometry.value_width
        attention = 2 * geometry.query_heads * width * pairs * self.batch / self.machine.attention
        return self._seconds_of(self._work(piece)) * tokens / piece + attention

    def _token_seconds(self, cache: int) -> float:
        return self._seconds_of(self._work(1)) + cache / self.machine.bandwidth

    def _seconds_of(self, work: Work) -> float:
        """Each operation takes as long as its arithmetic or its memory, whichever is longer, and its call."""
        machine = self.machine
        return sum(max(f / machine.flops, b / machine.bandwidth) + machine.call_s for f, b in work.operations)
