"""Trees of guesses under generate: the tokens of plain decoding, greedy and sampled, on every kind of cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import headwise
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.speculate import draw
from headwise.seams.transformers.forward import cache_argument
from tests.contract.drive import COMBINED, names, small
from tests.decoding.test_generate import generated
from tests.engine.small import build, tokens

# One of every kind of store, and what reads beside it; the rest of methods is in tests/contract/test_drafted_trees.py.
CACHES = [name for name in [*names("compress"), *COMBINED, "h2o", "razor", "streaming"] if small(name).select is None]


class Bushy(Proposer):
    """Of what plain decoding wrote each of the next tokens among wrong ones, and every so often not at all; the right
    path is the first branch, the second or the third, in turn."""

    def __init__(self, text: torch.Tensor) -> None:
        self.text, self.calls = text[0], 0

    def propose(self, written: Written) -> Draft:
        self.calls += 1
        guess = self.text[len(written.ids) : len(written.ids) + min(written.most, 5)].tolist()
        draft_tokens, parents, follows = list[int](), list[int](), -1
        for place, token in enumerate(guess):
            nexts = [(token + 1) % 128, (token + 2) % 128]
            if (self.calls + place) % 7:
                nexts.insert((self.calls + place) % 3, token)
            first = len(draft_tokens)
            draft_tokens += nexts
            parents += [follows] * len(nexts)
            if token not in nexts:
                break
            follows = first + nexts.index(token)
        return Draft(draft_tokens, parents=parents)


@pytest.mark.parametrize("name", ["", *CACHES])
def test_greedy_tokens_are_those_of_plain_decoding(name: str) -> None:
    model, ids, recipe = build(), tokens(100), small(name) if name else ""
    plain = generated(model, ids, before := headwise.Cache(model, recipe), max_new_tokens=70)
    cache = headwise.Cache(model, recipe)
    assert generated(model, ids, cache, Bushy(plain), max_new_tokens=70).tolist() == plain.tolist()
    session, single = cache.session, before.session
    assert session is not None and single is not None
    assert session.ledger.drafts["accepted"] > 20 and not session.ledger.told
    for layer in range(3):
        for head in range(2):
            assert session.positions(layer, 0, head).tolist() == single.positions(layer, 0, head).tolist()


def test_a_tier_and_left_padding() -> None:
    model, ids = build(), tokens(100)
    plain = generated(model, ids, headwise.Cache(model))
    cache = headwise.Cache(model, resident="32KiB")
    assert generated(model, ids, cache, Bushy(plain)).tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["accepted"] > 20
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    plain = generated(model, ids, headwise.Cache(model), attention_mask=mask)
    cache = headwise.Cache(model)
    proposer = Bushy(plain[:, 13:])
    assert generated(model, ids, cache, proposer, attention_mask=mask).tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["accepted"] > 20


def test_where_trees_cannot_be_read_the_best_chain_is_and_the_report_says_so() -> None:
    model, ids = build(), tokens(100)
    plain = generated(model, ids, headwise.Cache(model, "quest(16, sinks=2, recent=4)"))
    cache = headwise.Cache(model, "quest(16, sinks=2, recent=4)")
    assert generated(model, ids, cache, Bushy(plain)).tolist() == plain.tolist()
    assert "the best chain alone was verified, as 'quest' chooses for every token by itself" in cache.report()
    ids = tokens(60, rows=2)
    plain = generated(model, ids, headwise.Cache(model))
    cache = headwise.Cache(model)
    assert generated(model, ids, cache, "lookup(drafts=4)").tolist() == plain.tolist()
    assert "as 2 rows go on together" in cache.report()


def test_sampled_draws_are_those_of_plain_sampling_from_the_same_seed() -> None:
    model, ids = build(), tokens(60)
    how = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    plain = generated(model, ids, headwise.Cache(model), **how)
    cache = headwise.Cache(model)
    assert generated(model, ids, cache, Bushy(plain), **how).tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["accepted"] > 20


@pytest.mark.parametrize("again", [False, True])
def test_drawn_siblings_keep_the_distribution(again: bool) -> None:
    """Chi-square over 20,000 draws of three guesses each, drawn with replacement (`again`) or without."""
    wanted = torch.tensor([0.4, 0.3, 0.05, 0.05, 0.15, 0.03, 0.02])
    by = torch.tensor([0.05, 0.35, 0.3, 0.1, 0.1, 0.05, 0.05])

    class Some:
        guesses: list[tuple[int, torch.Tensor]]

        def guessed(self, row: int) -> list[tuple[int, torch.Tensor]]:
            return self.guesses

    torch.manual_seed(2)
    verifier, counts, stayed = Some(), torch.zeros(7), 0
    guesses = torch.multinomial(by.expand(20_000, -1), 3, replacement=again)
    left = [by.expand(20_000, -1)]
    for place in range(2):
        rest = left[-1] if again else left[-1].scatter(1, guesses[:, place, None], 0.0)
        left.append(rest / rest.sum(1, keepdim=True))
    for row, tokens_of in enumerate(guesses.tolist()):
        verifier.guesses = [(token, by_now[row]) for token, by_now in zip(tokens_of, left, strict=True)]
        drawn = int(draw(verifier, wanted.log()[None], True))
        counts[drawn] += 1
        stayed += drawn in tokens_of
    chi_square = float(((counts - 20_000 * wanted) ** 2 / (20_000 * wanted)).sum())
    assert chi_square < 16.8, "6 degrees of freedom, 1 %"
    assert stayed / 20_000 > float(torch.minimum(wanted, by).sum()) + 0.05, "three guesses do more than one"


def test_a_sampling_tree_goes_through_generate() -> None:
    """The last token over many seeds, of siblings that were drawn: as often as without drafts."""
    model, ids = build(vocab_size=8, pad_token_id=0), tokens(40).clamp(max=7)
    how: dict[str, Any] = {"do_sample": True, "max_new_tokens": 5, "temperature": 3.0}
    argument = cache_argument(type(model))

    class Drawn(Proposer):
        def propose(self, written: Written) -> Draft:
            flat = torch.full((8,), 1 / 8)
            first, second = torch.multinomial(flat, 2).tolist()
            rest = flat.index_fill(0, torch.tensor(first), 0)
            return Draft(
                [first, second, 3, 5],
                torch.stack((flat, rest / rest.sum(), torch.eye(8)[3], torch.eye(8)[5])),
                [-1, -1, 0, 1],
            )

    drafted, plain = torch.zeros(8), torch.zeros(8)
    for seed in range(80):
        for counts, draft in ((drafted, Drawn()), (plain, None)):
            torch.manual_seed(seed + 1000 * (draft is not None))
            cache = headwise.Cache(model)
            run = {"custom_generate": headwise.speculate(model, cache, draft)} if draft else {argument: cache}
            counts[model.generate(ids, **how, **run)[0, -1]] += 1
    both = drafted + plain
    held = both > 10
    chi_square = float((((drafted - plain) ** 2) / both.clamp(min=1))[held].sum())
    assert chi_square < 20.1, "at most 8 degrees of freedom, 1 %"
