"""Text comes in pieces that together are what the tokenizer writes of all tokens, and holds no part of a stop."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from headwise.assets import novel
from headwise.seams.transformers.decoded import decoder_of
from headwise.serve.sampling import Sampler, Sampling, chances
from headwise.serve.text import UNFINISHED, Writing


def written(tokenizer: Any, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[str, list[str], bool]:
    writing, pieces = Writing(tokenizer, stops), []
    for token in ids:
        pieces.append(writing.add(token))
        if writing.stopped:
            return "".join(pieces), pieces, True
    pieces.append(writing.end())
    return "".join(pieces), pieces, writing.stopped


@pytest.mark.parametrize("text", [novel()[:400], "naïve — “so” 🙂🙂 ende", "日本語のテキスト", "a\n\n  b \t c"])
def test_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole, pieces, stopped = written(tokenizer, ids)
    assert whole == tokenizer.decode(ids, skip_special_tokens=True) == text and not stopped
    assert not [one for one in pieces if UNFINISHED in one]


def test_tokens_become_text_as_the_tokenizer_itself_has_it(tokenizer: Any) -> None:
    """Also where it has a way of its own, which is then asked."""

    class Own(type(tokenizer)):  # type: ignore[misc]
        def _decode(self, *args: Any, **how: Any) -> str:
            return f"<{super()._decode(*args, **how)}>"

    own = copy.copy(tokenizer)
    own.__class__ = Own
    for ids in ([], [1], list(range(60)), tokenizer.encode("a , b")):
        told = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoder_of(tokenizer)(ids) == told and decoder_of(own)(ids) == f"<{told}>"


def test_broken_characters_do_not_hold_a_text_up(tokenizer: Any) -> None:
    broken = tokenizer.encode("🙂", add_special_tokens=False)[:1]
    ids = broken * 9 + tokenizer.encode("after", add_special_tokens=False)
    whole, _, _ = written(tokenizer, ids)
    assert whole.endswith("after") and UNFINISHED in whole


def test_a_text_ends_before_the_first_stop(tokenizer: Any) -> None:
    drawn = random.Random(0)
    for _ in range(200):
        text = "".join(drawn.choice("ab\n ") for _ in range(drawn.randrange(1, 30)))
        stops = tuple("".join(drawn.choice("ab\n ") for _ in range(drawn.randrange(1, 5))) for _ in range(2))
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole, pieces, stopped = written(tokenizer, ids, stops)
        begun = (tokenizer.decode(ids[: count + 1]) for count in range(len(ids)))
        first = next((one for one in begun if any(stop in one for stop in stops)), "")
        places = [at for stop in stops if (at := first.find(stop)) >= 0]  # once its last token was written
        assert whole == (text[: min(places)] if places else text), (text, stops, pieces)
        assert stopped == bool(places)


def test_draws_follow_their_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(Sampling(temperature=0.7, seed=3))
    drawn = torch.tensor([sampler.draw(logits) for _ in range(1500)])
    wanted = (logits / 0.7).softmax(-1) * 1500
    assert float(((torch.bincount(drawn, minlength=4) - wanted) ** 2 / wanted).sum()) < 16.3  # chi-square, 3, 0.1 %


def test_top_p_leaves_the_likeliest() -> None:
    logits = torch.tensor([0.1, 3.0, 2.0, -1.0])
    nucleus = {Sampler(Sampling(1.0, 0.8, seed)).draw(logits) for seed in range(200)}
    assert nucleus == {1, 2}
    assert {Sampler(Sampling(1.0, 1e-9, seed)).draw(logits) for seed in range(20)} == {1}
    assert Sampler(Sampling(0.0)).draw(logits) == 1


def test_chances_of_a_token_and_the_likeliest() -> None:
    own, *top = chances(torch.tensor([0.0, 2.0, 1.0]), 0, 2)
    assert own.token == 0 and [one.token for one in top] == [1, 2] and top[0].logprob > own.logprob
