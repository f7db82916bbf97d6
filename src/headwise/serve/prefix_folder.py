"""Beginnings of prompts that survive a restart: a file for each kept copy of a cache, bound to a model and to what read
it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from headwise.compiled.packed import PackedLinear
from headwise.engine.persist import load_session, save_session
from headwise.errors import HeadwiseError
from headwise.files import read_json, write_json
from headwise.kernels.native.library import best_level
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, as_plan, attach
from headwise.serve.promise import gathers

LOG = logging.getLogger("headwise.serve")


class _Read(BaseModel):
    """What a folder's copies are of. model, dtype: whose. piece: tokens of the pieces in which prompts were read. by:
    what computed them, as another computer may round otherwise."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str
    dtype: str
    piece: int
    by: str


class _Beginning(BaseModel):
    """What is noted beside a copy."""

    model_config = ConfigDict(strict=True, extra="forbid")
    ids: list[int]
    evicted: bool = False


class PrefixFolder:
    """A folder of kept beginnings. Copies are written whole or not at all, under the name of their plan and tokens, and
    checked when they are read; what is damaged is deleted.

    HeadwiseError for a folder whose copies are of another model, element type or size of pieces. Copies that another
    version, or other kernels, computed are deleted: their bits may differ.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, piece: int) -> None:
        self.folder, self.model = folder, model
        folder.mkdir(parents=True, exist_ok=True)
        weights = [one.weight for one in model.modules() if isinstance(one, PackedLinear)]
        packed = sum(one.codes.nbytes for one in weights)
        made = f"headwise {version('headwise')}, torch {torch.__version__}, kernels {best_level()}"
        by = f"{made}, {packed} bytes of packed weights"
        own = _Read(model=attach(model).fingerprint, dtype=str(model.dtype).removeprefix("torch."), piece=piece, by=by)
        about = folder / "about.json"
        if about.exists():
            self._check(read_json(about, _Read, HeadwiseError, "give another --prefix-folder"), own)
        elif any(folder.iterdir()):
            raise HeadwiseError(f"{folder} holds other files; give an empty folder, or one of a server's before")
        write_json(about, own.model_dump())

    def _check(self, found: _Read, own: _Read) -> None:
        """Refuse a folder of other copies."""
        for name in ("model", "dtype", "piece"):
            had, has = getattr(found, name), getattr(own, name)
            if had != has:
                raise HeadwiseError(
                    f"{self.folder} holds beginnings read with {name} {had}, this server has {has}; give another "
                    "--prefix-folder, or delete it"
                )
        if found.by != own.by:
            LOG.info("prefixes_forgotten", extra={"told": {"by": found.by, "now": own.by}})
            for path in self.folder.glob("*.prefix"):
                path.unlink()

    def read(self) -> Iterator[tuple[Plan, list[int], Cache, bool]]:
        """All copies, those written first in front, each with its plan and tokens, and whether it was evicted of. What
        cannot be used is deleted."""
        plans = dict[str, Plan]()
        for path in sorted(self.folder.glob("*.prefix"), key=lambda one: one.stat().st_mtime_ns):
            digest = path.name.partition(".")[0]
            try:
                if digest not in plans:
                    plans[digest] = as_plan(attach(self.model), Plan.read(self.folder / f"{digest}.plan"))
                cache = Cache(self.model, plans[digest])
                cache.gather = gathers(cache.plan)
                cache.session, extra = load_session(path, cache.plan, device=self.model.device, ropes=cache.seam.ropes)
                cache.session.gathers = cache.gather
                about = _Beginning.model_validate(extra)
                ids, evicted = about.ids, about.evicted
                if path != self._path(plans[digest], ids, evicted) or len(ids) != cache.get_seq_length():
                    raise HeadwiseError(f"{path} is not of the tokens that it names")
            except (HeadwiseError, ValidationError) as error:
                LOG.warning("prefix_damaged", extra={"told": {"file": path.name, "error": type(error).__name__}})
                path.unlink(missing_ok=True)
                continue
            yield plans[digest], ids, cache, evicted

    def write(self, plan: Plan, ids: Sequence[int], cache: Cache, evicted: bool) -> None:
        """Write a copy that has read `ids`, and was evicted of or not."""
        assert cache.session is not None, "it has read them"
        kept = self.folder / f"{plan.digest}.plan"
        if not kept.exists():
            plan.save(kept)
        save_session(cache.session, self._path(plan, ids, evicted), {"ids": list(ids), "evicted": evicted})

    def forget(self, plan: Plan, ids: Sequence[int], evicted: bool) -> None:
        """Delete a copy, where there is one; where that cannot be, the next start finds it."""
        with suppress(OSError):
            self._path(plan, ids, evicted).unlink(missing_ok=True)

    def _path(self, plan: Plan, ids: Sequence[int], evicted: bool) -> Path:
        tokens = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:32]
        return self.folder / f"{plan.digest}.{tokens}{'.evicted' * evicted}.prefix"
