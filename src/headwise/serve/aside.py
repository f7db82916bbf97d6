"""Requests that make room for those before them: their caches go into files, or are given up and read again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from headwise.engine.persist import load_session, save_session
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.serve.active import Active
from headwise.serve.costs import Costs

LOG = logging.getLogger("headwise.serve")


class Aside:
    """Requests that were put aside, the earliest first. Whether a cache goes into a file is decided by `costs`."""

    def __init__(self, model: PreTrainedModel, costs: Costs, clock: Callable[[], float] = time.monotonic) -> None:
        self.model, self.costs, self.clock = model, costs, clock
        self.requests: list[Active] = []
        self._files: dict[int, list[Path]] = {}  # by identity of a request, of its choices
        self._folder: TemporaryDirectory[str] | None = None
        self._written = 0

    def put(self, active: Active) -> bool:
        """Free all that a request holds; whether it went into files."""
        self.requests = sorted([*self.requests, active], key=lambda one: one.arrived)
        held, prompt = sum(one.nbytes for one in active.caches), len(active.request.ids)
        behind = max((one.count for one in active.choices), default=0)
        keep = not active.pieces and self.costs.by_file(held) < self.costs.again(prompt, behind)
        if keep and (keep := self._write(active, held)):
            for choice in active.choices:
                choice.cache = Cache(self.model, active.request.plan)
        else:
            active.stop_reading()
            for choice in active.choices:
                choice.rewind(Cache(self.model, active.request.plan))
        return keep

    def take(self) -> tuple[Active, bool]:
        """The earliest request, and whether its caches are there again, so that it goes on at once."""
        active = self.requests.pop(0)
        files = self._files.pop(id(active), [])
        start = self.clock()
        try:
            for choice, path in zip(active.choices, files, strict=False):
                session, _ = load_session(
                    path, active.request.plan, device=self.model.device, ropes=choice.cache.seam.ropes
                )
                choice.cache.session = session
        except Exception as error:
            LOG.warning("aside_lost", extra={"told": {"error": type(error).__name__}})
            for choice in active.choices:
                choice.rewind(Cache(self.model, active.request.plan))
            return active, False
        finally:
            self._note(start, sum(one.nbytes for one in active.caches))
            for path in files:
                path.unlink(missing_ok=True)
        return active, bool(files)

    def forget(self, active: Active) -> None:
        """Nobody waits for a request any more."""
        self.requests.remove(active)
        for path in self._files.pop(id(active), []):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder of files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _write(self, active: Active, held: int) -> bool:
        """Write the caches of a request into files; False where the disk does not take them."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="headwise-aside-")
        paths, start = [], self.clock()
        try:
            for choice in active.choices:
                self._written += 1
                paths.append(Path(self._folder.name) / f"{self._written}.session")
                assert choice.cache.session is not None, "it has read the prompt"
                save_session(choice.cache.session, paths[-1])
        except OSError as error:
            LOG.warning("aside_not_written", extra={"told": {"error": str(error)}})
            for path in paths:
                path.unlink(missing_ok=True)
            return False
        self._note(start, held)
        self._files[id(active)] = paths
        return True

    def _note(self, start: float, held: int) -> None:
        """Note how long so many bytes took."""
        if held and (took := self.clock() - start) > 0:
            self.costs.byte.note(took / held)
