"""Running cells: those whose result is on disk are taken from there, the others are shared out over a crew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict

from headwise.bench.work import Cell, Setting, Worker
from headwise.engine.load import load_model, load_tokenizer, quiet
from headwise.errors import HeadwiseError
from headwise.files import read_json, write_text

Watch = Callable[[str, int, int], None]  # what is being done, cells done, cells in all
BATCH = 8  # cells of one task a process takes at a time: they share the documents and their dense reading

Named = tuple[str, Cell]  # a cell under its key

_worker: Worker | None = None


class CellFacts(BaseModel):
    """What the file of a finished cell says, as far as it is asked before the rows are judged."""

    model_config = ConfigDict(strict=True, extra="allow")

    cell: dict[str, Any]
    data: str
    documents: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    refused: str | None
    timings: dict[str, Any]


class Crew(Protocol):
    """Who runs cells."""

    def run(self, setting: Setting, cells: Sequence[Named], folder: Path | None) -> Iterator[tuple[str, Any]]:
        """Each cell's key and result as it is done, in any order, each written into `folder` as soon as it is made."""
        ...


def run_cells(
    setting: Setting, cells: Sequence[Cell], *, crew: Crew, folder: Path | None, watch: Watch
) -> list[dict[str, Any]]:
    """The result of every cell, in order.

    folder: where each result is written, whole or not at all, under its key; results found there are not made again.
    """
    keys = [cell.key(setting) for cell in cells]
    found = {key: result for key in keys if (result := _saved(folder, key)) is not None}
    missing = [(key, cell) for key, cell in zip(keys, cells, strict=True) if key not in found]
    watch("measuring", len(found), len(cells))
    for key, result in crew.run(setting, missing, folder) if missing else ():
        found[key] = result
        watch(f"measuring {result['cell']['task']}", len(found), len(cells))
    return [found[key] for key in keys]


@dataclass(frozen=True)
class Processes:
    """`count` processes of this machine, each with its own copy of the model and one thread; 1 is this process."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise HeadwiseError(f"--workers {self.count}: nothing would run; give 1 or more")

    def run(self, setting: Setting, cells: Sequence[Named], folder: Path | None) -> Iterator[tuple[str, Any]]:
        """See Crew."""
        if self.count > 1 and len(cells) > 1:
            yield from self._spread(setting, cells, folder)
            return
        worker = open_worker(setting)
        for key, cell in cells:
            yield key, save(worker.run(cell), key, folder)

    def _spread(self, setting: Setting, cells: Sequence[Named], folder: Path | None) -> Iterator[tuple[str, Any]]:
        """Batches of neighbouring cells of one task and length, to whichever process is free."""
        batches = []
        for _, same in groupby(cells, key=lambda named: (named[1].task, named[1].context)):
            own = list(same)
            batches += [own[start : start + BATCH] for start in range(0, len(own), BATCH)]
        with ProcessPoolExecutor(self.count, get_context("spawn"), _open, (setting,)) as pool:
            waiting: set[Future[list[tuple[str, Any]]]] = {pool.submit(_run_batch, batch, folder) for batch in batches}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _open(setting: Setting) -> None:
    """Make this process a worker."""
    global _worker
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = open_worker(setting)


def _end_with_parent() -> None:
    """A killed parent cannot stop its processes, and the pool's would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "spawned by the pool"
    parent.join()
    os._exit(1)


def _run_batch(batch: Sequence[Named], folder: Path | None) -> list[tuple[str, Any]]:
    assert _worker is not None, "the pool opens each process"
    return [(key, save(_worker.run(cell), key, folder)) for key, cell in batch]


def open_worker(setting: Setting) -> Worker:
    """Load the model into this process."""
    quiet()
    model = load_model(setting.model, setting.dtype, setting.device)
    return Worker(model, load_tokenizer(setting.model), setting)


def save(result: dict[str, Any], key: str, folder: Path | None) -> dict[str, Any]:
    """Write a result into `folder`; returns it as it will be read: the same whether it was just made or read again."""
    text = json.dumps(result)
    if folder is not None:
        write_text(_path(folder, key), text)
    found: dict[str, Any] = json.loads(text)
    return found


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _saved(folder: Path | None, key: str) -> dict[str, Any] | None:
    if folder is None or not _path(folder, key).is_file():
        return None
    found = read_json(_path(folder, key), CellFacts, HeadwiseError, "delete it to have it made again")
    return found.model_dump(exclude_unset=True)
