"""What holds the pages that are far: read and written whole, by their numbers, and every byte is counted."""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from headwise.errors import SessionError

Planes = dict[str, torch.Tensor]  # by name, [frames, PAGE, width]
MOST_BUFFERS = 512  # memory areas of one system call; the system's own limit is 1024


class Backing(ABC):
    """Pages far away. `planes` passed to any method are those it was made with, or some in the same order."""

    def __init__(self, planes: Planes) -> None:
        self.sizes = {name: plane[0].nbytes for name, plane in planes.items()}
        self.moved = 0

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, all planes."""
        return sum(self.sizes.values())

    def read(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None:
        """Fill planes[name][frames[i]] from page pages[i]. frames, pages: int64 [m]."""
        self.moved += len(pages) * sum(self.sizes[name] for name in planes)
        self._read(planes, frames, pages)

    def write(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None:
        """Page pages[i] becomes what is in planes[name][frames[i]]; all planes."""
        self.moved += len(pages) * self.page_bytes
        self._write(planes, frames, pages)

    @abstractmethod
    def _read(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None: ...

    @abstractmethod
    def _write(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None: ...

    @abstractmethod
    def prefetch(self, pages: torch.Tensor) -> None:
        """A hint that pages [m] will be read soon; returns at once."""

    @abstractmethod
    def clone(self) -> Backing:
        """An independent copy."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes taken far away."""


class File(Backing):
    """Pages side by side in a file without a name, which the system removes with the process."""

    def __init__(self, planes: Planes, folder: Path) -> None:
        super().__init__(planes)
        self.folder = folder
        if not hasattr(os, "preadv"):
            raise SessionError("this system has no preadv, which pages in files need; leave resident= out")
        self._open()

    def _open(self) -> None:
        """Begin with an empty file, closed when this backing is gone."""
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder, prefix="headwise-", buffering=0)  # noqa: SIM115
        except (OSError, ValueError) as error:  # ValueError: a null character
            told = getattr(error, "strerror", None) or error
            raise SessionError(f"cannot make a file in {str(self.folder)!r} ({told}); give another folder=") from None
        weakref.finalize(self, self._file.close)

    def _read(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None:
        within = sum(self.sizes[name] for name in list(self.sizes)[: list(self.sizes).index(next(iter(planes)))])
        areas, whole = _areas(planes), len(planes) == len(self.sizes)
        for start, group in _runs(pages.tolist(), frames.tolist(), MOST_BUFFERS // len(planes) if whole else 1):
            got = os.preadv(self._file.fileno(), [area[f] for f in group for area in areas], self._at(start) + within)
            self._check(got, len(group) * sum(self.sizes[name] for name in planes))

    def _write(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None:
        areas = _areas(planes)
        for start, group in _runs(pages.tolist(), frames.tolist(), MOST_BUFFERS // len(planes)):
            buffers = [area[f] for f in group for area in areas]
            self._put(buffers, self._at(start), len(group) * self.page_bytes)

    def _put(self, buffers: list[Any], at: int, size: int) -> None:
        try:
            self._check(os.pwritev(self._file.fileno(), buffers, at), size)
        except OSError as error:
            raise SessionError(f"cannot write to {self.folder} ({error.strerror}); give another folder=") from None

    def _at(self, page: int) -> int:
        return page * self.page_bytes

    def _check(self, got: int, wanted: int) -> None:
        if got != wanted:
            raise SessionError(f"the file in {self.folder} took or gave {got} of {wanted} bytes; is the disk full?")

    def prefetch(self, pages: torch.Tensor) -> None:
        """The system reads ahead into its own memory, which it takes back when others need it."""
        if hasattr(os, "posix_fadvise"):
            numbers = pages.sort().values.tolist()
            for start, group in _runs(numbers, numbers, len(numbers)):
                size = len(group) * self.page_bytes
                os.posix_fadvise(self._file.fileno(), self._at(start), size, os.POSIX_FADV_WILLNEED)

    def clone(self) -> File:
        """An independent copy, in the same folder."""
        other = copy.copy(self)
        other._open()
        for at in range(0, self.nbytes, 1 << 20):
            piece = os.pread(self._file.fileno(), 1 << 20, at)
            other._put([piece], at, len(piece))
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size


class Host(Backing):
    """Pages in the host's memory, pinned where there is a GPU to carry them to."""

    def __init__(self, planes: Planes) -> None:
        super().__init__(planes)
        self._pages = {name: self._memory(plane, 0) for name, plane in planes.items()}

    @staticmethod
    def _memory(like: torch.Tensor, pages: int) -> torch.Tensor:
        shape = (pages, *like.shape[1:])
        return torch.empty(shape, dtype=like.dtype, pin_memory=torch.cuda.is_available())

    def _read(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None:
        for name, plane in planes.items():
            plane[frames.to(plane.device)] = self._pages[name][pages.cpu()].to(plane.device)

    def _write(self, planes: Planes, frames: torch.Tensor, pages: torch.Tensor) -> None:
        pages = pages.cpu()
        for name, plane in planes.items():
            held, needed = self._pages[name], int(pages.max()) + 1
            if needed > len(held):
                self._pages[name] = self._memory(held, needed + needed // 4)
                self._pages[name][: len(held)] = held
            self._pages[name][pages] = plane[frames.to(plane.device)].cpu()

    def prefetch(self, pages: torch.Tensor) -> None:
        """Nothing: host memory is as near as it gets."""

    def clone(self) -> Host:
        """An independent copy."""
        other = copy.copy(self)
        other._pages = {name: one.clone() for name, one in self._pages.items()}
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return sum(one.untyped_storage().nbytes() for one in self._pages.values())


def _areas(planes: Planes) -> list[Any]:
    """The memory of each plane as bytes, [frames, bytes of a page]: what a system call reads into and writes from."""
    return [plane.view(torch.uint8).flatten(1).numpy() for plane in planes.values()]


def _runs(pages: list[int], frames: list[int], most: int) -> Iterator[tuple[int, list[int]]]:
    """(first page, frames) of runs of neighbouring pages, at most so many together."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(pages), 1) if b != a + 1), len(pages)]
    for begin, end in pairwise(cuts):
        for at in range(begin, end, most):
            yield pages[at], frames[at : min(end, at + most)]
