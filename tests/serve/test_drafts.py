"""Answers that write alone are guessed ahead by themselves: the same bits, fewer passes, off where it does not pay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headwise.assets import embedded_model
from headwise.compiled.fast import fast
from headwise.decoding.drafters.lookup import Lookup
from headwise.decoding.pace import WINDOW
from headwise.errors import SessionError
from headwise.forms import Tree
from headwise.kernels.native.library import unusable
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.load import load_pair
from headwise.seams.transformers.together import step_together
from headwise.serve.drafts import REST, Drafting
from headwise.serve.request import Ended, Piece, Request, Usage
from headwise.serve.rows import Rows, steady_drafts, steady_rows
from headwise.serve.sampling import Sampling
from headwise.serve.scheduler import Scheduler
from tests.serve.alone import alone, prompt
from tests.serve.test_room import asked
from tests.serve.test_scheduler import LIMITS, run, submit

RECIPES = ("", "int8", "snapkv(0.3) | int4", "h2o(0.5)", "quest(32)", "streaming(64)")


class Forwards:
    """A clock that every forward puts on: by `step` seconds, and by `drafted` where it reads guesses."""

    def __init__(self, model: PreTrainedModel, step: float = 1.0, drafted: float = 1.0) -> None:
        self.now, self.step, self.drafted, self.passes = 0.0, step, drafted, 0
        self.handle = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self.passes += 1
        self.now += self.drafted if ids.shape[1] > 1 else self.step

    def __call__(self) -> float:
        return self.now


def scheduler(model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Any, **limits: Any) -> Scheduler:
    limits = {"seconds": 1e9, "stall": 1e9, **limits}
    drafting = Drafting(Lookup(longest=4))
    return Scheduler(model, tokenizer, replace(LIMITS, **limits), rows, ends=(), clock=clock, drafting=drafting)


@pytest.fixture
def clock(model: PreTrainedModel) -> Any:
    one = Forwards(model)
    yield one
    one.handle.remove()


def auto(model: PreTrainedModel, recipe: str, seed: int = 0, new: int = 90, **more: Any) -> Request:
    return asked(model, recipe, 60 + seed, new, seed, draft="auto", **more)


@pytest.fixture(scope="module")
def trained() -> PreTrainedModel:
    _, model = load_pair(str(embedded_model()), "auto", "cpu", False)
    fast(model)
    return model


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.skipif(bool(unusable()), reason="the native kernels are not compiled")
@torch.no_grad()
def test_a_pass_over_guesses_that_read_by_themselves_has_the_bits_of_steps(
    trained: PreTrainedModel, recipe: str
) -> None:
    """On compiled layers in bfloat16; a pass that reads them together has others, or the control would be none."""
    rows, cache = steady_rows(trained), Cache(trained, recipe)
    ids = torch.tensor([[one % 4000 for one in range(7, 7 * 200, 7)]])
    prefill(trained, cache, ids[:, :180], None)
    told = ids[:, 180 : 180 + 15]
    one = cache.fork()
    steps = torch.cat([step_together(trained, [one], [token], rows.least) for token in told[0].tolist()])
    found = []
    for singly in (True, False):
        other = cache.fork()
        with other.drafted(singly=singly):
            found.append(torch.equal(forward(trained, other, told).logits[0], steps))
        other.accept(range(9))
    assert found == [True, recipe == "quest(32)"]
    assert steady_drafts(trained, rows)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_answer_that_writes_alone_takes_fewer_passes(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Forwards, recipe: str
) -> None:
    one = scheduler(model, tokenizer, rows, clock)
    told = submit(one, auto(model, recipe))[1]
    run(one)
    passes = clock.passes
    assert isinstance(told.last, Usage) and told.last.guesses is not None
    guesses = told.last.guesses
    assert guesses.proposed >= guesses.accepted > 0 and guesses.off is None
    assert one.counts["drafts_accepted"] == guesses.accepted and one.counts["promises_broken"] == 0
    assert told.tokens() == alone(model, recipe, prompt(60), 90, LIMITS.piece, gather=True).ids
    assert passes <= 90 - guesses.accepted + 4, "the prompt's pieces, and a pass for each token that was not guessed"


def test_answers_that_write_together_are_not_guessed_until_one_is_alone(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Forwards
) -> None:
    one = scheduler(model, tokenizer, rows, clock)
    tolds = [submit(one, auto(model, "", seed, new))[1] for seed, new in enumerate((30, 30, 100))]
    while one.counts["finished"] < 2:
        assert not one._active or all(not choice.drafts.passes for act in one._active for choice in act.choices)  # type: ignore[union-attr]
        one.advance()
    run(one)
    assert one.counts["drafts_accepted"] > 0
    for seed, (new, told) in enumerate(zip((30, 30, 100), tolds, strict=True)):
        assert told.tokens() == alone(model, "", prompt(60 + seed, seed), new, LIMITS.piece).ids


def test_nobody_is_guessed_for_where_passes_do_not_give_the_bits_of_steps(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Forwards
) -> None:
    one = scheduler(model, tokenizer, rows, clock)
    one.drafting.steady = False
    for request in (auto(model, "", 0, 100), replace(auto(model, "", 1, 100), draft=Lookup(longest=4))):
        submit(one, request)
        run(one)
    assert one.counts["finished"] == 2 and not one.counts["drafted"]


def test_drafts_that_do_not_pay_are_switched_off_and_tried_anew_later(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Forwards
) -> None:
    """Where a pass over guesses takes as long as so many steps that they cannot be made good."""
    clock.drafted = 60.0
    one, off = scheduler(model, tokenizer, rows, clock), list[int]()
    for _ in range(6):
        told = submit(one, auto(model, ""))[1]
        run(one)
        assert isinstance(told.last, Usage)
        if told.last.guesses is not None and told.last.guesses.off is not None:
            off.append(one.counts["drafted"])
    assert off and one.counts["drafts_switched_off"] == 1
    assert one.drafting.pace._drafted.maxlen == WINDOW == len(one.drafting.pace._drafted)
    remark = one.drafting.pace.remark
    assert remark is not None and "switched itself off" in remark
    before, clock.drafted = one.counts["drafted"], 1.0
    assert before == off[0], "nothing was guessed since"
    for _ in range(REST + 1):
        submit(one, auto(model, "", new=24))
        run(one)
    assert one.counts["drafted"] > before and one.drafting.pace.on


def test_a_request_that_says_none_or_a_server_without_a_drafter_guesses_nothing(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Forwards
) -> None:
    without = Scheduler(model, tokenizer, replace(LIMITS, seconds=1e9, stall=1e9), rows, ends=(), clock=clock)
    for one, request in (
        (scheduler(model, tokenizer, rows, clock), replace(auto(model, ""), draft=None)),
        (without, auto(model, "")),
    ):
        told = submit(one, request)[1]
        run(one)
        assert isinstance(told.last, Usage) and told.last.guesses is None and not one.counts["drafted"]


def test_draws_and_chances_are_the_same_bits(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, clock: Forwards
) -> None:
    """Of tokens that are drawn, with their chances, over several answers to one prompt: one by one and guessed."""
    found = []
    for draft in ("auto", None):
        one, each = scheduler(model, tokenizer, rows, clock, ahead=8), []
        for seed in range(4):
            request = replace(auto(model, "int8"), sampling=Sampling(0.3, 0.9, seed), logprobs=3, draft=draft)
            told = submit(one, request)[1]
            run(one)
            each.append([event for event in told.events if isinstance(event, Piece | Ended)])
        assert bool(one.counts["drafted"]) == (draft == "auto") and not one.counts["promises_broken"]
        found.append(each)
    assert found[0] == found[1]


@torch.no_grad()
def test_a_tree_of_guesses_cannot_read_by_themselves(model: PreTrainedModel) -> None:
    cache = Cache(model)
    prefill(model, cache, torch.tensor([prompt(20)]), None)
    with pytest.raises(SessionError, match="by itself; draft a chain"), cache.drafted(Tree((-1, 0, 0)), singly=True):
        forward(model, cache, torch.tensor([[5, 6, 7]]), position_ids=torch.tensor([[20, 21, 21]]))
    with cache.drafted():
        forward(model, cache, torch.tensor([[5, 6, 7]]))
    cache.accept(range(1))
    assert cache.get_seq_length() == 21
