"""Compress: in what form kept keys and values lie. A method names the codecs of `headwise.cache.codecs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.registry import Card


@dataclass(frozen=True)
class Compress:
    """Base: which codec writes the keys and which the values of a head."""

    card: ClassVar[Card]
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def codecs(self) -> tuple[str, str]:
        """Names in `headwise.cache.codecs` for keys and for values."""
        raise NotImplementedError
