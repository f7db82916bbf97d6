"""Every error headwise raises on purpose. A message names what was wrong, the value, and the setting that fixes it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 80  # characters of a user's text in a message
MOST_LISTED = 40  # names that an error lists


class HeadwiseError(Exception):
    """Base of all errors below; catch this to catch them all."""


class ShapeError(HeadwiseError):
    """A tensor does not have the shape that the function's docstring promises."""


class RecipeError(HeadwiseError):
    """A recipe or a task cannot be made: malformed text, unknown name or parameter, value out of range."""


class PlanError(HeadwiseError):
    """A plan cannot be used: corrupt file, made for another model, unknown keys."""


class PlanNotApplied(HeadwiseError):
    """What the store holds is not what the plan asked for. Never expected: it means a defect, not a setting."""


class UnsupportedModel(HeadwiseError):
    """The model has a feature whose attention headwise cannot reproduce exactly."""


class SessionError(HeadwiseError):
    """A cache or session is used in a way it cannot honour: wrong model, wrong lengths, corrupt file."""


class FileError(HeadwiseError):
    """A file cannot be read or written: not there, of another kind, damaged, a full disk, a link."""


class ContextError(HeadwiseError):
    """The prompt does not fit: empty, or longer than the positions the model was trained on."""


def shorten(text: str) -> str:
    """The beginning of a text that is long, for a message."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def shown(value: object) -> str:
    """A value for a message, never long."""
    try:
        return shorten(repr(value))
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} too long to write"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'snapkv'?`, or the list of what is known where it is short, to end an error message with."""
    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known)}" if len(known) <= MOST_LISTED else f"none of the {len(known)} known is like it"
