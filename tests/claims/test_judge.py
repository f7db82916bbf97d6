"""A state follows from intervals of paired differences, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwise.claims.claim import CONTROLS
from headwise.claims.judge import Answers, differences, on_host, state

from .test_claim import WHOLE

ALL, NONE = (True,) * 8, (False,) * 8
HALF = (True,) * 4 + (False,) * 4


def answers(*documents: tuple[bool, ...], cost: float = 0.2) -> Answers:
    return Answers("any", documents, cost)


def judged(method: Answers, control: Answers, keeps: float = 0.0) -> dict[str, object]:
    return on_host(replace(WHOLE, keeps=keeps), method, dict.fromkeys(CONTROLS, control))


def test_a_method_that_beats_every_control_holds() -> None:
    found = judged(answers(*[ALL] * 12), answers(*[HALF] * 12))
    assert found["holds"] and found["beaten"] == list(CONTROLS)


def test_one_control_that_reaches_it_is_enough_to_fail() -> None:
    good, bad = answers(*[ALL] * 12), answers(*[NONE] * 12)
    controls = dict.fromkeys(CONTROLS, bad) | {"idea off": good}
    found = on_host(WHOLE, good, controls)
    assert not found["holds"] and "idea off" not in found["beaten"]


def test_a_difference_that_documents_do_not_agree_on_is_none() -> None:
    found = judged(answers(*[ALL, NONE] * 6), answers(*[NONE, ALL] * 5, NONE, NONE))
    assert not found["holds"]


def test_what_is_kept_counts_too() -> None:
    assert not judged(answers(*[HALF] * 12), answers(*[NONE] * 12), keeps=0.95)["holds"]


def test_documents_without_a_question_do_not_count() -> None:
    assert differences([ALL, ()], [HALF, ()]) == [0.5]


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ({"a": {"holds": True}, "b": {"holds": True}}, "shown"),
        ({"a": {"holds": True}, "b": {"holds": False}}, "shown in part"),
        ({"a": {"holds": True}, "b": {"refused": "why"}}, "shown in part"),
        ({"a": {"holds": False}}, "negative"),
        ({"a": {"holds": False}, "b": {"refused": "why"}}, "negative"),
        ({"a": {"refused": "why"}}, "refused"),
    ],
)
def test_states(hosts: dict[str, dict[str, object]], found: str) -> None:
    assert state(replace(WHOLE, hosts=tuple(hosts)), hosts) == found


def test_a_claim_that_was_run_on_some_of_its_hosts_is_not_shown() -> None:
    assert state(replace(WHOLE, hosts=("a", "b")), {"a": {"holds": True}}) == "shown in part"


@pytest.mark.parametrize("hosts", [{}, {"a": {"holds": False}}, {"a": {"refused": "why"}}])
def test_a_claim_that_holds_nowhere_is_open_until_it_was_run_everywhere(hosts: dict[str, dict[str, object]]) -> None:
    assert state(replace(WHOLE, hosts=("a", "b")), hosts) == "open"
