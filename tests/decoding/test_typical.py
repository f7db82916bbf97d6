"""Medusa's typical acceptance: which guesses stay, that more of them do, and where it is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

import headwise
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.typical import Typical, acceptance
from headwise.errors import RecipeError, SessionError
from tests.engine.small import build, tokens

WORDS = 24


class Likeliest(Proposer):
    """Guesses what the model would write greedily, or, `wrong`, what it never would."""

    def __init__(self, model: Any, wrong: bool = False) -> None:
        self.model, self.wrong = model, wrong

    def propose(self, written: Written) -> Draft:
        ids = written.ids
        for _ in range(min(3, written.most)):
            with torch.no_grad():
                logits = self.model(ids[None]).logits[0, -1]
            ids = torch.cat((ids, (logits.argmin() if self.wrong else logits.argmax())[None]))
        guess = ids[len(written.ids) :].tolist()
        return Draft(guess, parents=list(range(-1, len(guess) - 1)))


def drawn(
    model: Any, acceptance: str | Typical, wrong: bool = False, **how: Any
) -> tuple[list[int], Counter[str], str]:
    """40 tokens after a prompt, the session's counts of drafts and its report."""
    torch.manual_seed(3)
    ids, cache, other = tokens(30) % WORDS, headwise.Cache(model), build(seed=0, vocab_size=WORDS)
    guessing = headwise.speculate(model, cache, Likeliest(other, wrong), acceptance=acceptance)
    out = model.generate(ids, custom_generate=guessing, max_new_tokens=40, **{"do_sample": True} | how)
    assert cache.session is not None
    return out[0, 30:].tolist(), Counter(cache.session.ledger.drafts), cache.report()


@pytest.fixture(scope="module")
def model() -> Any:
    return build(seed=0, vocab_size=WORDS)


def test_a_guess_stays_above_the_smaller_threshold() -> None:
    """0.09 and 0.3 exp(-entropy): of sure distributions the first decides, of flat ones the second."""
    flat, sure = torch.full((100,), 0.01), torch.tensor([0.9, 0.095, 0.005])
    entropy = float(-(sure * sure.log()).sum())
    assert not Typical(0.09, 0.3).takes(sure, 2) and Typical(0.09, 0.3).takes(sure, 1)
    assert not Typical(0.1, 0.3).takes(sure, 1) and min(0.1, 0.3 * torch.tensor(-entropy).exp()) > 0.095
    assert Typical(0.09, 0.3).takes(flat, 7) and not Typical(0.09, 1.1).takes(flat, 7)


def test_more_guesses_stay_than_by_drawing(model: Any) -> None:
    _, exact, report = drawn(model, "exact")
    _, typical, told = drawn(model, "typical")
    assert typical["accepted"] > exact["accepted"] + 5, (typical, exact)
    assert "typical" in told and "typical" not in report


def test_thresholds_that_nothing_reaches_leave_plain_sampling(model: Any) -> None:
    """Then every token is drawn as ever, from the same seed."""
    want = drawn(model, "exact", wrong=True)[0]
    assert drawn(model, Typical(1.0, 1e9))[0] == want
    assert drawn(model, Typical(0.09, 0.3))[0] != want


def test_unlikely_guesses_do_not_stay(model: Any) -> None:
    """Where the model is sure of anything: by the temperature that is sampled at, as processors come first."""
    unlikely = drawn(model, "typical", wrong=True, temperature=0.2)[1]["accepted"]
    assert unlikely <= drawn(model, "typical", temperature=0.2)[1]["accepted"] // 4


def test_it_is_refused_where_the_output_is_promised(model: Any) -> None:
    with pytest.raises(SessionError, match="do_sample=True"):
        drawn(model, "typical(delta=0.2)", do_sample=False)
    for wrong, why in (
        ("typicl", "no acceptance"),
        ("exact(1)", "no acceptance"),
        ("typical(alpha=1)", "no parameter"),
    ):
        with pytest.raises(RecipeError, match=why):
            acceptance(wrong)
    assert acceptance("exact") is None and acceptance("typical(0.1)") == Typical(0.1, 0.3)
