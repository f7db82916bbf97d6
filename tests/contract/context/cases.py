"""The laws of every arranger, as functions of one, and what they are tried on: a tiny model and a few documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from headwise.arrangers import ARRANGERS, Arranger, arrangers
from headwise.context import Arranged, Asked, Wording, arrange
from headwise.context.sentences import sentences
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_pair
from tests import tiny

DOCUMENTS = (
    "The Martians came in June. They stayed for a while.",
    "A carpenter lived in Woking! He had a cat. The cat was old.",
    "Nobody saw the heath again.",
    "The river was high; the boats were gone. It rained.",
)
QUESTION = "Who lived in Woking?"
NEEDS = {"bm25": "bm25s", "minilm": "all_minilm_l6_v2"}  # what is not always installed


@cache
def pair() -> tuple[Any, Any]:
    """The tiny model and its tokenizer."""
    tokenizer, model = load_pair(tiny.build(Path(mkdtemp()) / "tiny"))
    return model, tokenizer


@cache
def files() -> dict[str, str]:
    """A profile of up to four slots and a probe, of the tiny model, by the arranger that reads it."""
    model, _ = pair()
    folder, of = Path(mkdtemp()), attach(model).fingerprint
    slots = {str(n): [float((7 * i) % 5) for i in range(n)] for n in range(1, 5)}
    heads = sum(one.query_heads for one in attach(model).geometry.layers)
    told = {
        "attn_rank": {"model": of, "slots": slots, "source": "made up"},
        "sentinel": {
            "model": of,
            "weights": [float(i % 3 - 1) for i in range(heads)],
            "bias": 0.1,
            "source": "made up",
        },
    }
    for name, facts in told.items():
        (folder / name).write_text(json.dumps(facts))
    return {name: str(folder / name) for name in told}


def made(name: str) -> Arranger:
    """The arranger of a name, with the files it needs; skipped where what it needs is not installed."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    knob = {"attn_rank": "profile", "sentinel": "keep=0.5, probe"}.get(name)
    found: Arranger = arrangers(f"{name}({knob}={files()[name]!r})" if knob else name)[0]
    return found


def run(one: Arranger, documents: tuple[str, ...] = DOCUMENTS, question: str = QUESTION) -> Arranged:
    """What an arranger makes of documents."""
    return arrange(*pair(), documents, question, one)


def parts_of_what_came_in(one: Arranger) -> None:
    """Every document that comes out is one that came in, or sentences of it in their order; none comes twice."""
    found = run(one)
    assert len(set(found.places)) == len(found.places) == len(found.documents) > 0
    for place, text in zip(found.places, found.documents, strict=True):
        rest = DOCUMENTS[place]
        for sentence in sentences(text):
            _, there, rest = rest.partition(sentence.strip())
            assert there, f"{sentence!r} is not of document {place}, or not in its order"


def one_document_is_left_alone(one: Arranger) -> None:
    """There is nothing to arrange in one sentence."""
    found = run(one, DOCUMENTS[2:3])
    assert (found.documents, found.places) == (DOCUMENTS[2:3], (0,))


def the_same_whatever_was_asked_before(one: Arranger) -> None:
    """The answer to a call depends on it alone."""
    first = run(one)
    run(one, DOCUMENTS[::-1], "What was high?")
    again = run(one)
    assert (first.documents, first.places, first.scores) == (again.documents, again.places, again.scores)


def the_model_is_what_it_was(one: Arranger) -> None:
    """What the model computes afterwards is the same, bit for bit."""
    model, _ = pair()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        before = model(ids).logits
        run(one)
        assert torch.equal(model(ids).logits, before)


def scores_are_of_documents(one: Arranger) -> None:
    """Scores are finite numbers of places that there are, and of every document that comes out where there are any."""
    found = run(one)
    assert all(0 <= place < len(DOCUMENTS) and abs(score) < float("inf") for place, score in found.scores.items())
    assert not found.scores or set(found.places) <= set(found.scores)


def the_prompt_holds_what_came_out(one: Arranger) -> None:
    """The text is the wording around the documents, in their order, and the question."""
    found = run(one)
    wording = Wording()
    assert found.text == "".join(wording.texts(found.documents, QUESTION)) and found.text.endswith("Answer:")


LAWS: tuple[Callable[[Arranger], None], ...] = (
    parts_of_what_came_in,
    one_document_is_left_alone,
    the_same_whatever_was_asked_before,
    the_model_is_what_it_was,
    scores_are_of_documents,
    the_prompt_holds_what_came_out,
)


class Mutant(Arranger):
    """An arranger that does wrong."""

    name = "mutant"
    card = ARRANGERS.get("as_given").card

    def __init__(self, wrong: Callable[[Asked, int], Arranged]) -> None:
        self.wrong, self.calls = wrong, 0

    def arrange(self, asked: Asked) -> Arranged:
        self.calls += 1
        return self.wrong(asked, self.calls)
