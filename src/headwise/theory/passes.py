"""How often attention must go over the keys follows from how it is written as a cascade of Einsums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, register
from headwise.theory.fitting import generator

TILE, KEYS = "b", "ab"  # the rank within a tile of keys, and both ranks that keys are cut into


@dataclass(frozen=True)
class Einsum:
    """One tensor of a cascade: its ranks, a letter each, and the tensors that it is made of. divides: by a division."""

    out: str
    ranks: str
    reads: tuple[str, ...]
    divides: bool = False


INPUTS = {"Q": "fe", "K": "abe", "V": "abp"}
SCORES = Einsum("S", "fab", ("Q", "K"))
LOCAL = (SCORES, Einsum("L", "fa", ("S",)))  # the largest score of a tile
CASCADES: dict[str, tuple[Einsum, ...]] = {
    "three": (
        SCORES, Einsum("G", "f", ("S",)), Einsum("N", "fab", ("S", "G")), Einsum("D", "f", ("N",)),
        Einsum("A", "fab", ("N", "D"), divides=True), Einsum("O", "fp", ("A", "V")),
    ),
    "two": (
        *LOCAL, Einsum("N", "fab", ("S", "L")), Einsum("G", "f", ("L",)), Einsum("C", "fa", ("L", "G")),
        Einsum("W", "fab", ("N", "C")), Einsum("D", "f", ("W",)), Einsum("T", "fp", ("W", "V")),
        Einsum("O", "fp", ("T", "D"), divides=True),
    ),
    "one": (
        *LOCAL, Einsum("R", "fa", ("L", "R")), Einsum("N", "fab", ("S", "R")), Einsum("D", "fa", ("N", "R", "D")),
        Einsum("T", "fap", ("N", "V", "R", "T")), Einsum("O", "fp", ("T", "D"), divides=True),
    ),
    "one_divided_first": (
        *LOCAL, Einsum("R", "fa", ("L", "R")), Einsum("N", "fab", ("S", "R")), Einsum("D", "f", ("N", "R")),
        Einsum("A", "fab", ("N", "D"), divides=True), Einsum("O", "fp", ("A", "V")),
    ),
}  # fmt: skip


def levels(cascade: tuple[Einsum, ...]) -> dict[str, int]:
    """By tensor, the pass over the keys in which it is made, or after which it is complete.

    A tensor with a key rank is made along the way, in the pass of what it reads; but not before a tensor that has lost
    its key ranks, and so needs all keys, is complete. A tensor that reads itself runs along the tiles.
    """
    ranks = INPUTS | {one.out: one.ranks for one in cascade}
    found = {"Q": 0, "K": 1, "V": 1}
    for one in cascade:
        read = [name for name in one.reads if name != one.out]
        along = [found[name] for name in read if keyed(ranks[name])]
        whole = [found[name] for name in read if not keyed(ranks[name])]
        found[one.out] = max([0, *along, *(level + 1 for level in whole)] if keyed(one.ranks) else [0, *along, *whole])
    return found


def keyed(ranks: str) -> bool:
    """Whether a tensor is as long as the keys, or as their tiles."""
    return any(rank in KEYS for rank in ranks)


def passes(cascade: tuple[Einsum, ...]) -> int:
    """Over the keys, until everything is made."""
    return max(levels(cascade)[one.out] for one in cascade)


def crossing(cascade: tuple[Einsum, ...]) -> dict[str, int]:
    """By tensor with all key ranks that is read in later passes than its own, how many of these: it must be stored."""
    found, ranks = levels(cascade), {one.out: one.ranks for one in cascade}
    later: dict[str, set[int]] = {}
    for one in cascade:
        for name in one.reads:
            if TILE in ranks.get(name, "") and found[one.out] > found[name]:
                later.setdefault(name, set()).add(found[one.out])
    return {name: len(levels) for name, levels in later.items()}


def reads(cascade: tuple[Einsum, ...], sizes: Mapping[str, int]) -> int:
    """Elements with a key rank that are read from memory: K and V where they are used, and what was stored."""
    stored = sum(count * elements(one.ranks, sizes) for one in cascade
                 for name, count in crossing(cascade).items() if name == one.out)  # fmt: skip
    return elements(INPUTS["K"], sizes) + elements(INPUTS["V"], sizes) + stored


def buffer(cascade: tuple[Einsum, ...], sizes: Mapping[str, int]) -> int:
    """Elements held at once: whole what is read in later passes, of all else with key ranks one tile."""
    stored, tile = crossing(cascade), {**sizes, "a": 1}
    return sum(elements(one.ranks, sizes if one.out in stored else tile) for one in cascade)


def divisions(cascade: tuple[Einsum, ...], sizes: Mapping[str, int]) -> int:
    """How many there are."""
    return sum(elements(one.ranks, sizes) for one in cascade if one.divides)


def elements(ranks: str, sizes: Mapping[str, int]) -> int:
    """Of a tensor."""
    return math.prod(sizes[rank] for rank in ranks)


class Memory:
    """Tensors along keys, [rows or keys, ...] in tiles, that count what is read of them."""

    def __init__(self, size: int) -> None:
        self.size, self.read = size, 0

    def tiles(self, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """The tensors' tiles along their last but one dimension, read once."""
        self.read += sum(tensor.numel() for tensor in tensors)
        return list(zip(*(tensor.split(self.size, dim=-2) for tensor in tensors), strict=True))


