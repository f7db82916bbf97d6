"""A conversation goes where its cache is, and others go where there is least to do."""

from __future__ import annotations

import json
from collections import Counter

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from headwise.serve.routing import SLACK, Load, beginning, choose


def chat(*said: str, system: str = "A man came.") -> bytes:
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    return json.dumps({"messages": [{"role": "system", "content": system}, *turns], "max_tokens": len(said)}).encode()


def test_a_conversation_stays_as_it_grows() -> None:
    first = beginning(chat("Who came?"))
    assert first == beginning(chat("Who came?", "A man.", "When?"))
    assert first != beginning(chat("When?")) and first != beginning(chat("Who came?", system="A king came."))


def test_completions_are_told_apart_by_their_front() -> None:
    text = "a" * 2000
    assert beginning(json.dumps({"prompt": text}).encode()) == beginning(json.dumps({"prompt": text + "b"}).encode())
    assert beginning(json.dumps({"prompt": [1, 2]}).encode()) != beginning(json.dumps({"prompt": [1, 3]}).encode())
    same = beginning(json.dumps({"prompt": [[1, 2], [3]]}).encode()), beginning(json.dumps({"prompt": [1, 2]}).encode())
    assert same[0] == same[1]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"messages": 3, "prompt": {}}', b'{"messages": [3, null]}'])
def test_what_is_no_request_has_a_beginning_too(body: bytes) -> None:
    assert isinstance(beginning(body), bytes)


def test_one_that_goes_moves_its_own_conversations_alone() -> None:
    loads, keys = [Load(number) for number in range(4)], [b"%d" % one for one in range(200)]
    before = {key: one.number for key in keys if (one := choose(key, loads)) is not None}
    assert min(Counter(before.values()).values()) > 25, "all have some"
    loads[2].up = False
    after = {key: one.number for key in keys if (one := choose(key, loads)) is not None}
    assert all(after[key] == before[key] for key in keys if before[key] != 2) and 2 not in after.values()
    for one in loads:
        one.up = False
    assert choose(b"a", loads) is None


def test_one_that_has_much_to_do_is_passed_over() -> None:
    loads = [Load(number) for number in range(2)]
    first = choose(b"a", loads)
    assert first is not None
    first.busy = SLACK
    assert choose(b"a", loads) is first
    first.busy = SLACK + 1
    assert choose(b"a", loads) is loads[1 - first.number]
