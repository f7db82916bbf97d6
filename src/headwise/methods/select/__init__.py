"""Select: which of the kept tokens each new token reads. Nothing is forgotten. The verb is `select`."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.attention.view import View
from headwise.attention.where import Where
from headwise.methods import Budgeted


@dataclass(frozen=True)
class Select(Budgeted):
    """Base of the selection methods; the budget counts stored tokens read per step."""

    def select(self, view: View) -> Where:
        """The stored entries that this step's queries (`view.queries`, the last t tokens) read."""
        raise NotImplementedError
