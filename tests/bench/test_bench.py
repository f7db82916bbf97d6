"""The run job: what is read and asked, what bytes are foretold, and that the control can fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import headwise
from headwise.assets import novel
from headwise.bench.arms import Arm, Frame, compared, recipe_arm
from headwise.bench.job import CHAT, PLAIN, Question, asking_job, encode, novel_job
from headwise.bench.run import Runner, run_arms
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.errors import ContextError, HeadwiseError, RecipeError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.seams.transformers.cache import as_plan, attach
from headwise.seams.transformers.drive import prefill
from headwise.shapes import format_bytes

Loaded = tuple[Any, Any]


def quiet(what: str, done: int, total: int) -> None:
    """Watch nothing."""


def test_the_novel_is_cut_between_sentences_and_fits(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    job = novel_job(tokenizer, novel(), 1500, title="novel", facts=3, new_tokens=20)
    text = tokenizer.decode(job.ids[0], skip_special_tokens=True)
    assert job.ids[0, 0] == tokenizer.bos_token_id
    assert text.endswith(".")
    longest = max(question.ids.shape[1] + question.limit for question in job.questions)
    assert 1100 < job.tokens <= 1500 - max(longest, 256)
    assert [question.depth for question in job.questions] == [0, 0.5, 1]
    places = [text.index(str(question.expected).strip()) for question in job.questions]
    assert places == sorted(places)
    going_on = tokenizer.decode(job.continuation[0])
    assert going_on.strip() in novel()
    assert job.continuation.shape == (1, 256)


def test_the_job_depends_on_the_seed_alone(loaded: Loaded) -> None:
    one, same, other = (novel_job(loaded[1], novel(), 1000, title="", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.ids, same.ids)
    assert [question.ask for question in one.questions] != [question.ask for question in other.questions]


def test_a_novel_too_short_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ContextError, match="give --context"):
        novel_job(loaded[1], novel()[:3000], 100_000, title="")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 48213.", True),
        ("48213", True),
        (" 48213, I think", True),
        (" 482134.", False),
        (" 4821.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_when_it_begins_with_the_value(answer: str, right: bool) -> None:
    question = Question("?", torch.zeros(1, 1), 5, expected=" 48213.")
    assert question.right(answer) is right


class Chatting:
    """A tokenizer with a chat template."""

    chat_template = "yes"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, **how: Any) -> Any:
        return self.tokenizer(text, **how)

    def apply_chat_template(self, messages: list[dict], tokenize: bool, add_generation_prompt: bool) -> str:
        return f"<bos>[user]{messages[0]['content']}[model]"


def test_questions_follow_the_text(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    how: dict = {"title": "t", "max_new_tokens": 4}
    job = asking_job(tokenizer, "A text.\n", ["Who?", "Why?"], template="", **how)
    assert job.template == PLAIN
    whole = torch.cat((job.ids, job.questions[1].ids), dim=1)[0]
    assert tokenizer.decode(whole, skip_special_tokens=True) == "A text." + PLAIN.format(ask="Why?")
    chat = asking_job(Chatting(tokenizer), "A text.\n", ["Who?"], template="", **how)
    assert chat.template == CHAT
    assert torch.equal(chat.ids, encode(tokenizer, "<bos>[user]A text."))
    assert torch.equal(chat.questions[0].ids, encode(tokenizer, "\n\nWho?[model]"))


@pytest.mark.parametrize(
    "recipe",
    ["dense", "snapkv(0.3)", "expected_attention(100) | int8", "h2o(0.5)", "l2norm(0.2)", "streaming(64) | pyramid",
     "quest(32)", "snapkv(0.3) | ada"],
)  # fmt: skip
def test_bytes_are_foretold(loaded: Loaded, recipe: str) -> None:
    model, tokenizer = loaded
    cache = headwise.Cache(model, recipe)
    ids = encode(tokenizer, novel()[:1500], start=True)
    prefill(model, cache, ids, 150)
    foretold = predicted_bytes(cache.plan, ids.shape[1], model.dtype)
    assert cache.session.predicted_bytes() == foretold
    assert cache.nbytes <= 1.1 * foretold
    if "ada" not in recipe:  # heads of uneven counts fill their last pages differently
        assert cache.nbytes == foretold


def test_a_window_bounds_what_is_foretold() -> None:
    shape = Geometry.uniform(4, 2, 16, 16, (None, 32), 4096)
    full = Geometry.uniform(4, 2, 16, 16, (None,), 4096)
    both, one = (predicted_bytes(Plan.uniform(g, ""), 1600, torch.float32) for g in (shape, full))
    assert both - one == 2 * 32 * (2 * 16 * 4 + 4)


def test_fitting_uses_the_budget_and_no_more() -> None:
    shape = Geometry.uniform(8, 4, 32, 32, (None,) * 4, 16_384)
    target = shape.dense_bytes(8192, torch.bfloat16) // 4
    recipe = fitted(Plan.uniform(shape, "snapkv | int8"), target, 8192, torch.bfloat16)
    held = predicted_bytes(Plan.uniform(shape, recipe), 8192, torch.bfloat16)
    assert 0.99 * target < held <= target
    with pytest.raises(RecipeError, match="give --memory"):
        fitted(Plan.uniform(shape, "snapkv"), 1000, 8192, torch.bfloat16)


def test_arms_of_equal_bytes_share_their_baselines(loaded: Loaded) -> None:
    frame = Frame(attach(loaded[0]), 1500, torch.float32)
    asked = [recipe_arm(frame, sentence, None) for sentence in ("keydiff(304)", "l2norm(304, skip_layers=0)")]
    names = [arm.name for arm in compared(frame, asked, baselines=True)]
    assert names[3:] == ["random(304)", "streaming(304)", "streaming(1.0)"]
    more = [recipe_arm(frame, sentence, None) for sentence in ("keydiff(304)", "keydiff(600)", "quest(64)")]
    assert len(compared(frame, more, baselines=True)) == 1 + 3 + 4 + 1
    assert [arm.role for arm in compared(frame, more, baselines=False)] == ["dense", "plan", "plan", "plan"]


def test_the_control_fails_when_it_should(loaded: Loaded) -> None:
    model, tokenizer = loaded
    job = novel_job(tokenizer, novel(), 800, title="", facts=2, new_tokens=8)
    seam = attach(model)
    wrong = Arm("control", "broken", as_plan(seam, "streaming(40, recent=8)"))
    arms = [Arm("dense", "dense", as_plan(seam, "")), wrong]
    with pytest.raises(HeadwiseError, match="A/A control failed"):
        list(run_arms(Runner(model, tokenizer, job, chunk=200), arms, [0, 0], quiet))


def test_lost_mass_is_what_evictions_took(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = encode(tokenizer, novel()[:1200], start=True)
    cache = headwise.Cache(model, "streaming(100)")
    prefill(model, cache, ids, 100)
    events = [event for event in cache.session.ledger.evictions if event.layer == 1]
    left = 1.0
    for event in events:
        left *= 1 - event.lost_mass[0]
    assert len(events) > 2
    assert cache.session.ledger.lost_mass([2] * 3)[1][0] == pytest.approx(1 - left)
    doubled = replace(cache.session.ledger.evictions[0], row=1)
    cache.session.ledger.evictions.append(doubled)
    assert cache.session.ledger.lost_mass([2] * 3)[1][0] == pytest.approx(1 - left)


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1024, "1.0 KiB"), (3 * 2**20 // 2, "1.5 MiB"), (2**31, "2.0 GiB")]
)
def test_bytes_as_text(count: int, text: str) -> None:
    assert format_bytes(count) == text
