"""Requests are answered as if each were alone, within the bytes that were promised, whatever becomes of the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headwise.errors import ContextError, HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.serve.request import Ended, Event, Failed, Full, Piece, Request, Ticket, Usage
from headwise.serve.rows import Rows
from headwise.serve.sampling import Sampling
from headwise.serve.scheduler import Limits, Scheduler
from tests.serve.alone import alone, prompt

GREEDY = Sampling(temperature=0.0)
LIMITS = Limits(kv_bytes=8 << 20, piece=48, budget=48)
RECIPES = (
    "", "int8", "snapkv(0.4)", "h2o(0.5) | ada | int8", "quest(32)", "expected_attention(0.3) | kivi",
    "streaming(40)", "cur(0.5)", "kvzip(0.5)", "a_shape(4, window=32) | tova(0.5)",
)  # fmt: skip


@dataclass
class Told:
    """What a request was told."""

    events: list[Event] = field(default_factory=list)

    def tokens(self, choice: int = 0) -> list[int]:
        return [one.token for one in self.events if isinstance(one, Piece) and one.choice == choice]

    def text(self, choice: int = 0) -> str:
        return "".join(one.text for one in self.events if isinstance(one, Piece | Ended) and one.choice == choice)

    @property
    def reasons(self) -> list[str]:
        return [one.reason for one in self.events if isinstance(one, Ended)]

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def through(self) -> bool:
        return bool(self.events) and isinstance(self.last, Usage | Failed)


@pytest.fixture
def scheduler(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Callable[..., Scheduler]:
    def make(**limits: Any) -> Scheduler:
        return Scheduler(model, tokenizer, replace(LIMITS, **limits), rows)

    return make


@pytest.fixture(scope="module")
def plan(model: PreTrainedModel) -> Callable[[str], Plan]:
    seam = attach(model)
    return lambda recipe: Plan.uniform(seam.geometry, recipe, seam.fingerprint)


def run(scheduler: Scheduler, most: int = 2000) -> None:
    for _ in range(most):
        if not scheduler.advance():
            assert scheduler.idle
            return
    raise AssertionError("the scheduler does not come to an end")


def submit(scheduler: Scheduler, request: Request) -> tuple[Ticket, Told]:
    told = Told()
    return scheduler.submit(request, told.events.append), told


def test_answers_are_those_of_requests_alone(
    model: PreTrainedModel, scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]
) -> None:
    """Mixed recipes come at mixed times, some twice at once; the prompts of later ones are read between tokens."""
    made, drawn, all_told = scheduler(sequences=7), random.Random(0), []
    for seed, recipe in enumerate(RECIPES * 2):
        request = Request(tuple(prompt(drawn.randrange(20, 150), seed)), plan(recipe), drawn.randrange(1, 16), GREEDY)
        all_told.append((recipe, request, submit(made, request)[1]))
        for _ in range(drawn.randrange(4)):
            made.advance()
    run(made)
    for recipe, request, told in all_told:
        assert isinstance(told.last, Usage), (recipe, told.last)
        wanted = alone(model, recipe, request.ids, request.max_tokens, LIMITS.piece, gather=True).ids
        wanted = wanted[: wanted.index(1)] if 1 in wanted else wanted
        assert told.tokens() == wanted, recipe
    stats = made.stats()
    assert (stats.waiting, stats.reading, stats.writing, stats.promised, stats.held) == (0, 0, 0, 0, 0)
    assert stats.counts["finished"] == 2 * len(RECIPES) and not stats.counts.get("promises_broken")


def test_no_more_is_admitted_than_can_be_held(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    made = scheduler(kv_bytes=700_000)
    told = [submit(made, Request(tuple(prompt(300, seed)), plan(""), 6, GREEDY))[1] for seed in range(7)]
    most_at_once = 0
    while made.advance():
        stats = made.stats()
        assert stats.held <= stats.promised <= 700_000
        most_at_once = max(most_at_once, stats.reading + stats.writing)
    assert most_at_once == 2 and all(isinstance(one.last, Usage) for one in told)


def test_a_long_prompt_stops_nobody_for_longer_than_its_piece(
    scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]
) -> None:
    made = scheduler()
    _, short = submit(made, Request(tuple(prompt(20)), plan(""), 30, GREEDY))
    made.advance()
    _, long = submit(made, Request(tuple(prompt(48 * 6, 1)), plan(""), 2, GREEDY))
    for step in range(1, 6):
        before = len(short.events)
        made.advance()
        assert len(short.events) == before + 1 and not long.events, step
    made.advance()
    assert long.events
    run(made)


def test_earlier_ones_come_first(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    """A small request does not pass a large one that waits for memory."""
    made = scheduler(kv_bytes=600_000)
    order: list[int] = []
    sizes = (300, 300, 20)
    for place, size in enumerate(sizes):
        request = Request(tuple(prompt(size)), plan(""), 3, GREEDY)
        made.submit(request, lambda event, place=place: order.append(place) if isinstance(event, Usage) else None)
    run(made)
    assert order == [0, 1, 2]


def test_cancelled_requests_free_their_memory_at_once(
    scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]
) -> None:
    made = scheduler(sequences=2)
    tickets = [submit(made, Request(tuple(prompt(48 * 4, seed)), plan("int8"), 50, GREEDY)) for seed in range(3)]
    for _ in range(6):
        made.advance()
    assert tickets[0][1].tokens() and not tickets[1][1].tokens() and made.stats().waiting == 1
    for ticket, _ in tickets:
        ticket.cancel()
    assert not made.advance()
    stats = made.stats()
    assert (stats.waiting, stats.promised, stats.held, stats.counts["cancelled"]) == (0, 0, 0, 3)
    assert made.idle


def test_what_takes_too_long_is_ended(
    model: PreTrainedModel, tokenizer: Any, rows: Rows, plan: Callable[[str], Plan]
) -> None:
    now = [0.0]
    made = Scheduler(model, tokenizer, replace(LIMITS, seconds=10.0, sequences=1), rows, clock=lambda: now[0])
    tolds = [submit(made, Request(tuple(prompt(30)), plan(""), 50, GREEDY))[1] for _ in range(2)]
    made.advance()
    now[0] = 11.0
    assert not made.advance()
    assert all(isinstance(told.last, Failed) and "more than 10 s" in str(told.last.error) for told in tolds)


def test_what_can_never_be_answered_is_refused(
    scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]
) -> None:
    made = scheduler(kv_bytes=120_000, waiting=1, sequences=4)
    for request, told in (
        (Request((), plan(""), 5), "empty"),
        (Request(tuple(prompt(2000)), plan(""), 60), "max_tokens of 49 or fewer"),
        (Request(tuple(prompt(300)), plan(""), 5), "a recipe that keeps less"),
        (Request(tuple(prompt(20)), plan(""), 5, choices=5), "n=5"),
    ):
        with pytest.raises(ContextError, match=told):
            submit(made, request)
    submit(made, Request(tuple(prompt(20)), plan(""), 5))
    with pytest.raises(Full, match="1 requests are waiting"):
        submit(made, Request(tuple(prompt(20)), plan(""), 5))
    run(made)
    submit(made, Request(tuple(prompt(300)), plan("streaming(40)"), 5))


def test_an_error_ends_nobody_but_the_one_who_makes_it(
    model: PreTrainedModel,
    scheduler: Callable[..., Scheduler],
    plan: Callable[[str], Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = scheduler()
    tolds = [submit(made, Request(tuple(prompt(40, seed)), plan(""), 8, GREEDY))[1] for seed in range(3)]
    for _ in range(4):
        made.advance()
    broken = made._active[1].choices[0].cache

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(broken, "at", fails)
    run(made)
    assert isinstance(tolds[1].last, Failed) and "MemoryError" in str(tolds[1].last.error)
    for seed in (0, 2):
        assert tolds[seed].tokens() == alone(model, "", prompt(40, seed), 8, LIMITS.piece).ids


def test_draws_depend_on_the_seed_alone(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    request = Request(tuple(prompt(40)), plan("int8"), 10, Sampling(1.0, 0.9, seed=5), choices=3)
    made = scheduler()
    _, first = submit(made, request)
    run(made)
    others = [submit(made, Request(tuple(prompt(30, seed)), plan(""), 12))[1] for seed in range(2)]
    _, again = submit(made, request)
    _, other = submit(made, replace(request, sampling=Sampling(1.0, 0.9, seed=6)))
    run(made)
    tokens = [first.tokens(choice) for choice in range(3)]
    assert tokens == [again.tokens(choice) for choice in range(3)]
    assert tokens[0] != tokens[1] != tokens[2]
    assert other.tokens(0) == tokens[1]  # choice i draws with seed + i
    assert all(isinstance(one.last, Usage) for one in others)


def test_stops_end_a_text_before_them(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    made = scheduler()
    _, free = submit(made, Request(tuple(prompt(40)), plan(""), 20, GREEDY))
    run(made)
    text = free.text()
    stop = text[7:10]
    _, told = submit(made, Request(tuple(prompt(40)), plan(""), 20, GREEDY, stops=("never there", stop)))
    run(made)
    assert told.text() == text[: text.index(stop)] and told.reasons == ["stop"] and free.reasons == ["length"]
    assert isinstance(told.last, Usage) and told.last.written < 20 and told.last.kv_bytes > 0


def test_chances_are_the_models(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan], model: Any) -> None:
    made = scheduler()
    _, told = submit(made, Request(tuple(prompt(40)), plan(""), 4, GREEDY, logprobs=3))
    run(made)
    wanted = alone(model, "", prompt(40), 4, LIMITS.piece)
    for piece, logits in zip([one for one in told.events if isinstance(one, Piece)], wanted.logits, strict=True):
        logprobs = logits.log_softmax(-1)
        own, *top = piece.chances
        assert (own.token, len(top)) == (piece.token, 3) and top[0] == own
        assert own.logprob == pytest.approx(float(logprobs[piece.token]))


@pytest.mark.parametrize(
    "recipe",
    ["", "int8", "quest(32)", "snapkv(0.4)", "expected_attention(0.3, memory=40) | int4", "streaming(40)", "h2o(0.4)"],
)
def test_a_prefix_that_is_known_is_not_read_again(
    model: PreTrainedModel, scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan], recipe: str
) -> None:
    """Exactly where the plan allows it: the answer is bit for bit that of reading all."""
    made = scheduler(prefix_bytes=4 << 20)
    system = prompt(48 * 4 + 10)
    asked = [(*system, *prompt(size, seed)) for seed, size in enumerate((30, 41, 100))]
    for ids in (*asked, asked[0]):
        _, told = submit(made, Request(ids, plan(recipe), 6, GREEDY, logprobs=0))
        run(made)
        wanted = alone(model, recipe, ids, 6, LIMITS.piece, gather=True)
        assert told.tokens() == wanted.ids
        for piece, logits in zip([one for one in told.events if isinstance(one, Piece)], wanted.logits, strict=True):
            assert piece.chances[0].logprob == float(logits.log_softmax(-1)[piece.token])
    assert isinstance(told.last, Usage)
    if recipe == "h2o(0.4)":
        assert told.last.cached == 0 and "'h2o' notes" in next(iter(made.stats().unshared))
    else:
        again = 1 if "snapkv" in recipe or "expected" in recipe else 0  # for the queries that they look at
        assert told.last.cached == 48 * (4 - again) and made.prefixes.hits == 3
        assert made.stats().kept == sum(node.cache.nbytes for node in made.prefixes._held())


def test_prefixes_make_room_for_requests_and_for_newer_ones(
    scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]
) -> None:
    made = scheduler(prefix_bytes=500_000, kv_bytes=900_000)
    for seed in range(4):
        submit(made, Request(tuple(prompt(200, seed)), plan(""), 2, GREEDY))
        run(made)
    stats = made.stats()
    assert 150_000 < stats.kept <= 500_000
    _, told = submit(made, Request(tuple(prompt(200, 3)), plan(""), 2, GREEDY))
    run(made)
    assert isinstance(told.last, Usage) and told.last.cached == 144
    submit(made, Request(tuple(prompt(700, 9)), plan(""), 2, GREEDY))
    made.advance()
    assert made.stats().kept + made.stats().promised <= 900_000


def test_nothing_of_another_plan_is_shared(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    made = scheduler(prefix_bytes=4 << 20)
    for recipe in ("", "int8", ""):
        _, told = submit(made, Request(tuple(prompt(200)), plan(recipe), 2, GREEDY))
        run(made)
    assert made.prefixes.hits == 1 and made.prefixes.misses == 2 and isinstance(told.last, Usage)


def test_who_cannot_be_told_is_cancelled(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    made = scheduler()

    def deaf(event: Event) -> None:
        raise RuntimeError

    made.submit(Request(tuple(prompt(30)), plan(""), 50, GREEDY), deaf)
    _, told = submit(made, Request(tuple(prompt(30)), plan(""), 5, GREEDY))
    run(made)
    assert made.counts["cancelled"] == 1 and isinstance(told.last, Usage)
    assert issubclass(Full, HeadwiseError) and torch.is_grad_enabled()


def test_all_can_be_abandoned(scheduler: Callable[..., Scheduler], plan: Callable[[str], Plan]) -> None:
    made = scheduler(sequences=1)
    tolds = [submit(made, Request(tuple(prompt(30)), plan(""), 5, GREEDY))[1] for _ in range(2)]
    made.advance()
    made.abandon(RuntimeError("no"))
    assert made.idle and all(isinstance(one.last, Failed) for one in tolds)
