"""Law: with drafts a model writes what it writes without them, greedy, for every drafter and every kind of cache."""

from __future__ import annotations

import pytest
import torch

import headwise
from headwise.decoding.base import Draft, Proposer, Written
from headwise.drafters import DRAFTERS
from headwise.seams.transformers.forward import cache_argument
from tests.contract.drive import COMBINED, names, small
from tests.engine.small import build, tokens

NEW = 80  # past the eviction after 64 decoded tokens
CACHES = [name for name in [*names(), *COMBINED] if not getattr(small(name).select, "waits_for_layers", False)]
DRAFTS = [
    "lookup",
    "hierarchy",
    "lookup(drafts=4)",
    "hierarchy(drafts=4)",
    "itself('streaming(24, sinks=2, recent=8)')",
    "exact_topk(16)",
    "smaller",
]
KINDS = ["", "int8", "h2o(0.4, sinks=2, recent=6) | kivi(window=8, group=16)", "exact_topk(16, sinks=2, recent=4)"]


class Oracle(Proposer):
    """Guesses what plain decoding wrote, and every so often something else."""

    def __init__(self, text: torch.Tensor, wrong: int) -> None:
        self.text, self.wrong, self.calls = text, wrong, 0

    def propose(self, written: Written) -> Draft:
        self.calls += 1
        guess = self.text[written.row, len(written.ids) : len(written.ids) + min(written.most, 6)].tolist()
        place = self.calls % self.wrong
        return Draft([(token + 1) % 128 if n == place else token for n, token in enumerate(guess)])


def written(
    model: torch.nn.Module, ids: torch.Tensor, recipe: object, draft: object = None
) -> tuple[torch.Tensor, object]:
    """What the model writes after ids, and the cache."""
    cache = headwise.Cache(model, recipe)
    how: dict[str, object] = {} if draft is None else {"custom_generate": headwise.speculate(model, cache, draft)}
    how[cache_argument(type(model))] = cache
    out = model.generate(ids, max_new_tokens=NEW, do_sample=False, **how)
    return out, cache


@pytest.mark.parametrize("name", CACHES)
def test_under_every_recipe(name: str) -> None:
    model, ids = build(), tokens(100)
    plain, before = written(model, ids, small(name))
    drafted, cache = written(model, ids, small(name), Oracle(plain, wrong=5))
    assert drafted.tolist() == plain.tolist()
    assert cache.session.ledger.drafts["accepted"] > 20
    assert cache.get_seq_length() == before.get_seq_length()
    assert [cache.session.lengths(layer).tolist() for layer in range(3)] == [
        before.session.lengths(layer).tolist() for layer in range(3)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_with_every_drafter(draft: str, kind: str) -> None:
    model, ids = build(), tokens(30).repeat(1, 3)
    plain, _ = written(model, ids, kind)
    drafted, cache = written(model, ids, kind, build(seed=3, num_hidden_layers=1) if draft == "smaller" else draft)
    assert drafted.tolist() == plain.tolist()
    assert cache.session.ledger.drafts["passes"] > 0
    assert "drafts: " in cache.report()


def test_every_drafter_is_tried() -> None:
    tried_elsewhere = {"medusa", "clover", "dream", "medusa_block"}  # test_heads.py, and test_across.py
    assert {"lookup", "hierarchy", "itself", "smaller"} | tried_elsewhere == set(DRAFTERS.all())


def test_a_tier_and_a_sliding_window() -> None:
    model, ids = build(), tokens(100)
    plain, _ = written(model, ids, "")
    cache = headwise.Cache(model, "", resident="32KiB")
    run = headwise.speculate(model, cache, Oracle(plain, wrong=4))
    assert model.generate(ids, max_new_tokens=NEW, do_sample=False, custom_generate=run).tolist() == plain.tolist()
    assert cache.session.ledger.drafts["accepted"] > 20
