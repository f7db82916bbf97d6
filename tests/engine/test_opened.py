"""What opens a session under a Cache, and what is refused before one is opened or gone on with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from headwise import Cache
from headwise.engine.persist import FORMAT, load_session, save_session
from headwise.engine.session import Session
from headwise.engine.session_facts import SessionFacts
from headwise.errors import ContextError, HeadwiseError, SessionError
from headwise.files import read_tensors, write_tensors
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import feed, forward, prefill
from tests.contract.drive import Text, geometry
from tests.contract.drive import prefill as prompt
from tests.fuzz.subjects import tiny_model


def ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.arange(rows * tokens).reshape(rows, tokens) % 60


def read(model: torch.nn.Module, cache: Cache, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return forward(model, cache, tokens).logits


def test_a_refused_first_forward_opens_no_session() -> None:
    """The next one may have another number of rows."""
    model = tiny_model()
    cache = Cache(model, "snapkv(0.5)")
    too_many = attach(model).geometry.max_positions + 1
    with pytest.raises(ContextError):
        read(model, cache, ids(1, too_many))
    assert cache.batch_size == -1
    read(model, cache, ids(2, 40))
    assert cache.batch_size == 2


def test_a_conversation_does_not_go_on_in_another_element_type(tmp_path: Path) -> None:
    model = tiny_model()
    cache = Cache(model, "snapkv(0.5)")
    prefill(model, cache, ids(1, 40))
    cache.save(tmp_path / "a.session")
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    loaded = Cache.load(narrow, "snapkv(0.5)", tmp_path / "a.session")
    with pytest.raises(SessionError, match="holds float32, the model gives bfloat16"):
        feed(narrow, loaded, ids(1, 1))
    assert loaded.get_seq_length() == 40


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, "a"])
def test_a_seed_that_is_none_is_refused_before_a_forward(seed: object) -> None:
    with pytest.raises(HeadwiseError, match="no whole number of 64 bits"):
        Cache(tiny_model(), "random(0.3)", seed=seed)  # type: ignore[arg-type]


def test_the_ends_of_seeds_are_seeds() -> None:
    model = tiny_model()
    for seed in (2**63 - 1, -(2**63)):
        read(model, Cache(model, "random(0.3)", seed=seed), ids(1, 40))


@pytest.mark.parametrize(("name", "value"), [("passed", 0), ("passed", 59), ("seed", 2**70)])
def test_a_file_whose_numbers_disagree_is_refused(name: str, value: int, tmp_path: Path) -> None:
    """`passed` counts the columns of the batch, of which no row has seen more: positions are counted by it."""
    shape, path = geometry(), tmp_path / "a.session"
    plan = Plan.uniform(shape, "")
    session = Session(plan)
    prompt(session, Text.random(shape, 60), [60])
    save_session(session, path)
    facts, tensors = read_tensors(path, FORMAT, SessionFacts, SessionError)
    held = {one: tensor.clone() for one, tensor in tensors.items()}
    write_tensors(path, FORMAT, facts.model_dump() | {"marks": [], name: value}, held)
    with pytest.raises(SessionError, match=name):
        load_session(path, plan)
