"""Answers that must have a form: which tokens may follow, by llguidance, which reads JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch

from headwise.serve.refusals import Refused

SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # on one line
TEXT = r"/[^{](.|\n)*/"  # what is no call: a call begins with a brace


class Guide:
    """What may follow in one answer by its form. Made by `Guides`, for each answer its own."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocab], those of tokens that may not follow at -inf."""
        told = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        may = torch.zeros(len(logits), dtype=torch.bool)
        may[: len(told)] = told[: len(logits)] > 0
        return logits.masked_fill(~may.to(logits.device), -torch.inf)

    def take(self, token: int) -> bool:
        """The answer goes on by an allowed token; whether it is complete, and nothing more may follow."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


class Guides:
    """Makes guides of forms for one tokenizer, which it reads when the first one is asked for. ends: tokens by which the
    model ends an answer."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._read: Any = None
        self._one_at_a_time = Lock()

    def check(self, form: str) -> str:
        """The form, of which a guide can be made; refused, with the reason, where none can."""
        if find_spec("llguidance") is None:
            raise Refused(501, "answers of a given form need llguidance on the server; pip install 'headwise[serve]'")
        import llguidance

        wrong, words = llguidance.LLMatcher.validate_grammar_with_warnings(form, self._known())
        if wrong or words:
            told = (words or ["it cannot be read"])[0].strip().splitlines()[0]
            raise Refused(400, f"answers cannot be held to this schema: {told}", "invalid_schema", "response_format")
        return form

    def new(self, form: str) -> Guide:
        """A guide of a form that was checked."""
        import llguidance

        return Guide(llguidance.LLMatcher(self._known(), form, log_level=0), self._vocabulary)

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


def json_form(schema: Mapping[str, Any]) -> str:
    """The form of JSON by a schema, on one line."""
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SEPARATORS))


def calls_form(tools: Sequence[Mapping[str, Any]], must: bool) -> str:
    """The form of a call of one of `tools`, {"name": ..., "arguments": ...}; unless it `must` be one, also of any text
    that does not begin with a brace."""
    either = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": one["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in tools
    ]
    schema = json.dumps({"anyOf": either, "x-guidance": SEPARATORS})
    start = "call" if must else "call | TEXT"
    return f"start: {start}\ncall: %json {schema}\nTEXT: {TEXT}\n" if not must else f"start: call\ncall: %json {schema}\n"
