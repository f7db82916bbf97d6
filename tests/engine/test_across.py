"""Attention across two sequences, for every method that can be used there: a decoder reads what is kept of an encoder's
tokens, all of it from every token, and nothing else."""

from __future__ import annotations

import pytest
import torch

from headwise.engine.across import read_across, refuse_across, take_across, to_the_left
from headwise.engine.read import Reading
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Causal, Scoring
from headwise.geometry import Geometry
from headwise.methods.evict import Evict
from headwise.plan import Plan
from headwise.registry import methods
from tests.contract.drive import recipe_of

SHAPE = Geometry.uniform(4, 2, 16, 16, (None,), 4096)
COLUMNS, LIVE = 40, (40, 29)
SCORING = Scoring(0.25, 30.0)


def drawn(seed: int, *sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def mask() -> torch.Tensor:
    return torch.arange(COLUMNS)[None] < torch.tensor(LIVE)[:, None]  # as tokenizers of encoders pad: on the right


def given() -> tuple[torch.Tensor, torch.Tensor]:
    return drawn(1, 2, 2, COLUMNS, 16), drawn(2, 2, 2, COLUMNS, 16)


def taken(recipe: str, q: torch.Tensor) -> tuple[Session, torch.Tensor]:
    """A session that has taken the encoder's tokens in, and what the first queries read."""
    plan = Plan.uniform(SHAPE, recipe)
    refuse_across(plan)
    session = Session(plan, rows=2)
    session.begin(COLUMNS, "prefill", mask().sort(dim=1).values, undo=False)
    k, v = (to_the_left(one, mask()) for one in given())
    return session, take_across(session, 0, q, k, v, SCORING)


def dense(q: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Attention of every query over the tokens that `shown` [b, h, n] tells, written out."""
    k, v = (one.repeat_interleave(2, 1) for one in given())
    scores = 30 * torch.tanh(q @ k.mT * 0.25 / 30)
    return scores.masked_fill(~shown.repeat_interleave(2, 1)[:, :, None], -torch.inf).softmax(-1) @ v


def kept(session: Session) -> torch.Tensor:
    """Which of the encoder's columns each lane keeps; of a padded row they stand in order, from the first on."""
    found = torch.zeros(2, 2, COLUMNS, dtype=torch.bool)
    for row in range(2):
        for head in range(2):
            found[row, head, session.positions(0, row, head).long()] = True
    return found


def everything() -> torch.Tensor:
    return mask()[:, None].expand(2, 2, -1)


EVICTIONS = list(methods("evict"))


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_without_a_recipe_every_query_sees_every_token_of_the_encoder_and_no_padding(tokens: int) -> None:
    q, later = drawn(3, 2, 4, tokens, 16), drawn(4, 2, 4, tokens, 16)
    session, out = taken("", q)
    torch.testing.assert_close(out, dense(q, everything()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        read_across(session, 0, later, SCORING), dense(later, everything()), atol=1e-5, rtol=1e-5
    )
    assert session.seen == list(LIVE), "the decoder's tokens are not stored"


@pytest.mark.parametrize("name", EVICTIONS)
def test_an_eviction_chooses_once_and_later_queries_read_what_it_kept(name: str) -> None:
    q, later = drawn(3, 2, 4, 3, 16), drawn(4, 2, 4, 2, 16)
    recipe = recipe_of(name, {"budget": 0.5, "sinks": 1, "recent": 2, "skip_layers": 0})
    if recipe.evict.rehearsal is not None:
        pytest.skip("it has a prompt read again, and is refused")
    session, out = taken(str(recipe), q)
    torch.testing.assert_close(out, dense(q, everything()), atol=1e-5, rtol=1e-5)
    first = read_across(session, 0, later, SCORING)
    assert session.lengths(0).sum() < sum(LIVE) * 2
    if not recipe.evict.leaves_mean and type(recipe.evict).merged is Evict.merged:
        torch.testing.assert_close(first, dense(later, kept(session)), atol=1e-5, rtol=1e-5)
    assert torch.equal(read_across(session, 0, later, SCORING), first), "later queries change nothing"


@pytest.mark.parametrize("name", EVICTIONS)
def test_a_budget_for_all_tokens_is_dense_attention(name: str) -> None:
    q, later = drawn(3, 2, 4, 3, 16), drawn(4, 2, 4, 2, 16)
    recipe = recipe_of(name, {"budget": 1.0})
    if recipe.evict.rehearsal is not None or recipe.evict.leaves_mean:
        pytest.skip("refused, or it keeps other heads by a number of its own")
    session, _ = taken(str(recipe), q)
    torch.testing.assert_close(
        read_across(session, 0, later, SCORING), dense(later, everything()), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("tokens", [2, 3])
def test_a_session_that_hides_tokens_from_earlier_queries_is_caught(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reading, "sees", property(lambda self: Causal()))
    with pytest.raises(AssertionError):
        test_without_a_recipe_every_query_sees_every_token_of_the_encoder_and_no_padding(tokens)


def test_votes_are_the_decoders() -> None:
    """The tokens that its first queries looked at most stay, wherever they stand."""
    q = drawn(3, 2, 4, 1, 16)
    shown = kept(taken("snapkv(8, sinks=0, recent=0, window=1, kernel=1)", q)[0])
    k = given()[0].repeat_interleave(2, 1)
    scores = (30 * torch.tanh(q @ k.mT * 0.25 / 30)).masked_fill(~mask()[:, None, None], -torch.inf)
    votes = scores.softmax(-1)[:, :, 0].unflatten(1, (2, 2)).mean(2)
    best = torch.zeros_like(shown).scatter(2, votes.topk(8).indices, True)
    assert torch.equal(shown, best)


def test_mass_is_what_all_first_queries_gave() -> None:
    q = drawn(3, 2, 4, 5, 16)
    shown = kept(taken("h2o(8, sinks=0, recent=0)", q)[0])
    k = given()[0].repeat_interleave(2, 1)
    scores = (30 * torch.tanh(q @ k.mT * 0.25 / 30)).masked_fill(~mask()[:, None, None], -torch.inf)
    mass = scores.softmax(-1).sum(2).unflatten(1, (2, 2)).sum(2)
    assert torch.equal(shown, torch.zeros_like(shown).scatter(2, mass.topk(8).indices, True))


def test_a_selection_is_made_for_each_query_by_itself() -> None:
    q, later = drawn(3, 2, 4, 1, 16), drawn(4, 2, 4, 3, 16)
    session, _ = taken("exact_topk(8, sinks=0, recent=0)", q)
    together = read_across(session, 0, later, SCORING)
    alone = torch.cat([read_across(session, 0, one, SCORING) for one in later.split(1, dim=2)], dim=2)
    assert torch.equal(together, alone)
    assert not torch.allclose(together, dense(later, everything()), atol=1e-3)
    assert session.lengths(0).tolist() == [[live] * 2 for live in LIVE]


def test_codes_are_read_back_after_the_first_tokens() -> None:
    q, later = drawn(3, 2, 4, 1, 16), drawn(4, 2, 4, 2, 16)
    session, out = taken("int8", q)
    torch.testing.assert_close(out, dense(q, everything()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        read_across(session, 0, later, SCORING), dense(later, everything()), atol=0.05, rtol=0.05
    )
    assert session.nbytes() < 0.5 * taken("", q)[0].nbytes()


@pytest.mark.parametrize("recipe", ["a_shape", "kvzip(0.5)", "kv_compose(0.5)", "tidal(8)", "paint(2.0)"])
def test_what_means_nothing_across_is_refused_by_name(recipe: str) -> None:
    with pytest.raises(SessionError, match="across two sequences"):
        refuse_across(Plan.uniform(SHAPE, recipe))
