"""Where claims are shown: a model and documents that ask it something. Each file here makes hosts known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from headwise.rooms import Room
from headwise.seams.transformers.cache import PreTrainedModel, Seam, attach
from headwise.shapes import Mark


@dataclass(frozen=True)
class Document:
    """ids [1, n], and questions [1, m] with their answers [1, k]; after [1, m]: how a plain text truly goes on; marks:
    ranges of it that have a name."""

    ids: torch.Tensor
    asks: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    after: torch.Tensor | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Host(ABC):
    """A model and what it is asked. about: why controls fail on it, or which do not.

    asks: questions that dense attention must answer right before methods are told apart. least_dense: share of all
    questions that it has to answer right, lest those that count be a choice of their own. model_name: of the model, as
    commands take it; "" for one that is trained here.
    """

    texts: ClassVar[bool] = False  # whether it has plain texts to go on with
    generates: ClassVar[bool] = False  # whether most tokens come after the prompt, so that bytes are not told by it

    name: str
    about: str
    asks: int = 64
    least_dense: float = 0.9
    model_name: str = ""

    def facts(self) -> dict[str, Any]:
        """The host as plain JSON data: all that its documents depend on."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @abstractmethod
    def load(self, folder: Path) -> Stage:
        """The host with its model. folder: where what is trained for it is kept."""


class Stage(ABC):
    """A host that is loaded."""

    model: PreTrainedModel

    @property
    def seam(self) -> Seam:
        """The attached model."""
        return attach(self.model)

    @abstractmethod
    def document(self, number: int, share: float = 1.0) -> Document:
        """Document `number`, of this share of the host's tokens: the same for the same number. From TEXTS on they are
        plain texts, where the host has any."""


TEXTS = 1000  # the number of the first plain text
HOSTS: Room[Host] = Room("host", "headwise.claims.hosts")


def add_host(one: Host) -> Host:
    """Make a host known."""
    HOSTS.add(one.name, one)
    return one
