"""Batches of composed sequences, the same for any number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .compose import KIND, KINDS, Composer
from .encode import Encoder, Texts
from .recipe import Stage


@dataclass(frozen=True)
class Batch:
    """ids [rows, context + 1] int64; weights [rows, context] float32 and tags [rows, context] int32 of the targets."""

    ids: torch.Tensor
    weights: torch.Tensor
    tags: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device (asynchronous from pinned memory)."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.ids, self.weights, self.tags)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader)."""
        return Batch(*(t.pin_memory() for t in (self.ids, self.weights, self.tags)))

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows."""
        return Batch(self.ids[start:stop], self.weights[start:stop], self.tags[start:stop])


def make_batch(composer: Composer, stage: Stage, seed: str, rows: int | None = None) -> Batch:
    """The batch that `seed` names: every row is drawn from its own generator."""
    rows, size = rows or stage.rows, stage.context + 1
    ids = np.empty((rows, size), np.int64)
    weights = np.empty((rows, size), np.float32)
    tags = np.empty((rows, size), np.int32)
    for i in range(rows):
        row = composer.row(Random(f"{seed}/{i}"), size, stage.mixture)
        ids[i], weights[i], tags[i] = row.ids, row.weights, row.tags
    weights[tags % KINDS == KIND["text"]] *= stage.text_weight
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(np.ascontiguousarray(weights[:, 1:])),
        torch.from_numpy(np.ascontiguousarray(tags[:, 1:])),
    )


class Stream(IterableDataset[Batch]):
    """The batches `first`, `first + 1`, ... of a stage; batch i depends on (seed, stage index, i) alone.

    Worker w of W makes the batches first + w, first + w + W, ...; the DataLoader takes turns
    over its workers, so that the order is that of one process.
    """

    def __init__(self, composer: Composer, stage: Stage, seed: str, first: int = 0) -> None:
        self.composer, self.stage, self.seed, self.first = composer, stage, seed, first

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(self.first + start, self.stage.steps, step):
            yield make_batch(self.composer, self.stage, f"{self.seed}/{index}")


def composer_of(data: Path, split: str, held: bool = False) -> Composer:
    """A composer over the token files of a prepared folder."""
    if not (data / "meta.json").exists():
        raise FileNotFoundError(f"{data / 'meta.json'} is missing; make it with `headwise train prepare`")
    encoder = Encoder(data)
    return Composer(Texts(data, split, encoder), encoder, held)


def loader(composer: Composer, stage: Stage, seed: str, first: int, workers: int, cuda: bool) -> Iterator[Batch]:
    """Iterate over a stage's batches from `first` on with worker processes (0: in this process)."""
    stream = Stream(composer, stage, seed, first)
    if workers == 0:
        return iter(stream)
    return iter(
        DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=3,
            pin_memory=cuda,
            multiprocessing_context="fork",
        )
    )
