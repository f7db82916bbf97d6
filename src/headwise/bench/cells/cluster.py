"""The same cells on several machines: an actor a processor of a Ray cluster, results written here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headwise.bench.cells.pool import Named, open_worker
from headwise.bench.cells.worker import Cell, Setting, Worker
from headwise.bench.provenance import versions
from headwise.errors import HeadwiseError
from headwise.kept import keep


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, at most `count` of its processors, all by default.

    address: as `ray.init` takes it: "auto" for the one this machine belongs to, "local" to start one of this machine.
    Every machine needs headwise, in equal versions of everything, and the model under the same path or hub id.
    """

    address: str
    count: int | None = None

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise HeadwiseError("Ray is not installed; run: pip install 'headwise[ray]'")

    def run(self, setting: Setting, cells: Sequence[Named], folder: Path | None) -> Iterator[tuple[str, Any]]:
        """See Executor."""
        import ray
        from ray.util import ActorPool

        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise HeadwiseError(
                f"--ray {self.address}: {error}; start one with `ray start --head`, or give local"
            ) from None
        try:
            processors = int(ray.cluster_resources().get("CPU", 0))
            wanted = min(self.count or processors, processors, len(cells))
            station = ray.remote(num_cpus=1)(_Station)
            pool = ActorPool([station.remote(setting, versions()) for _ in range(wanted)])
            for key, result in pool.map_unordered(lambda actor, named: actor.run.remote(*named), cells):
                yield key, keep(folder, key, result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            ray.shutdown()


class _Station:
    """A model on one processor of some machine, loaded with its first cell: an error there is raised here as it was."""

    def __init__(self, setting: Setting, expected: dict[str, str]) -> None:
        self.setting, self.expected = setting, expected

    @cached_property
    def worker(self) -> Worker:
        found = versions()
        if found != self.expected:
            unlike = ", ".join(
                f"{name} {found[name]}, yours {yours}" for name, yours in self.expected.items() if found[name] != yours
            )
            raise HeadwiseError(f"a machine of the cluster has other versions ({unlike}); make them equal")
        torch.set_num_threads(1)
        return open_worker(self.setting)

    def run(self, key: str, cell: Cell) -> tuple[str, dict[str, Any]]:
        return key, self.worker.run(cell)
