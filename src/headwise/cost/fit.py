"""Fit: peak memory and time of a model under a plan, before anything is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from headwise.assets import embedded_model
from headwise.attention import attend
from headwise.cost.meta_model import MetaModel, Work
from headwise.cost.prediction import available_bytes, predicted_bytes
from headwise.engine.evict import WITNESSES
from headwise.engine.group import Group
from headwise.engine.session import Session
from headwise.errors import ContextError
from headwise.forms import Causal, Scoring
from headwise.kernels.native.library import unusable
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import LEAST_CHUNK, feed, prefill
from headwise.seams.transformers.load import load_meta, load_model, weight_bytes
from headwise.shapes import format_bytes

CHUNK = 2048  # tokens of a piece of prompt, as in seams/transformers/drive.py
# The C library keeps blocks that were freed: found by benchmarks/fit.py, between 1.3 and 2.1 times what was alive.
ALLOCATED = 1.5


@dataclass(frozen=True)
class Machine:
    """Constants of this machine in one element type, each measured for a moment: see `measure_machine`.

    flops: floating-point operations a second in a matrix product. attention: the same in causal attention.
    bandwidth: bytes a second read by a product with one vector. call_s: seconds that one operation of a model's forward
    costs whatever it does. runtime: bytes of Python, its libraries, and what they set up when first used.
    """

    flops: float
    attention: float
    bandwidth: float
    call_s: float
    runtime: int


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
    """Resident memory of this process."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure_machine(dtype: torch.dtype) -> Machine:
    """A few steps of the embedded model, products, scans of memory and a piece of attention; a second or two in all."""
    call_s, runtime = _small_model(dtype)
    a, b = torch.ones(1024, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    flops = 2 * 1024 * 2048 * 2048 / _seconds(lambda: a @ b)
    wide, vector = torch.ones(16384, 2048, dtype=dtype), torch.ones(2048, 1, dtype=dtype)
    bandwidth = wide.nbytes / _seconds(lambda: wide @ vector)
    q, k = torch.ones(4, 2, 1024, 64, dtype=dtype), torch.ones(4, 1024, 64, dtype=dtype)
    attention = 4 * 8 * 64 * 1024 * 1024 / 2 / _seconds(lambda: attend(q, k, k, Causal(), Scoring(0.125)))
    return Machine(flops, attention, bandwidth, call_s, runtime)


def _small_model(dtype: torch.dtype) -> tuple[float, int]:
    """Seconds of each operation in a step of the embedded model, whose products are small, and the bytes resident
    while it runs, its weights left out."""
    name, kind = str(embedded_model()), str(dtype).removeprefix("torch.")
    operations = len(MetaModel(load_meta(name, kind)).work(1).operations)
    model = load_model(name, kind)
    cache, ids = Cache(model), torch.arange(3, 3 + LEAST_CHUNK)[None]
    prefill(model, cache, ids)
    step = _seconds(lambda: feed(model, cache, ids[:, :1]))
    return step / operations, resident_bytes() - weight_bytes(name, model)


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

    meta: MetaModel
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
        return self.meta.model.dtype

    @cached_property
    def free(self) -> int | None:
        """Bytes that a process may take that does what this one predicts, this one being gone."""
        available = available_bytes()
        return self.memory or (None if available is None else available + self.machine.runtime)

    @cached_property
    def machine(self) -> Machine:
        """Measured at first use."""
        return measure_machine(self.dtype)

    def fit(self, tokens: int) -> Fit:
        """What a prompt of `tokens` in each of the sequences costs. ContextError beyond the trained positions."""
        limit = self.meta.geometry.max_positions
        if not 1 <= tokens <= limit:
            raise ContextError(f"--context {tokens}: the model was trained on {limit} positions; give 1 to {limit}")
        bare = self._bytes(tokens)
        return replace(bare, prompt_s=self._prompt_seconds(tokens), token_s=self._token_seconds(bare.cache))

    def largest(self) -> Fit:
        """The longest context that fits; ContextError when not even one token does."""
        low, high = 1, self.meta.geometry.max_positions
        if not (least := self._bytes(low)).fits:
            raise ContextError(
                f"one token already takes {format_bytes(least.peak)}, {format_bytes(least.free or 0)} are free; "
                "give --available, a smaller --batch or a smaller model"
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
            self._works[tokens] = self.meta.work(tokens, self.batch)
        return self._works[tokens]

    def _bytes(self, tokens: int) -> Fit:
        cache = self.batch * predicted_bytes(self.plan, tokens, self.dtype)
        work = self._work(self._piece(tokens))
        workspace = round(ALLOCATED * max(work.peak, work.attending + self.batch * self._beside(tokens)))
        return Fit(tokens, self.batch, self.machine.runtime, self.weights, cache, workspace, self.free, 0.0, 0.0)

    def _beside(self, tokens: int) -> int:
        """Most bytes of one sequence beside cache and activations while a layer attends, or changes what it holds."""
        size, piece = self.dtype.itemsize, self._piece(tokens)
        out = piece * max(layer.query_heads * layer.value_width for layer in self.meta.geometry.layers)
        # the chunk's own part, what came before it, and their sum, made in float32
        joined = out * size if piece == tokens else out * (2 * size + (4 if size == 4 else 12))
        return max(
            joined, *(self._group_beside(group, tokens) for group in Session(self.plan, dtype=self.dtype).groups)
        )

    def _group_beside(self, group: Group, tokens: int) -> int:
        """The same of the heads of a layer that follow one recipe."""
        shape, size, recipe = self.meta.geometry.layers[group.layer], self.dtype.itemsize, group.recipe
        kept = self.plan.count(recipe, group.layer, tokens) if shape.window is None else min(shape.window, tokens)
        held = min(tokens, kept + self._piece(tokens))
        kept_pool, pool = (
            self._pool(group, count) for count in (kept, held)
        )  # the old pool, while a new one is filled
        pool = max(pool, self._read_whole(group, held))
        if recipe.evict is None:
            return pool
        seen = max(WITNESSES, recipe.evict.last_queries) * shape.group
        wide = seen + shape.key_width if size < 4 else 0  # of half precision, copies in float32
        return max(pool, pool - kept_pool + len(group.heads) * held * 4 * (2 * seen + wide))

    def _read_whole(self, group: Group, held: int) -> int:
        """Bytes of the tensors in which a group's heads are read, `held` tokens each, where pages are not read in
        place: through a pattern, a window or steering; coded ones without kernels, beside what a chunk reads of itself
        and of them."""
        shape, size, heads = self.meta.geometry.layers[group.layer], self.dtype.itemsize, len(group.heads)
        whole = heads * held * shape.token_width * size
        if group.recipe.prefill is not None or group.recipe.steer is not None or shape.window is not None:
            return whole
        if not unusable() or all(set(part.shape.codecs) == {"plain"} for part in group.store.parts):
            return 0
        decoding = heads * held * shape.value_width * 4 if size < 4 else 0  # in float32 first
        return whole + max(decoding, 2 * heads * shape.group * self._piece(held) * shape.value_width * size)

    def _pool(self, group: Group, count: int) -> int:
        group.planned = [count]
        return group.predicted_bytes()

    def _prompt_seconds(self, tokens: int) -> float:
        piece = self._piece(tokens)
        products = sum(
            layer.query_heads
            * (layer.key_width + layer.value_width)
            * (tokens * tokens / 2 if layer.window is None else tokens * min(layer.window, tokens))
            for layer in self.meta.geometry.layers
        )
        attention = 2 * products * self.batch / self.machine.attention
        return self._seconds_of(self._work(piece)) * tokens / piece + attention

    def _token_seconds(self, cache: int) -> float:
        return self._seconds_of(self._work(1)) + cache / self.machine.bandwidth

    def _seconds_of(self, work: Work) -> float:
        """Each operation takes as long as its arithmetic or its memory, whichever is longer, and its call."""
        machine = self.machine
        return sum(max(f / machine.flops, b / machine.bandwidth) + machine.call_s for f, b in work.operations)
