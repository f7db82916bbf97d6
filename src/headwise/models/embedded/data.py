"""Batches of composed sequences, the same for any number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

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
        """The batch on a device."""
        return Batch(self.ids.to(device), self.weights.to(device), self.tags.to(device))

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows."""
        return Batch(self.ids[start:stop], self.weights[start:stop], self.tags[start:stop])


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids, weights, tags of whole rows, in small types


def _compose(composer: Composer, stage: Stage, seed: str, rows: int | None = None) -> Arrays:
    """The rows that `seed` names: each is drawn from its own generator."""
    rows, size = rows or stage.rows, stage.context + 1
    ids = np.empty((rows, size), np.uint16)
    weights = np.empty((rows, size), np.float32)
    tags = np.empty((rows, size), np.uint16)
    for i in range(rows):
        row = composer.row(Random(f"{seed}/{i}"), size, stage.mixture)
        ids[i], weights[i], tags[i] = row.ids, row.weights, row.tags
    weights[tags % KINDS == KIND["text"]] *= stage.text_weight
    return ids, weights, tags


def _batch(arrays: Arrays) -> Batch:
    """Tensors of the composed rows; weights and tags belong to the targets."""
    ids, weights, tags = arrays
    return Batch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(weights[:, 1:])),
        torch.from_numpy(tags[:, 1:].astype(np.int32)),
    )


def make_batch(composer: Composer, stage: Stage, seed: str, rows: int | None = None) -> Batch:
    """The batch that `seed` names, of the stage's rows or of `rows`."""
    return _batch(_compose(composer, stage, seed, rows))


def _unchanged(arrays: Any) -> Any:
    """Keeps the DataLoader from turning arrays into tensors, which would need shared memory."""
    return arrays


class Stream(IterableDataset[Arrays]):
    """The batches `first`, `first + 1`, ... of a stage; batch i depends on (seed, stage index, i) alone.

    Worker w of W makes the batches first + w, first + w + W, ...; the DataLoader takes turns
    over its workers, so that the order is that of one process.
    """

    def __init__(self, composer: Composer, stage: Stage, seed: str, first: int = 0) -> None:
        self.composer, self.stage, self.seed, self.first = composer, stage, seed, first

    def __iter__(self) -> Iterator[Arrays]:
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(self.first + start, self.stage.steps, step):
            yield _compose(self.composer, self.stage, f"{self.seed}/{index}")


def composer_of(data: Path, split: str, held: bool = False) -> Composer:
    """A composer over the token files of a prepared folder."""
    if not (data / "meta.json").exists():
        raise FileNotFoundError(f"{data / 'meta.json'} is missing; make it with `headwise train prepare`")
    encoder = Encoder(data)
    return Composer(Texts(data, split, encoder), encoder, held)


def loader(composer: Composer, stage: Stage, seed: str, first: int = 0, workers: int = 0) -> Iterator[Batch]:
    """Iterate over a stage's batches from `first` on with worker processes (0: in this process)."""
    stream = Stream(composer, stage, seed, first)
    if workers == 0:
        yield from map(_batch, stream)
        return
    yield from map(
        _batch,
        DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=3,
            collate_fn=_unchanged,
            multiprocessing_context="fork",
        ),
    )
