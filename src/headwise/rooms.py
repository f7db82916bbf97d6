"""Rooms: folders whose files make known what they define, so that adding a thing edits no other file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Generic, TypeVar

from headwise.errors import HeadwiseError, RecipeError, did_you_mean, shorten

Thing = TypeVar("Thing")


class Room(Generic[Thing]):
    """All things of one kind, each made known by the file that defines it.

    kind: what one of them is called in messages. packages: the folder, or several of them, whose files are imported
    on first use; `deep`: those of the folders in it as well.
    """

    def __init__(self, kind: str, *packages: str, deep: bool = False) -> None:
        self.kind, self.packages, self.deep = kind, packages, deep
        self._things: dict[str, Thing] = {}
        self.size = 0  # things made known so far
        self._read = False

    def add(self, name: str, thing: Thing) -> None:
        """Make a thing known; HeadwiseError where its name is taken."""
        if name in self._things:
            raise HeadwiseError(f"{self.kind} name '{name}' is taken; choose another name")
        self._things[name] = thing
        self.size = len(self._things)

    def __contains__(self, name: str) -> bool:
        """Whether a thing of this name has been made known so far."""
        return name in self._things

    def all(self) -> dict[str, Thing]:
        """Everything in the folder, by name."""
        if not self._read:
            for package in self.packages:
                folder = importlib.import_module(package)
                walk = pkgutil.walk_packages if self.deep else pkgutil.iter_modules
                for module in walk(folder.__path__, f"{package}."):
                    importlib.import_module(module.name)
            self._read = True
        return dict(sorted(self._things.items()))

    def get(self, name: str) -> Thing:
        """The thing of this name; RecipeError with the nearest name that there is."""
        return among(self.all(), name, self.kind)


def among(known: Mapping[str, Thing], name: str, kind: str, listed: str = "") -> Thing:
    """`known[name]`; RecipeError with the nearest name that there is."""
    if name not in known:
        where = f" (`{listed}` lists them)" if listed else ""
        raise RecipeError(f"no {kind} is called '{shorten(name)}'{where}; {did_you_mean(name, known)}")
    return known[name]