def three_passes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Safe softmax: scores are stored, then their exponentials. q [rows, dim], k and v [keys, dim]."""
    scores = torch.cat([tile @ q.T for (tile,) in memory.tiles(k)])
    largest = scores.amax(0)
    weights = torch.cat([(tile - largest).exp() for (tile,) in memory.tiles(scores)])
    total = weights.sum(0)
    return sum(((tile / total).T @ value for tile, value in memory.tiles(weights, v)), torch.zeros(()))


def two_passes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Partial softmax: exponentials less the largest of their own tile are stored, and corrected in the second pass."""
    stored, largest = [], []
    for (tile,) in memory.tiles(k):
        scores = tile @ q.T
        largest.append(scores.amax(0))
        stored.append((scores - largest[-1]).exp())
    most = torch.stack(largest).amax(0)
    total, out = torch.zeros(()), torch.zeros(())
    for (weights, value), own in zip(memory.tiles(torch.cat(stored), v), largest, strict=True):
        corrected = weights * (own - most).exp()
        total, out = total + corrected.sum(0), out + corrected.T @ value
    return out / total[:, None]


def one_pass(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: Memory, corrects: bool = True) -> torch.Tensor:
    """Online softmax: what was added so far is corrected whenever a larger score comes."""
    most = torch.full((len(q),), -torch.inf, dtype=q.dtype)
    total, out = torch.zeros(len(q), dtype=q.dtype), torch.zeros(len(q), v.shape[1], dtype=q.dtype)
    for tile, value in memory.tiles(k, v):
        scores = tile @ q.T
        largest = torch.maximum(most, scores.amax(0))
        weights = (scores - largest).exp()
        keep = (most - largest).exp() if corrects else torch.ones(())
        total, out = total * keep + weights.sum(0), out * keep[..., None] + weights.T @ value
        most = largest
    return out / total[:, None]


@register("passes")
@dataclass(frozen=True, kw_only=True)
class Passes(Experiment):
    """Derives passes, reads, buffers and divisions of attention's cascades, and counts them on kernels that run.

    rows: queries. tile, tiles: keys of a tile, and how many. dim: channels of keys and of values.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Passes of a cascade of Einsums",
        statement="Written as cascades of Einsums, safe softmax needs three passes over the keys, partial softmax two "
        "and online softmax one; divided after the value product, there are as many divisions as outputs; only one "
        "pass has a buffer of the same size at every length",
        paper="FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design, arXiv 2406.10491, "
        "sections III (passes) and IV (attention)",
        setting="a spatial accelerator; the analysis has no sizes",
        seconds=2,
        systems=(106,),
        differs="kernels store what a later pass reads and never compute it anew; reads are those of tensors along the "
        "keys",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("how far derived passes are from 3, 2 and 1, summed", "passes", "passes_divided_first",
             "online softmax that divides before the value product", below=0.5),
        Part("elements read by the kernels beside those derived, share", "reads", "reads_swapped",
             "those derived for three passes, beside the kernel of one", below=1e-9),
        Part("buffer of one pass at twice the length, over that at the length", "buffer", "buffer_three",
             "three passes", below=1.01),
        Part("divisions after the value product over those before", "divisions", "divisions_before",
             "before the value product", below=0.5),
        Part("largest difference of the three kernels' outputs", "agree", "agree_uncorrected",
             "online softmax that corrects nothing", below=1e-5),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"buffer": Panel("keys", "elements", "xy")}

    rows: Size = 16
    tile: Size = 16
    tiles: Size = 16
    dim: Size = 16

    def draw(self, seed: int) -> dict[str, Any]:
        """What is derived, and what is counted on random queries, keys and values."""
        chance = generator(self.name, seed)
        keys = self.tile * self.tiles
        q, k, v = (
            torch.randn(count, self.dim, generator=chance, dtype=torch.float64) for count in (self.rows, keys, keys)
        )
        kernels = {"three": three_passes, "two": two_passes, "one": one_pass}
        memories = {name: Memory(self.tile) for name in kernels}
        outputs = {name: kernel(q, k, v, memories[name]) for name, kernel in kernels.items()}
        wrong = one_pass(q, k, v, Memory(self.tile), corrects=False)
        sizes = self.sizes(self.tiles)
        derived = {name: reads(CASCADES[name], sizes) for name in kernels}
        wanted = dict(zip(("three", "two", "one"), (3, 2, 1), strict=True))
        held = {name: [[float(self.tile * tiles), float(buffer(CASCADES[name], self.sizes(tiles)))]
                       for tiles in (self.tiles, 2 * self.tiles, 4 * self.tiles)] for name in kernels}  # fmt: skip
        before = divisions(CASCADES["three"], sizes)
        return {
            "measures": {
                "passes": float(sum(abs(passes(CASCADES[name]) - count) for name, count in wanted.items())),
                "passes_divided_first": float(abs(passes(CASCADES["one_divided_first"]) - 1)),
                "reads": max(abs(memories[name].read / count - 1) for name, count in derived.items()),
                "reads_swapped": abs(memories["one"].read / derived["three"] - 1),
                "buffer": held["one"][1][1] / held["one"][0][1],
                "buffer_three": held["three"][1][1] / held["three"][0][1],
                "divisions": divisions(CASCADES["one"], sizes) / before,
                "divisions_before": divisions(CASCADES["one_divided_first"], sizes) / before,
                "agree": max(float((outputs["three"] - outputs[name]).abs().max()) for name in ("two", "one")),
                "agree_uncorrected": float((outputs["three"] - wrong).abs().max()),
            },
            "lines": {"buffer": {f"{name} passes" if name != "one" else "one pass": held[name] for name in kernels}},
        }

    def sizes(self, tiles: int) -> dict[str, int]:
        """Of every rank."""
        return {"f": self.rows, "a": tiles, "b": self.tile, "e": self.dim, "p": self.dim}
