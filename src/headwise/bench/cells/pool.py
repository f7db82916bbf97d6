"""Running cells: those whose result is on disk are taken from there, the others are shared out over an executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict

from headwise.bench.cells.worker import Cell, Setting, Worker
from headwise.errors import HeadwiseError
from headwise.kept import keep, kept
from headwise.seams.transformers.load import check_pair, load_model, load_tokenizer, quiet
from headwise.watch import Watch

LOOK = 0.5  # seconds between looks for what other processes have finished
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


class Executor(Protocol):
    """Who runs cells."""

    def run(self, setting: Setting, cells: Sequence[Named], folder: Path | None) -> Iterator[tuple[str, Any]]:
        """Each cell's key and result as it is done, in any order, each written into `folder` as soon as it is made."""
        ...


def run_cells(
    setting: Setting,
    cells: Sequence[Cell],
    *,
    executor: Executor,
    folder: Path | None,
    watch: Watch,
    each: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """The result of every cell, in order.

    folder: where each result is written, whole or not at all, under its key; results found there are not made again.
    each: shown every result that is made, at once.
    """
    keys = [cell.key(setting) for cell in cells]
    found = {key: result for key in keys if (result := kept(folder, key, CellFacts)) is not None}
    missing = [(key, cell) for key, cell in zip(keys, cells, strict=True) if key not in found]
    watch("measuring", len(found), len(cells))
    for key, result in executor.run(setting, missing, folder) if missing else ():
        found[key] = result
        each(result)
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
        """See Executor."""
        if self.count > 1 and len(cells) > 1:
            yield from self._spread(setting, cells, folder)
            return
        worker = open_worker(setting)
        for key, cell in cells:
            yield key, keep(folder, key, worker.run(cell))

    def _spread(self, setting: Setting, cells: Sequence[Named], folder: Path | None) -> Iterator[tuple[str, Any]]:
        """Batches of neighbouring cells of one task and length, to whichever process is free."""
        batches = []
        for _, same in groupby(cells, key=lambda named: (named[1].task, named[1].context)):
            own = list(same)
            batches += [own[start : start + BATCH] for start in range(0, len(own), BATCH)]
        with TemporaryDirectory() as spare, self._pool(setting) as pool:
            place, left = folder or Path(spare), [key for key, _ in cells]
            waiting: set[Future[None]] = {pool.submit(_run_batch, batch, place) for batch in batches}
            while waiting:
                done, waiting = wait(waiting, timeout=LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                made = {key: result for key in left if (result := kept(place, key, CellFacts)) is not None}
                left = [key for key in left if key not in made]
                yield from made.items()

    @contextmanager
    def _pool(self, setting: Setting) -> Iterator[ProcessPoolExecutor]:
        """The processes, which end at once where something goes wrong: what they finished is written."""
        others = set(active_children())
        pool = ProcessPoolExecutor(self.count, get_context("spawn"), _open, (setting,))
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise
        finally:
            pool.shutdown()


def _open(setting: Setting) -> None:
    """Make this process a worker."""
    global _worker
    signal(SIGINT, SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = open_worker(setting)


def _end_with_parent() -> None:
    """A killed parent cannot stop its processes, and the pool's would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "spawned by the pool"
    parent.join()
    os._exit(1)


def _run_batch(batch: Sequence[Named], folder: Path) -> None:
    assert _worker is not None, "the pool opens each process"
    for key, cell in batch:
        keep(folder, key, _worker.run(cell))


def open_worker(setting: Setting) -> Worker:
    """Load the model into this process."""
    quiet()
    model = load_model(setting.model, setting.dtype, setting.device)
    tokenizer = load_tokenizer(setting.model)
    check_pair(tokenizer, model)
    return Worker(model, tokenizer, setting)
