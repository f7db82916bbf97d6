"""Every task: solvable, scored right, of the length asked for, the same for the same seed, and found by its name."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from random import Random
from typing import Any

import pytest

from headwise import tasks
from headwise.assets import embedded_model, novel
from headwise.errors import ContextError, HeadwiseError
from headwise.seams.transformers.load import load_tokenizer
from headwise.tasks.base import FAMILIES, OPENING, Likelihood, Task, chance, digest
from tests.tasks.golden import CONTEXTS, GOLDEN, characters, fingerprint, names
from tests.tasks.solvers import SOLVERS

ANSWERED = [name for name in names() if name in tasks.all_tasks()]
UNIT = 80  # tokens: a document of whole examples, chapters or passages may fall short by one


@pytest.fixture(scope="module")
def tokens() -> Any:
    tokenizer = load_tokenizer(str(embedded_model()))
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def made(name: str) -> Task:
    task = tasks.task(name)
    assert isinstance(task, Task)
    return task


@pytest.mark.parametrize("name", ANSWERED)
def test_who_reads_the_document_scores_one(name: str) -> None:
    task = made(name)
    for context in CONTEXTS:
        for item in task.items(characters, context, 6, 3):
            assert item.asks
            for ask in item.asks:
                assert task.score(ask, SOLVERS[name](item.document, ask.prompt)) == 1.0, ask


@pytest.mark.parametrize("name", ANSWERED)
def test_scores_of_right_wrong_and_empty_answers(name: str) -> None:
    task = made(name)
    for ask in task.items(characters, 1000, 1, 0)[0].asks:
        if ask.expected:
            assert task.score(ask, ",".join(ask.expected)) == 1.0
        for wrong in ("none none none none none", "", "\n"):
            assert task.score(ask, wrong) == 0.0


@pytest.mark.parametrize("name", ANSWERED)
def test_chance_is_a_share_and_below_one(name: str) -> None:
    assert 0 <= chance(made(name).items(characters, 1000, 3, 0)) < 0.75


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("context", [512, 1024, 8192])
def test_items_fit_and_waste_little(name: str, context: int, tokens: Any) -> None:
    try:
        items = made(name).items(tokens, context, 3 if context < 8192 else 1, 1)
    except ContextError:
        assert context == 512, "only the smallest context may be too small"
        return
    for item in items:
        used = OPENING + tokens(item.document) + max(tokens(ask.prompt) + ask.limit for ask in item.asks)
        assert context - max(0.05 * context, UNIT) <= used <= context
        assert all(ask.limit >= tokens(one) for ask in item.asks for one in ask.expected[:1])


@pytest.mark.parametrize("name", names())
def test_same_seed_same_items(name: str) -> None:
    known = json.loads(GOLDEN.read_text())[name]
    task = tasks.task(name)
    assert known["version"] == task.version
    message = "items changed: raise the task's version and run `python -m tests.tasks.golden`"
    assert fingerprint(task) == known["digest"], message


@pytest.mark.parametrize("name", names())
def test_seeds_and_splits_give_other_items(name: str) -> None:
    cls = tasks.TASKS.all()[name]

    def hashed(split: Any, seed: int) -> str:
        task = cls(split=split)
        make = task.items if isinstance(task, Task) else task.texts
        return digest(make(characters, 1000, 2, seed))

    assert len({hashed("test", 0), hashed("test", 1), hashed("tune", 0)}) == 3


def test_splits_share_no_key_and_no_text() -> None:
    test, tune = (tasks.all_tasks()["niah_multiquery"](split=split) for split in ("test", "tune"))
    keys = [{ask.prompt for item in t.items(characters, 2000, 20, 0) for ask in item.asks} for t in (test, tune)]
    assert not keys[0] & keys[1]
    text = novel()
    cut = text.index("BOOK TWO")
    for split, part in (("test", text[:cut]), ("tune", text[cut:])):
        for stretch in tasks.all_likelihoods()["book_perplexity"](split=split).texts(characters, 2000, 5, 0):
            assert stretch.document in part


def test_book_perplexity_goes_on_where_the_document_ends(tokens: Any) -> None:
    task = tasks.task("book_perplexity(predicted=64)")
    assert isinstance(task, Likelihood)
    for stretch in task.texts(tokens, 1024, 3, 0):
        assert stretch.document + stretch.continuation in novel()
        assert 1024 * 0.95 <= OPENING + tokens(stretch.document) + tokens(stretch.continuation) <= 1024
    with pytest.raises(ContextError, match="longer book"):
        task.texts(tokens, 10**6, 1, 0)


@pytest.mark.parametrize("name", ANSWERED)
def test_too_small_a_context_leads_to_one_that_works(name: str) -> None:
    context, tries = 8, 0
    while True:
        try:
            made(name).items(characters, context, 1, 0)
            break
        except ContextError as error:
            assert str(error).startswith(f"{name}: ")
            needed = int(str(error).split("give a context of ")[1].split()[0])
            assert context < needed < 1000
            context, tries = needed, tries + 1
    assert 1 <= tries <= 4


@pytest.mark.parametrize("name", [*names(), "file"])
def test_every_task_tells_what_it_is(name: str) -> None:
    cls = tasks.TASKS.all()[name]
    assert cls.__doc__ and cls.source.strip() and cls.family in FAMILIES and cls.version >= 1
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    described = "".join(base.__doc__ or "" for base in cls.__mro__)
    assert all(field.name in described for field in fields(cls))
    assert cls().settings() == {field.name: getattr(cls(), field.name) for field in fields(cls)}


def test_needle_depths_are_where_they_are_said_to_be() -> None:
    for item in made("niah_single(depths=5)").items(characters, 4000, 5, 0):
        ask = item.asks[0]
        place = item.document.index(ask.expected[0].strip()) / len(item.document)
        assert ask.depth is not None
        assert abs(place - ask.depth) < 0.05


def test_phrases_set_fields() -> None:
    task = made("niah_multikey(keys=3, split='tune')")
    assert (task.settings()["keys"], task.split) == (3, "tune")
    assert made("niah_multikey(3)").settings()["keys"] == 3


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("niah_singel", "did you mean 'niah_single'"),
        ("niah_single(kyes=3)", "did you mean 'keys'"),
        ("niah_single(keys=)", "cannot read"),
        ("niah_single(queries=4)", "no more queries than keys"),
        ("niah_single(template='chat')", "must be 'small' or 'instruct', got 'chat'"),
        ("niah_single(split='train')", "must be 'test' or 'tune', got 'train'"),
        ("ruler_qa_2(path='x')", "reads no file"),
    ],
)
def test_errors_name_the_fix(phrase: str, message: str) -> None:
    with pytest.raises(HeadwiseError, match=message):
        tasks.task(phrase)


def test_enough_tasks_tell_methods_apart_on_the_embedded_model() -> None:
    found = tasks.answerable()
    assert set(found) >= set(ANSWERED), "run benchmarks/tasks.py"
    assert sum(found.values()) >= 8


def offered(name: str, document: str, prompt: str) -> list[str]:
    """The answers that one who guesses chooses from."""
    if name.startswith(("few_shot", "choice")):
        letters = re.findall(r"\b([A-D])[.)] ", prompt)
        return letters or re.findall(r"a (\w+) or a (\w+)", prompt)[0]
    forms = {
        "kv_recall": r"^[\w ]+: (\w+)$",
        "trace_first": r"is in the ([a-z]+(?: [a-z]+)?)\.",
    }
    return re.findall(forms[name], document, re.MULTILINE)


@pytest.mark.parametrize(
    "name", ["kv_recall", "trace_first", "choice_qa", "few_shot_knowledge", "few_shot_commonsense"]
)
def test_guessing_gets_chance(name: str) -> None:
    task, rng, scores = made(name), Random(0), []
    items = task.items(characters, 1500, 60, 0)
    for item in items:
        for ask in item.asks:
            guess = rng.choice(offered(name, item.document, ask.prompt))
            written = f" The answer is {guess}." if name.startswith("few_shot") else f" {guess}"
            scores.append(task.score(ask, written))
    share = chance(items)
    assert abs(sum(scores) / len(scores) - share) < 4 * (share * (1 - share) / len(scores)) ** 0.5


def test_few_answers_prove_little() -> None:
    assert tasks.surely(1.0, 2) < tasks.surely(1.0, 8) < tasks.surely(1.0, 100) < 1.0
    assert tasks.surely(1 / 3, 3) < 0.2 < tasks.surely(1 / 3, 60)
