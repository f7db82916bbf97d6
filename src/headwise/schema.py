"""What files may say, as pydantic models; a model's complaint becomes one line that names the field and the value."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headwise.errors import HeadwiseError, did_you_mean, shown

Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(gt=0, lt=2**31)]
SEEDS = 2**63  # seeds are from minus this to below it, the numbers of an int64
Seed = Annotated[int, Field(ge=-SEEDS, lt=SEEDS)]


WORDS = {  # for people who know the file and no Python
    "string_type": "should be a text",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "dict_type": "should be an object of names and values",
    "model_type": "should be an object of names and values",
    "dataclass_type": "should be an object of names and values",
}


class Facts(BaseModel):
    """What a file says: every key is known, and every value of its own kind (no text that looks like a number)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Said = TypeVar("Said", bound=BaseModel)


def checked_json(model: type[Said], text: str | bytes, where: str, error: type[HeadwiseError], fix: str) -> Said:
    """The facts in a JSON text; `error` names where they come from, the field, its value and the fix."""
    try:
        return model.model_validate_json(text)
    except ValidationError as problem:
        raise error(f"{where}: {complaint(model, problem)}; {fix}") from None
    except HeadwiseError as problem:  # of a dataclass of ours that the model holds
        raise error(f"{where}: {problem}; {fix}") from None


def checked(model: type[Said], values: Any, where: str, error: type[HeadwiseError], fix: str) -> Said:
    """The same of values that were read by something else."""
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        raise error(f"{where}: {complaint(model, problem)}; {fix}") from None
    except HeadwiseError as problem:
        raise error(f"{where}: {problem}; {fix}") from None


def complaint(model: type[BaseModel], problem: ValidationError) -> str:
    """The first thing that is wrong, and how many more there are."""
    first, *others = problem.errors(include_url=False, include_context=False)
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        told = f"'{place}' is missing"
    elif first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        told = f"unknown key '{place}', {did_you_mean(place, model.model_fields).rstrip('?')}"
    elif first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        told = f"unknown key '{place}'"
    elif place:
        told = f"{place} = {shown(first['input'])} {WORDS.get(first['type']) or _wrong(first['msg'])}"
    else:
        told = WORDS.get(first["type"]) or _lowered(first["msg"])
    return f"{told} (and {len(others)} more)" if others else told


def _wrong(text: str) -> str:
    return f"is wrong: {_lowered(text)}"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
