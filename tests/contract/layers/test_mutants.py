"""The laws of layers bite: each of them, asked about a layer that breaks it and little else, fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from headwise.layer_parts import all_layer_parts
from headwise.layers.attend import Attend, Pairs
from headwise.layers.base import State, Streams
from headwise.layers.sparse_attend import Held, SparseAttend
from tests.contract.layers import test_forms
from tests.contract.layers.cases import LIMITS

Verb = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """The verb of the class `cls`, or of the part of this name, made wrong; the law is asked about `name`."""

    name: str
    verb: str
    wrong: Callable[[Verb], Verb]
    cls: type | None = None
    case: tuple[Any, ...] = ()
    error: type[BaseException] = AssertionError


def of_other_streams(change: Callable[[Streams], Streams]) -> Callable[[Verb], Verb]:
    """Is shown other streams."""
    return lambda verb: lambda self, streams, *state: verb(self, change(streams), *state)


def of_other_output(change: Callable[[Any, Any], Any]) -> Callable[[Verb], Verb]:
    """Gives something else, made of the part and what it gave."""
    return lambda verb: lambda self, *told: change(self, verb(self, *told))


def one_text(streams: Streams) -> Streams:
    return replace(streams, segments=torch.zeros_like(streams.segments))


def looking_ahead(streams: Streams) -> Streams:
    return replace(streams, v=streams.v + streams.v.mean(2, keepdim=True))


def spoiling(verb: Verb) -> Verb:
    """Writes into the state that it is given."""

    def spoilt(self: Any, streams: Streams, state: Any) -> Any:
        found = verb(self, streams, state)
        state.matrix.mul_(0.5)
        return found

    return spoilt


def coarse(state: Any) -> Any:
    return replace(state, matrix=state.matrix.bfloat16())


def half_moved(terms: Any) -> Any:
    """The same numbers, but half of what moves them."""
    return replace(terms, beta=(terms.beta + terms.beta.detach()) / 2)


def forgetting(verb: Verb) -> Verb:
    """Does not see the last token."""
    return lambda self, streams, state: verb(self, streams, state.truncated(1))


def scaled(terms: Any, factor: float) -> Any:
    return replace(terms, v=terms.v * factor)


def limit_of(name: str) -> Any:
    """The first limit case of a part."""
    return next(case for case in LIMITS if case[0] == name)


MUTANTS = {
    "test_a_text_in_chunks_or_steps_is_the_text_at_once": (
        Mutant("kda", "step", of_other_streams(lambda s: s.with_gates(decay=0 * s.gates["decay"]))),
        Mutant("heads", "step", forgetting, Attend),
        Mutant("local", "kept", of_other_output(lambda self, kept: torch.zeros_like(kept))),
        Mutant("dynamic_mask", "kept", of_other_output(lambda self, kept: ~kept)),
        Mutant("sharded", "kept", of_other_output(lambda self, kept: kept.flip(1))),
    ),
    "test_a_layer_equals_its_plain_form": (
        Mutant("gla", "terms", of_other_output(lambda self, terms: scaled(terms, 1.01))),
        Mutant("sigmoid", "weights", of_other_output(lambda self, weights: weights * 1.01)),
        Mutant("cope", "bias", of_other_output(lambda self, bias: bias.abs())),
        Mutant("neural", "scores", of_other_output(lambda self, scores: scores.relu())),
        Mutant("flow", "read", of_other_output(lambda self, found: (found[0] * 1.001, found[1]))),
        Mutant("mala", "numbers", of_other_output(lambda self, found: (found[0], found[1] * 1.01))),
        Mutant("landmark", "weights", of_other_output(lambda self, weights: weights * 1.01)),
        Mutant("strided", "seen", of_other_output(lambda self, seen: seen.flip(1))),
        Mutant("shifted", "seen", of_other_output(lambda self, seen: torch.ones_like(seen))),
    ),
    "test_gradients_equal_those_of_the_plain_form": (
        Mutant("delta", "terms", of_other_output(lambda self, terms: half_moved(terms)), case=((13,),)),
        Mutant(
            "here_or_all", "weights",
            lambda verb: lambda self, field: field.weights(self.seen(field)) + 0 * verb(self, field), case=((13,),),
        ),
    ),
    "test_no_token_is_changed_by_a_later_one": (
        Mutant("gated_delta", "chunk", of_other_streams(looking_ahead)),
        Mutant("combiner", "chunk", of_other_streams(looking_ahead), SparseAttend),
    ),
    "test_padded_and_packed_texts_are_as_alone": (
        Mutant("mamba2", "chunk", of_other_streams(one_text)),
        Mutant("lightnet", "read", of_other_streams(one_text)),
        Mutant("titans", "read", of_other_streams(one_text)),
        Mutant("heads", "chunk", of_other_streams(one_text), Attend),
        Mutant("sharded", "chunk", of_other_streams(one_text), SparseAttend),
    ),
    "test_a_state_holds_the_bytes_that_are_said": (
        Mutant("lightning", "state_bytes", of_other_output(lambda self, count: count + 8)),
        Mutant("short_conv", "state_bytes", of_other_output(lambda self, count: 0)),
        Mutant("agents", "rows", of_other_output(lambda self, count: count + 1)),
        Mutant("dynamic_mask", "stored", of_other_output(lambda self, count: count + 1)),
    ),
    "test_bfloat16_is_near_float32": (
        Mutant(
            "retention", "terms", of_other_output(lambda self, terms: replace(terms, q=terms.q @ torch.eye(6))),
            error=RuntimeError,
        ),
        Mutant("kda", "chunk", of_other_output(lambda self, found: (found[0], coarse(found[1])))),
    ),
    "test_a_state_is_a_value": (
        Mutant("kda", "chunk", spoiling),
        Mutant("gla", "rows", lambda verb: lambda self, index: self, State),
    ),
    "test_tokens_are_taken_back_exactly_or_not_at_all": (
        Mutant("mqa", "truncated", lambda verb: lambda self, tokens: verb(self, tokens - 1), Pairs),
        Mutant("delta", "truncated", lambda verb: lambda self, tokens: self, State),
        Mutant("landmark", "truncated", lambda verb: lambda self, tokens: verb(self, tokens - 1), Held),
    ),
    "test_fresh_memory_is_never_read": (
        Mutant(
            "taylor", "finish", of_other_output(lambda self, read: read + torch.empty(read.shape[-1]).clamp(0, 0))
        ),
    ),
    "test_blocks_of_any_size_give_the_same": (
        Mutant("kda", "terms", of_other_output(lambda self, terms: scaled(terms, 1 + 1e-2 * self.block))),
    ),
    "test_queries_in_blocks_are_all_at_once": (
        Mutant("relative", "bias", of_other_output(lambda self, bias: bias * bias.shape[-2])),
        Mutant("threshold", "weights", of_other_output(lambda self, weights: weights / weights.shape[-2])),
        Mutant("combiner", "weights", of_other_output(lambda self, weights: weights / weights.shape[-2])),
    ),
    "test_limit_cases_are_the_other_layer": (
        Mutant("bam", "bias", of_other_output(lambda self, bias: bias * 1.01), case=(limit_of("bam"),)),
        Mutant("aaren", "logits", of_other_output(lambda self, logits: logits * 1.01), case=(limit_of("aaren"),)),
        Mutant("sink_softmax", "weights", of_other_output(lambda self, w: w * 0.99), case=(limit_of("sink_softmax"),)),
        Mutant("kda", "terms", of_other_output(lambda self, terms: scaled(terms, 1.001)), case=(limit_of("kda"),)),
        Mutant("mamba2", "finish", of_other_output(lambda self, read: read + 0.001), case=(limit_of("mamba2"),)),
        Mutant("dynamic_mask", "weights", of_other_output(lambda self, w: w * 0.99), case=(limit_of("dynamic_mask"),)),
    ),
    "test_a_sentence_is_read_back": (
        Mutant("mla", "__eq__", lambda verb: lambda self, other: self is other),
    ),
}  # fmt: skip
EACH = [(law, mutant) for law, mutants in MUTANTS.items() for mutant in mutants]


def test_every_law_has_a_mutant() -> None:
    laws = {name for name, _ in inspect.getmembers(test_forms, inspect.isfunction) if name.startswith("test_")}
    assert laws == set(MUTANTS)


@pytest.mark.parametrize(("law", "mutant"), EACH, ids=lambda one: one if isinstance(one, str) else one.name)
def test_a_law_fails_for_what_breaks_it(law: str, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = mutant.cls or all_layer_parts()[mutant.name]
    monkeypatch.setattr(cls, mutant.verb, mutant.wrong(getattr(cls, mutant.verb)))
    asked = getattr(test_forms, law)
    told = list(mutant.case)
    if "case" not in inspect.signature(asked).parameters:
        told.insert(0, mutant.name)
    if "monkeypatch" in inspect.signature(asked).parameters:
        told.append(monkeypatch)
    with pytest.raises(mutant.error):
        asked(*told)
