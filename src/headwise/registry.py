"""Rooms: folders whose files make known what they define, so that adding a thing edits no other file. And the methods,
whose rooms are the parts of a recipe."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Generic, Literal, TypeVar

from headwise.errors import HeadwiseError, RecipeError, did_you_mean, shorten
from headwise.knobs import Knobs
from headwise.sentence import Call

PARTS = ("prefill", "evict", "budget", "compress", "select")
Thing = TypeVar("Thing")
Method = TypeVar("Method", bound=type)
Chunking = Literal["exact", "approximate", "whole_prompt"]


@dataclass(frozen=True)
class Card:
    """The facts of a method that a user needs before using it. `headwise methods` and the docs are made of these.

    systems: rows of the list of published systems that this method stands for.
    lossy: outputs can differ from dense attention at a budget below 1.
    query_aware: the choice depends on queries seen so far, so a later question may find its answer gone.
    chunking: what prefilling a prompt in chunks gives. "exact": the same as in one pass; "approximate": each chunk's
    end chooses anew, so the result may differ; "whole_prompt": refused, the prompt must come in one pass.
    forgets: in one line, what is lost. deviations: where this differs from the paper's own code, and why.
    """

    title: str
    paper: str
    systems: tuple[int, ...] = ()
    phase: str = "prefill and decode"
    lossy: bool = True
    query_aware: bool = False
    calibrated: bool = False
    frees_memory: bool = False
    chunking: Chunking = "exact"
    forgets: str = "nothing"
    deviations: str = "none"


class Room(Generic[Thing]):
    """All things of one kind, each made known by the file of one folder that defines it.

    kind: what one of them is called in messages. package: the folder, whose files are imported on first use. listed:
    the command that lists them, where there is one.
    """

    def __init__(self, kind: str, package: str, listed: str = "") -> None:
        self.kind, self.package, self.listed = kind, package, listed
        self._things: dict[str, Thing] = {}
        self._read = False

    def add(self, name: str, thing: Thing) -> None:
        """Make a thing known; HeadwiseError where its name is taken."""
        if name in self._things:
            raise HeadwiseError(f"{self.kind} name '{name}' is taken; choose another name")
        self._things[name] = thing

    def all(self) -> dict[str, Thing]:
        """Everything in the folder, by name."""
        if not self._read:
            folder = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(folder.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._read = True
        return dict(sorted(self._things.items()))

    def get(self, name: str) -> Thing:
        """The thing of this name; RecipeError with the nearest name that there is."""
        return among(self.all(), name, self.kind, self.listed)


def among(known: Mapping[str, Thing], name: str, kind: str, listed: str = "") -> Thing:
    """`known[name]`; RecipeError with the nearest name that there is."""
    if name not in known:
        where = f" (`{listed}` lists them)" if listed else ""
        raise RecipeError(f"no {kind} is called '{shorten(name)}'{where}; {did_you_mean(name, known)}")
    return known[name]


METHODS: dict[str, Room[type]] = {
    part: Room(f"{part} method", f"headwise.methods.{part}") for part in PARTS
}


def register(part: str, name: str) -> Callable[[Method], Method]:
    """Class decorator: `@register("evict", "snapkv")`. The class carries a `card: Card` and is a frozen dataclass."""

    def add(cls: Method) -> Method:
        if not isinstance(getattr(cls, "card", None), Card):
            raise HeadwiseError(f"method '{name}' has no card; add a class field `card = Card(...)`")
        if not issubclass(cls, Knobs):
            raise HeadwiseError(f"method '{name}' checks no knobs; derive it from the base class of its part")
        cls.part, cls.name = part, name  # type: ignore[attr-defined]
        METHODS[part].add(name, cls)
        return cls

    return add


def methods(part: str) -> dict[str, type]:
    """All methods of one part, by name."""
    return among(METHODS, part, "part").all()


@cache
def all_methods() -> dict[str, type]:
    """Every method by name, in the order of the parts; HeadwiseError where two parts have one of the same name."""
    found: dict[str, type] = {}
    for part in PARTS:
        for name, cls in methods(part).items():
            if name in found:
                raise HeadwiseError(
                    f"method name '{name}' is taken by a part of '{found[name].part}'; choose another name"  # type: ignore[attr-defined]
                )
            found[name] = cls
    return found


def build(call: Call) -> Any:
    """The part that a call names, with its knobs set; errors name the method, the knob and what is known."""
    return with_settings(among(all_methods(), call.name, "method", "headwise methods"), call)


def with_settings(cls: type, call: Call) -> Any:
    """A registered dataclass with its fields set; errors name it, the field and what is known."""
    name, args, kwargs = cls.name, call.args, call.kwargs  # type: ignore[attr-defined]
    knobs = [f.name for f in fields(cls) if f.init]
    places = [f.name for f in fields(cls) if f.init and not f.kw_only]
    if len(args) > len(places):
        most = f"at most {len(places)} values ({', '.join(places)})" if places else "no values"
        raise RecipeError(f"{name} takes {most}, got {len(args)}")
    for knob in kwargs:
        if knob not in knobs:
            raise RecipeError(f"{name} has no parameter '{shorten(knob)}'; {did_you_mean(knob, knobs)}")
        if knob in places[: len(args)]:
            raise RecipeError(f"{name}: parameter '{knob}' is given twice")
    needed = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    if missing := sorted(set(needed) - set(places[: len(args)]) - set(kwargs)):
        raise RecipeError(f"{name} needs {', '.join(missing)}; give {missing[0]}= a value")
    return cls(*args, **kwargs)
