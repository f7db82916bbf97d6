"""What steering a prompt computes beside reading it: pairs of a query and a key, by head, and no forward."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from headwise.engine import steered
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import prefill
from headwise.shapes import Mark
from tests.engine.small import build, tokens

LONG, MARKED, LAYERS, HEADS = 64, range(8, 16), 3, 8
# Pairs that each head scores once more.
WORK = {"paint": LONG, "pasta": LONG * len(MARKED), "act(threshold=0.0)": LONG * LONG}


@pytest.mark.parametrize("name", WORK)
def test_a_prompt_is_steered_by_as_many_pairs_as_docs_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[str] = Counter()
    anew, raised = steered._anew, steered._raised

    def counted_anew(reading: Any, call: steered.Call, read: Any, edit: Any) -> Any:
        found["pairs"] += int(edit.heads.sum()) * call.q.shape[2] * call.shown()[0].shape[1]
        return anew(reading, call, read, edit)

    def counted_raised(reading: Any, call: steered.Call, first: int, read: Any, edit: Any) -> Any:
        found["pairs"] += int((edit.heads.sum(1) * edit.keys.sum(1)).sum()) * (call.q.shape[2] - first)
        return raised(reading, call, first, read, edit)

    monkeypatch.setattr(steered, "_anew", counted_anew)
    monkeypatch.setattr(steered, "_raised", counted_raised)
    model, kind = build(), {"paint": "image", "pasta": "emphasis"}.get(name)
    marks = [Mark(kind, MARKED.start, MARKED.stop)] if kind else []
    cache, forwards = Cache(model, name, marks=marks), Counter[str]()
    model.register_forward_hook(lambda *_: forwards.update(["forward"]))
    prefill(model, cache, tokens(LONG))
    assert found["pairs"] == WORK[name] * HEADS * LAYERS and forwards["forward"] == 1
