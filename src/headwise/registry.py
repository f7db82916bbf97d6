"""The methods: a room for each part of a recipe. A method is one file with one registered class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar

from headwise.errors import HeadwiseError, RecipeError, did_you_mean, shorten
from headwise.knobs import Knobs
from headwise.rooms import Room, among
from headwise.sentence import Call

PARTS = ("prefill", "evict", "budget", "compress", "select", "steer")
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


@dataclass(frozen=True)
class CalibrationTensor:
    """What a method can be told of a model by a tensor [layers, KV heads, ...] in its plan.

    sizes: those after [layers, KV heads], by letter: d and e as wide as keys and values, g query heads of a KV head, n
    any number, numbers as they are, such as "4d+3 n"; one with ? at the end may be missing.
    about: what it tells, for the card. measure: the measure of `headwise calibrate` that finds it.
    """

    sizes: str
    about: str
    measure: str


METHODS: dict[str, Room[type]] = {part: Room(f"{part} method", f"headwise.methods.{part}") for part in PARTS}


def register(part: str, name: str) -> Callable[[Method], Method]:
    """Class decorator: `@register("evict", "snapkv")`. The class carries a `card: Card` and is a frozen dataclass."""

    def add(cls: Method) -> Method:
        if not isinstance(getattr(cls, "card", None), Card):
            raise HeadwiseError(f"method '{name}' has no card; add a class field `card = Card(...)`")
        if not issubclass(cls, Knobs):
            raise HeadwiseError(f"method '{name}' checks no knobs; derive it from the base class of its part")
        if holder := next((other for other in PARTS if other != part and name in METHODS[other]), None):
            raise HeadwiseError(f"method name '{name}' is taken by a part of '{holder}'; choose another name")
        cls.part, cls.name = part, name  # type: ignore[attr-defined]
        METHODS[part].add(name, cls)
        return cls

    return add


def methods(part: str) -> dict[str, type]:
    """All methods of one part, by name."""
    return among(METHODS, part, "part").all()


def all_methods() -> dict[str, type]:
    """Every method by name, in the order of the parts."""
    return {name: cls for part in PARTS for name, cls in methods(part).items()}


def calibration_of(cls: type) -> dict[str, CalibrationTensor]:
    """The calibration tensors that a method reads, its own and those that it borrows, by the plan's name."""
    own = {f"{cls.name}.{name}": one for name, one in cls.calibrates.items()}  # type: ignore[attr-defined]
    for name in cls.borrows:  # type: ignore[attr-defined]
        owner, _, tensor = name.partition(".")
        own[name] = all_methods()[owner].calibrates[tensor]  # type: ignore[attr-defined]
    return own


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
