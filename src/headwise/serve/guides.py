"""Answers that must have a form: which tokens may follow, by llguidance, which reads JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch

from headwise.errors import HeadwiseError
from headwise.serve.refusals import Refused

SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # on one line
MOST_SCHEMA = 1 << 16  # characters of a schema; larger ones take seconds to read
TEXT = r"/[^{](.|\n)*/"  # what is no call: a call begins with a brace


class Guide:
    """What may follow in one answer by its form."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocab], those of tokens that may not follow at -inf. HeadwiseError where none may."""
        told = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        may = torch.zeros(len(logits), dtype=torch.bool)
        may[: len(told)] = told[: len(logits)] > 0
        if self._matcher.is_error() or not may.any():
            raise HeadwiseError(
                f"no token may follow by the form of the answer ({self._matcher.get_error() or 'none fits'})"
            )
        return logits.masked_fill(~may.to(logits.device), -torch.inf)

    def take(self, token: int) -> bool:
        """The answer goes on by an allowed token; whether it is complete, and nothing more may follow."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


@dataclass(frozen=True)
class Form:
    """What answers must look like. Made by `Guides`; matcher: at the beginning of one."""

    matcher: Any

    def guide(self) -> Guide:
        """For one answer, from its beginning."""
        return Guide(self.matcher.deep_copy())


class Guides:
    """Makes forms for one tokenizer, which is read when the first one is asked for. ends: tokens by which the model
    ends an answer."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._read: Any = None
        self._one_at_a_time = Lock()

    def json(self, schema: Mapping[str, Any]) -> Form:
        """JSON by a schema, on one line. Refused, with the reason, where answers cannot be held to it."""
        _check_installed()
        return self._form("start: answer", "answer", schema)

    def calls(self, tools: Sequence[Mapping[str, Any]], must: bool) -> Form:
        """A call of one of `tools`, {"name": ..., "arguments": ...}; unless it `must` be one, also any text that does
        not begin with a brace."""
        _check_installed()
        either = [
            {
                "type": "object",
                "properties": {"name": {"const": one["name"]}, "arguments": one["parameters"]},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for one in tools
        ]
        rules = "start: call" if must else f"start: call | TEXT\nTEXT: {TEXT}"
        return self._form(rules, "call", {"anyOf": either})

    def _form(self, rules: str, name: str, schema: Mapping[str, Any]) -> Form:
        """What begins by `rules`, in which `name` is JSON by the schema."""
        from llguidance import LLMatcher

        if "x-guidance" in schema:
            raise _refused("'x-guidance' is this server's to say; leave it out")
        told = json.dumps(dict(schema) | {"x-guidance": SEPARATORS})
        if len(told) > MOST_SCHEMA:
            raise _refused(f"it has {len(told)} characters, at most {MOST_SCHEMA} are read")
        try:
            matcher = LLMatcher(self._known(), f"{rules}\n{name}: %json {told}", log_level=0)
        except ValueError as error:
            raise _refused(str(error)) from None
        if words := [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings():
            raise _refused(words[0])
        return Form(matcher)

    def _known(self) -> Any:
        """The tokenizer as llguidance knows it."""
        import llguidance.hf

        with self._one_at_a_time:
            if self._read is None:
                try:
                    self._read = llguidance.hf.from_tokenizer(
                        self._tokenizer, self._vocabulary, eos_token=self._ends or None
                    )
                except ValueError as error:
                    raise Refused(501, f"this model's tokenizer cannot be held to a form ({error})") from None
            return self._read


def _refused(why: str) -> Refused:
    words = why.strip().splitlines()[0].rstrip(":")
    return Refused(400, f"answers cannot be held to this schema: {words}", "invalid_schema")


def _check_installed() -> None:
    if find_spec("llguidance") is None:
        raise Refused(501, "answers of a given form need llguidance on the server; pip install 'headwise[serve]'")
