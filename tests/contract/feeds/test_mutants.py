"""The laws of feed parts bite: each, asked about one that breaks it, fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headwise.layers.experts.experts import Sent
from headwise.layers.experts.similar_experts import Graph, SimilarExperts
from tests.contract.feeds import test_forms


def forgetful(verb: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, x, segments, state: verb(self, x, segments, None)


def one_text(verb: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, x, segments, state: verb(self, x, torch.zeros_like(segments), state)


def all_asked(self: Sent, x: Tensor, shares: Tensor) -> Tensor:
    return sum(shares[..., [e]] * network(x) for e, network in enumerate(self.networks))  # type: ignore[return-value]


def detached(verb: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, x, shares: verb(self, x, shares.detach())


MUTANTS: dict[str, tuple[str, type, str, Callable[..., Any]]] = {
    "test_a_text_in_chunks_is_the_text_at_once": ("similar_experts", Graph, "forward", forgetful),
    "test_no_token_is_changed_by_a_later_one_or_another_text": ("similar_experts", Graph, "forward", one_text),
    "test_a_state_holds_the_bytes_that_are_said": (
        "similar_experts", SimilarExperts, "state_bytes", lambda verb: lambda *told: verb(*told) + 1,
    ),
    "test_experts_are_asked_about_their_own_tokens_alone": ("experts", Sent, "answered", lambda verb: all_asked),
    "test_all_weights_are_moved": ("experts", Sent, "answered", detached),
}  # fmt: skip


def test_every_law_has_a_mutant() -> None:
    laws = {name for name, _ in inspect.getmembers(test_forms, inspect.isfunction) if name.startswith("test_")}
    assert laws == set(MUTANTS)


@pytest.mark.parametrize("law", MUTANTS)
def test_a_law_fails_for_what_breaks_it(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, cls, verb, wrong = MUTANTS[law]
    monkeypatch.setattr(cls, verb, wrong(getattr(cls, verb)))
    with pytest.raises(AssertionError):
        getattr(test_forms, law)(name)
