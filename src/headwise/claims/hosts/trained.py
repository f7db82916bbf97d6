"""Hosts whose small models are trained here, once: their weights are kept, and trained anew when their code changes."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.bench.protocol import digest
from headwise.claims.hosts import Host, Stage
from headwise.errors import FileError
from headwise.files import copied, read_tensors, write_tensors
from headwise.schema import Facts
from headwise.seams.transformers.cache import PreTrainedModel

FORMAT = "headwise-host-1"


class Weights(Facts):
    """What a file of weights says."""

    host: str


@dataclass(frozen=True)
class Trained(Host):
    """seed: of weights and training."""

    seed: int = 1

    def facts(self) -> dict[str, Any]:
        """With a hash of the file that trains the model and draws the documents."""
        source = Path(inspect.getfile(type(self)))
        return super().facts() | {"made": digest(source.read_text(encoding="utf-8"))}

    def load(self, folder: Path) -> Stage:
        path = folder / f"{self.name}-{digest(self.facts())}.weights"
        model = self.untrained()
        if path.exists():
            model.load_state_dict(copied(read_tensors(path, FORMAT, Weights, FileError)[1]))
        else:
            self.train(model)
            write_tensors(path, FORMAT, {"host": self.name}, dict(model.state_dict()))
        return self.stage(model.eval())

    @abstractmethod
    def untrained(self) -> PreTrainedModel:
        """The model before its training."""

    @abstractmethod
    def train(self, model: PreTrainedModel) -> None:
        """Train it, in place."""

    @abstractmethod
    def stage(self, model: PreTrainedModel) -> Stage:
        """The host with its trained model."""
