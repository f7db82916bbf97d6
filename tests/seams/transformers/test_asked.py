"""What the installed transformers asks of caches: every name that its sources use is answered, or refused by us."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import DynamicCache

import headwise
from headwise.errors import SessionError
from headwise.seams.transformers.answers import NoAnswer
from headwise.seams.transformers.forward import cache_argument
from tests.engine.small import build, tokens

SOURCES = Path(transformers.__file__).parent
HELD = {"past_key_values", "past_key_value", "cache", "user_defined_cache"}  # what sources call a cache of tokens


def files() -> list[Path]:
    found = [*SOURCES.glob("generation/*.py"), SOURCES / "masking_utils.py", SOURCES / "cache_utils.py"]
    return found + sorted(SOURCES.glob("models/*/modeling_*.py"))


def asked(path: Path) -> Iterator[str]:
    """The names that a file takes of what it calls a cache; `layers[i].x` as "layers.x"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        held, name = node.value, node.attr
        if isinstance(held, ast.Subscript) and isinstance(held.value, ast.Attribute) and held.value.attr == "layers":
            held, name = held.value.value, f"layers.{name}"
        called = held.attr if isinstance(held, ast.Attribute) else held.id if isinstance(held, ast.Name) else ""
        if called in HELD:
            yield name


@pytest.fixture(scope="module")
def names() -> set[str]:
    return {name for path in files() for name in asked(path)}


@pytest.fixture(scope="module")
def held() -> headwise.Cache:
    model = build()
    cache = headwise.Cache(model, "")
    model(tokens(40), **{cache_argument(type(model)): cache})
    return cache


def test_every_name_that_sources_ask_of_a_cache_is_answered(names: set[str], held: headwise.Cache) -> None:
    """By a value, or by an error of ours; what DynamicCache has as a plain value is of the same type."""
    assert {"get_seq_length", "update", "layers", "is_compileable", "layers.keys"} <= names  # the walk does find
    model, plain = build(), DynamicCache()
    model(tokens(40), **{cache_argument(type(model)): plain})
    wrong = []
    for name in sorted(names):
        place, _, inner = name.rpartition(".")
        ours, theirs = (held.layers[0], plain.layers[0]) if place else (held, plain)
        try:
            found = getattr(ours, inner)
        except NoAnswer:
            continue
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
            continue
        expected = getattr(theirs, inner, None)
        if isinstance(expected, bool | int) and found != expected:
            known = name in ("is_compileable", "layers.is_compileable")
            wrong += [] if known else [f"{name}: {found!r}, a DynamicCache says {expected!r}"]
    assert not wrong


def test_every_public_name_of_a_dynamic_cache_is_answered(held: headwise.Cache) -> None:
    """Methods that cannot be honoured raise SessionError when they are called, however they are called."""
    for name in dir(DynamicCache):
        if name.startswith("_"):
            continue
        try:
            found = getattr(held, name)
        except NoAnswer:
            continue
        owner = next((kind for kind in type(held).__mro__ if name in vars(kind)), None)
        module = owner.__module__ if owner is not None else "instance"
        assert not callable(found) or module.startswith("headwise"), f"{name} is answered by {module}"


def test_plain_questions_are_answered_as_a_dynamic_cache_does(held: headwise.Cache) -> None:
    model, plain = build(), DynamicCache()
    model(tokens(40), **{cache_argument(type(model)): plain})
    assert bool(held) is bool(plain) is True
    assert len(held) == len(plain) == 3
    assert held.is_initialized is True and held.is_compileable is False
    assert held.is_sliding == [False] * 3 and held.is_linear == [False] * 3
    assert held.get_seq_length() == held.layers[1].get_seq_length() == 40
    assert held.get_mask_sizes(5, 0) == (45, 0)
    assert held.batch_size == 1
    assert headwise.Cache(build(), "").is_initialized is False


def test_what_cannot_be_had_is_refused_by_name(held: headwise.Cache) -> None:
    for ask in (
        lambda: list(held),
        lambda: held[0],
        lambda: held.early_initialization(1, 2, 8, torch.float32, "cpu"),
        lambda: held.layers[0].keys,
        lambda: held.layers[0].crop(-1),
        lambda: held.layers[0].update(torch.zeros(1), torch.zeros(1)),
        lambda: held.self_attention_cache,
        lambda: held.key_cache,
        lambda: held.no_such_name,
    ):
        with pytest.raises(SessionError, match="headwise cache"):
            ask()
    assert not hasattr(held, "self_attention_cache")  # how transformers tells encoder-decoder caches


def test_a_deep_copy_is_a_fork(held: headwise.Cache) -> None:
    model = build()
    argument = cache_argument(type(model))
    headwise.attach(model)
    other = copy.deepcopy(held)
    model(tokens(5), **{argument: other})
    assert (held.get_seq_length(), other.get_seq_length()) == (40, 45)
    assert other.layers[0].get_seq_length() == 45
