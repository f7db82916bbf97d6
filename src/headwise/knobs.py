"""What a knob may be, declared beside it in its dataclass, and the one place where that is checked.

    window: Positive = 32
    keys: Literal["unrotated", "rotated"] = "unrotated"

Any type that pydantic knows will do; nothing is converted but a whole number where a real one is meant. The types below
are those that come often. What two knobs cannot say together is told by `Knobs.conflict`.
"""

from __future__ import annotations

from dataclasses import fields
from numbers import Real
from typing import Annotated, Any, TypeAlias, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, ConfigDict, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from headwise.errors import HeadwiseError, RecipeError, shorten, shown
from headwise.sentence import written
from headwise.shapes import Amount

MOST = 2**30  # of any count: with a position added it still fits into 32 bits, in which stores keep positions


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise PydanticCustomError("odd", "Input should be odd")
    return value


def _ids(value: str) -> str:
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in value.split()):
        raise PydanticCustomError("ids", "Input should be token ids with spaces between, such as '198 52 1'")
    return " ".join(value.split())


Whole: TypeAlias = Annotated[int, Ge(-MOST), Le(MOST)]
NonNegative: TypeAlias = Annotated[int, Ge(0), Le(MOST)]  # counts of tokens, blocks, layers, queries
Positive: TypeAlias = Annotated[int, Ge(1), Le(MOST)]
BlockSize: TypeAlias = Annotated[int, Ge(1), Le(4096)]  # where texts are filled up to whole blocks
Odd: TypeAlias = Annotated[Positive, AfterValidator(_odd)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
ShareBelowOne: TypeAlias = Annotated[float, Ge(0), Lt(1)]
PositiveShare: TypeAlias = Annotated[float, Gt(0), Le(1)]
Cosine: TypeAlias = Annotated[float, Ge(-1), Le(1)]
Weight: TypeAlias = Annotated[float, Ge(0), Le(1e9)]
PositiveWeight: TypeAlias = Annotated[float, Gt(0), Le(1e9)]
Factor: TypeAlias = Annotated[float, Ge(1), Le(1e9)]
Word: TypeAlias = Annotated[str, Len(1, 1000)]
Ids: TypeAlias = Annotated[str, AfterValidator(_ids)]  # token ids as a text holds them: "198 52 1"
Budget: TypeAlias = Annotated[Amount | float | int | str, PlainValidator(Amount.of)]  # becomes an Amount

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Knobs:
    """Base of everything that a sentence names: a frozen dataclass, whose fields are checked whenever one is made.

    A field that is no knob, and may hold anything, is declared with `field(init=False)`.
    """

    def __post_init__(self) -> None:
        for knob, check in _checks(type(self)).items():
            object.__setattr__(self, knob, self._checked(knob, check))
        if told := self.conflict():
            raise RecipeError(f"{_name(self)}: {told}")

    def conflict(self) -> str | None:
        """What two knobs say that cannot both be, with the fix; None where there is no such thing."""
        return None

    def _checked(self, knob: str, check: TypeAdapter[Any]) -> Any:
        """The knob's value in the one form that its type has."""
        value = getattr(self, knob)
        try:
            found = check.validate_python(value)
        except ValidationError as error:
            raise self._wrong(knob, _must(error)) from None
        except HeadwiseError as error:
            raise RecipeError(f"{_name(self)}: {knob}: {error}") from None
        if not isinstance(found, float):
            return found
        if not isinstance(value, Real):  # a tensor, or one of NumPy's booleans
            raise self._wrong(knob, "be a valid number")
        return found + 0.0  # -0.0 is 0

    def _wrong(self, knob: str, must: str) -> RecipeError:
        value, default = getattr(self, knob), getattr(type(self), knob, None)  # a dataclass keeps defaults there
        fix = "" if default is None else f"; the default is {shown(default)}"
        return RecipeError(f"{_name(self)}: {knob} must {must}, got {_got(value)}{fix}")


_known: dict[type, dict[str, TypeAdapter[Any]]] = {}


def _checks(cls: type[Any]) -> dict[str, TypeAdapter[Any]]:
    """What checks each knob of a class, made when one is first needed."""
    if cls not in _known:
        hints = get_type_hints(cls, include_extras=True)
        _known[cls] = {one.name: TypeAdapter(hints[one.name], config=STRICT) for one in fields(cls) if one.init}
    return _known[cls]


def _name(made: Knobs) -> str:
    return getattr(made, "name", type(made).__name__)


def _must(error: ValidationError) -> str:
    """`be greater than or equal to 1`: what pydantic says a value should be; of a choice of types, any of them."""
    told = [one["msg"].partition(" should ")[2] or one["msg"] for one in error.errors()]
    return " or ".join(dict.fromkeys(told)).replace(" or be ", " or ")


def _got(value: object) -> str:
    return shorten(written(value)) if isinstance(value, Amount) else shown(value)
