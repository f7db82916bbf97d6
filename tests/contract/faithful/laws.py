"""The laws of decoders, each a function that raises AssertionError where one breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import headwise
from headwise.decoders import Decoder
from headwise.faithful.looks import Looks
from tests.contract.faithful.cases import cache_of, looking, model, pictures, text, written

Law = Callable[[Decoder, Decoder, str], None]  # the decoder, itself at its neutral setting, a recipe


def _looked(own: Any, made: Decoder, recipe: str, rows: int = 1) -> tuple[Looks, torch.Tensor]:
    """The looks at a prompt that was read, and its logits."""
    looks = looking(own, cache_of(own, recipe, rows), made, pictures(made, rows))
    return looks, looks.read(text(rows, made=made), torch.zeros(rows, dtype=torch.int64))


def neutral_is_greedy(made: Decoder, neutral: Decoder, recipe: str) -> None:
    own, ids = model(made), text(made=made)
    plain = written(own, ids, None, cache_of(own, recipe))
    assert written(own, ids, neutral, cache_of(own, recipe)).tolist() == plain.tolist()


def probabilities_sum_to_one(made: Decoder, neutral: Decoder, recipe: str) -> None:
    looks, logits = _looked(model(made), made, recipe)
    logs = looks.step(logits)
    assert logs.shape == logits.shape and not logs.isnan().any()
    assert torch.allclose(logs.exp().sum(-1), torch.ones(1), atol=1e-5)


def rows_are_single_runs(made: Decoder, neutral: Decoder, recipe: str) -> None:
    """A batch with left padding says what its rows say alone."""
    own, ids = model(made), text(2, made=made)
    cache = headwise.Cache(own, recipe, marks=[headwise.Mark("context", 4, 30, 0), headwise.Mark("context", 2, 20, 1)])
    short = torch.cat((torch.zeros(1, 10, dtype=torch.int64), ids[1:, :30]), dim=1)
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[1, :10] = 0
    together = looking(own, cache, made, pictures(made, 2))
    logs = together.step(together.read(torch.cat((ids[:1], short)), (mask == 0).sum(1)))
    for row, alone in enumerate((ids[:1], ids[1:, :30])):
        first, last = ((4, 30), (2, 20))[row]
        pictured = pictures(made, 2)
        if pictured is not None:
            pictured = pictured[row : row + 1]
        cache = headwise.Cache(own, recipe, marks=[headwise.Mark("context", first, last)])
        looks = looking(own, cache, made, pictured)
        single = looks.step(looks.read(alone, torch.zeros(1, dtype=torch.int64)))
        assert torch.allclose(logs[row].exp(), single[0].exp(), atol=2e-3)


def the_cache_is_that_of_the_tokens(made: Decoder, neutral: Decoder, recipe: str) -> None:
    """Looks leave no trace: after a run the cache goes on as one that read the same tokens and nothing else."""
    own, ids = model(made), text(made=made)
    cache, other = cache_of(own, recipe), cache_of(own, recipe)
    looks, left = looking(own, cache, made, pictures(made)), torch.zeros(1, dtype=torch.int64)
    logits = looks.read(ids, left)
    bystander = looking(own, other, made, pictures(made))
    bystander.read(ids, left)
    for token in (3, 77, 5):
        looks.step(logits)
        ids = torch.cat((ids, torch.tensor([[token]])), dim=1)
        logits = looks.read(ids, left)
        plain = bystander.read(ids, left)
        assert torch.equal(logits, plain)
    assert cache.get_seq_length() == other.get_seq_length()
    for layer in range(3):
        assert cache.session.lengths(layer).tolist() == other.session.lengths(layer).tolist()
    assert cache.session.cache_bytes() == other.session.cache_bytes()


def what_is_noted_is_what_is_looked_up(made: Decoder, neutral: Decoder, recipe: str) -> None:
    """A first look that somebody else had is looked up again, and says the same: at a token after which nothing was
    evicted, as prompts read more than a cache keeps of them."""
    own, ids = model(made), torch.cat((text(made=made), torch.tensor([[3]])), dim=1)
    looks, _ = _looked(own, made, recipe)
    logits = looks.read(ids, torch.zeros(1, dtype=torch.int64))
    after = looks.step(logits)
    looks.follow(ids)
    assert torch.allclose(looks.step(logits).exp(), after.exp(), atol=2e-3)


def strength_changes_something(made: Decoder, neutral: Decoder, recipe: str) -> None:
    """Over a whole cache: of an evicted one, what a decoder would point at may be gone."""
    looks, logits = _looked(model(made), made, "")
    assert not torch.allclose(looks.step(logits).exp(), logits.softmax(-1), atol=1e-4)


LAWS: dict[str, Law] = {law.__name__: law for law in (
    neutral_is_greedy, probabilities_sum_to_one, rows_are_single_runs, the_cache_is_that_of_the_tokens,
    what_is_noted_is_what_is_looked_up, strength_changes_something,
)}  # fmt: skip
