"""Reads and writes the text of recipes, tasks and layers: `name(value, knob=value) | name`.

Values are numbers, sizes such as 64MiB, a number of tokens plus a share (64 + 0.25), quoted words, True, False, None.
"""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NoReturn

from headwise.errors import HeadwiseError, RecipeError, shorten, shown
from headwise.shapes import Amount, parse_bytes

LONGEST = 100_000  # characters of a text that is read
NAMES = {"True": True, "False": False, "None": None}
TOKEN = re.compile(
    r"""(?P<word>[^\W\d]\w*)
      | (?P<size>[0-9]+(?:\.[0-9]+)?\s*(?ai:[KMG]?i?B)\b)
      | (?P<number>[0-9.][0-9A-Za-z_.]*(?:(?<=[eE])[+-][0-9]+)?)
      | (?P<quoted>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<sign>[()|,=+*-])
      | (?P<wrong>\S)""",
    re.VERBOSE,
)
REAL = re.compile(r"[0-9_]*\.[0-9_]*(?:[eE].*)?|[0-9_]+[eE].*")


@dataclass(frozen=True)
class Call:
    """One `name(value, knob=value)` of a text: its values in order, and those given by name."""

    name: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)


def read_calls(text: str, example: str) -> list[Call]:
    """The calls of a text, between which `|` stands; RecipeError, ending in the example, where it is none."""
    return _Reader(text, example).calls()


def read_call(text: str, example: str) -> Call:
    """The one call of a text."""
    calls = read_calls(text, example)
    if len(calls) > 1:
        raise RecipeError(f"'{shorten(text)}' has several parts; {example}")
    return calls[0]


def read_pattern(text: str, example: str) -> list[tuple[int, list[Call]]]:
    """The texts of calls in a pattern such as `3*kda, heads | rope`, each with how many times it comes."""
    return _Reader(text, example).pattern()


def phrase(part: Any) -> str:
    """The shortest text that reads back to a dataclass with a `name`: its first field bare, the others by name, and
    what has its default left out."""
    own = [one for one in fields(part) if one.init]
    needed = {one.name for one in own if one.default is MISSING and one.default_factory is MISSING}
    plain = type(part)(**{name: getattr(part, name) for name in needed})
    bare = next((one.name for one in own if not one.kw_only), None)
    words: list[str] = []
    for name in (one.name for one in own):
        value = getattr(part, name)
        if name in needed or value != getattr(plain, name):
            words.append(written(value) if name == bare and not words else f"{name}={written(value)}")
    return f"{part.name}({', '.join(words)})" if words else str(part.name)


def written(value: Any) -> str:
    """A value as text that reads back as the same value, in as few characters as that takes."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value) if isinstance(value, Amount) else repr(value)


class _Reader:
    """Goes through the tokens of a text once, from left to right."""

    def __init__(self, text: str, example: str) -> None:
        self.text, self.example = text, example
        if len(text) > LONGEST:
            raise RecipeError(f"'{shorten(text)}' has {len(text)} characters, at most {LONGEST} are read; {example}")
        self.tokens = [(str(found.lastgroup), found[0]) for found in TOKEN.finditer(text)]
        self.at = 0

    def calls(self) -> list[Call]:
        """Everything there is."""
        calls = self._piped()
        if self._kind():
            self._fail(f"nothing can follow {self._token_or_end(self.at - 1)} but |")
        return calls

    def pattern(self) -> list[tuple[int, list[Call]]]:
        """Everything there is, of a pattern."""
        found = [self._times()]
        while self._took(","):
            found.append(self._times())
        if self._kind():
            self._fail(f"nothing can follow {self._token_or_end(self.at - 1)} but | or a comma")
        return found

    def _times(self) -> tuple[int, list[Call]]:
        if self._kind() != "number":
            return 1, self._piped()
        times = self._number()
        if not self._took("*") or not isinstance(times, int) or not 1 <= times <= LONGEST:
            self._fail(f"{shown(times)} is no number of layers before a *, such as 3*")
        return times, self._piped()

    def _piped(self) -> list[Call]:
        calls = [self._call()]
        while self._took("|"):
            calls.append(self._call())
        return calls

    def _call(self) -> Call:
        if self._kind() == "" or self._sign("|"):
            self._fail("a part is empty")
        call = Call(self._take("word", "a name"))
        if self._took("(") and not self._took(")"):
            self._argument(call)
            while self._took(","):
                if self._sign(")"):
                    break
                self._argument(call)
            if not self._took(")"):
                self._fail(f"after {self._token_or_end(self.at - 1)} a comma or ) is missing")
        return call

    def _argument(self, call: Call) -> None:
        named = self._kind() == "word" and self.tokens[self.at + 1 : self.at + 2] == [("sign", "=")]
        if not named:
            if call.kwargs:
                self._fail("a value without a name cannot follow named ones")
            call.args.append(self._value())
            return
        knob = self._take("word", "a name")
        self._took("=")
        if knob in call.kwargs:
            raise RecipeError(f"{call.name}: parameter '{knob}' is given twice")
        call.kwargs[knob] = self._value()

    def _value(self) -> Any:
        """A value, or a number of tokens and a share added."""
        first = self._term()
        if not self._took("+"):
            return first
        terms = (first, self._term())
        by_kind = {type(term): term for term in terms}
        if set(by_kind) != {int, float}:
            self._fail(f"{shown(terms[0])} + {shown(terms[1])} is no number of tokens plus a share, such as 64 + 0.25")
        try:
            return Amount(share=by_kind[float], tokens=by_kind[int])
        except HeadwiseError as problem:
            raise RecipeError(f"cannot read '{shorten(self.text)}': {problem}") from None

    def _term(self) -> Any:
        sign = 0
        while (minus := self._took("-")) or self._took("+"):
            sign = -(sign or 1) if minus else sign or 1
        if sign or self._kind() == "number":
            return (sign or 1) * self._number()
        if self._kind() == "size":
            return self._size()
        if self._kind() == "quoted":
            return self._quoted()
        word = self._take("word", "a value")
        if word not in NAMES:
            self._fail(f"values must be numbers, sizes, quoted words or True/False; put quotes around it: '{word}'")
        return NAMES[word]

    def _number(self) -> int | float:
        text = self._take("number", "a number")
        try:
            return float(text) if REAL.fullmatch(text) else int(text, 0)
        except ValueError:
            self._fail(f"'{shorten(text)}' is neither a number nor a size such as 64MiB")

    def _size(self) -> Amount:
        try:
            return Amount(bytes=parse_bytes(self._take("size", "a size")))
        except HeadwiseError as problem:
            raise RecipeError(f"cannot read '{shorten(self.text)}': {problem}") from None

    def _quoted(self) -> str:
        literal = self._take("quoted", "a quoted word")
        try:
            return str(ast.literal_eval(literal))
        except (SyntaxError, ValueError):
            self._fail(f"{shorten(literal)} is no quoted word")

    def _kind(self) -> str:
        """What comes next; empty at the end."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def _sign(self, sign: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] == ("sign", sign)

    def _took(self, sign: str) -> bool:
        """Whether this sign came next; then it is passed."""
        found = self._sign(sign)
        self.at += found
        return found

    def _take(self, kind: str, what: str) -> str:
        if self._kind() != kind:
            self._fail(f"{self._token_or_end(self.at)} stands where {what} belongs")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def _token_or_end(self, at: int) -> str:
        return f"'{shorten(self.tokens[at][1])}'" if at < len(self.tokens) else "the end"

    def _fail(self, told: str) -> NoReturn:
        raise RecipeError(f"cannot read '{shorten(self.text)}': {told}; {self.example}")
