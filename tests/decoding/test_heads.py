"""Drafting heads on a small model: they learn, controls do not, they are bound to their model and draft trees."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import headwise
from headwise.decoding.heads import train as training
from headwise.decoding.heads.base import HEADS, RANKS, Taught, Trained, best_tree, made
from headwise.decoding.heads.train import Lesson, hits, states_of, train, windows
from headwise.errors import FileError, HeadwiseError
from headwise.seams.transformers.cache import attach
from tests.decoding.test_generate import generated
from tests.engine.small import build, tokens

KINDS = ["medusa", "clover", "dream"]
LESSON = {"depth": 3, "steps": 100, "window": 64, "batch": 1, "rate": 1e-2}
WORDS = 32


def prompt(count: int, seed: int = 1, rows: int = 1) -> torch.Tensor:
    """Random ids [rows, count] of the model's few words."""
    return tokens(count, seed, rows) % (WORDS - 1) + 1


@functools.cache
def texts(model: Any, count: int = 48) -> list[torch.Tensor]:
    """What the model itself writes after random beginnings, [128] each: with a little chance, or it would repeat."""
    torch.manual_seed(7)
    out: torch.Tensor = model.generate(prompt(8, rows=count), max_new_tokens=120, do_sample=True, temperature=0.15)
    return list(out)


def host(seed: int = 0) -> Any:
    """A model whose next word is nearly a matter of the last one, so that there is something to learn in seconds."""
    model = build(seed=seed, vocab_size=WORDS, num_hidden_layers=1)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.mul_(0.3 if weight.dim() > 1 else 1.0)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return host()


@pytest.fixture(scope="module")
def trained(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("heads")
    return {kind: train(model, texts(model), Lesson(kind, **LESSON), folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_trained_heads_hit_and_controls_do_not(
    kind: str, model: Any, trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside heads that were not trained, and heads that were, on what they had to guess in any other order."""
    lesson = Lesson(kind, **LESSON)
    _, others = windows(texts(model), lesson)
    torch.manual_seed(0)
    untrained, own = hits(made(kind, model, 3), model, others), training._guesses

    def shuffled(*given: Any, **how: Any) -> list[tuple[torch.Tensor, Taught]]:
        told = own(*given, **how)
        order = torch.randperm(len(told[0][0]))
        return [
            (out, replace(one, tokens=one.tokens[order], logits=one.logits[order], states=one.states[order]))
            for out, one in told
        ]

    with monkeypatch.context() as patch:
        patch.setattr(training, "_guesses", shuffled)
        control = train(model, texts(model), lesson, tmp_path / "state").heads
    of_shuffled = hits(control, model, others)
    best = [one[0] for one in trained[kind].hits]
    assert best[0] > untrained[0][0] + 0.2
    assert all(hit > other[0] + 0.15 for hit, other in zip(best, of_shuffled, strict=True)), (best, of_shuffled)


def test_clover_hits_more_with_its_second_token_than_medusa(trained: dict[str, Trained]) -> None:
    """Row 158's promise, where a next word is a matter of the last: Clover reads the guess before, Medusa does not."""
    assert trained["clover"].hits[1][0] > trained["medusa"].hits[1][0] + 0.05


def test_hits_are_what_single_forwards_say(model: Any, trained: dict[str, Trained]) -> None:
    """Counted place by place: the head's best token beside the token that the model writes next."""
    text = texts(model)[0][:24]
    for kind in KINDS:
        heads, (ids, logits, states) = trained[kind].heads, states_of(model, text)
        right, seen = [0] * 3, [0] * 3
        for start in range(len(ids) - 4):
            carry = heads.begin(states[: start + 1], ids[1 : start + 2], torch.tensor([start]))
            for place in range(3):
                out, carry = heads.step(place, carry, ids[None, start + place + 1])
                wanted = int(logits[start + place + 1].argmax())
                seen[place] += 1
                right[place] += int(heads.words(place, out).argmax()) == wanted
                if wanted != int(ids[start + place + 2]):
                    break
        found = hits(heads, model, [text])
        assert [one[0] for one in found] == pytest.approx([r / max(1, s) for r, s in zip(right, seen, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["", "int8", "h2o(0.4, sinks=2, recent=6) | kivi(window=8, group=16)", "quest(16)"])
def test_what_is_written_with_heads_is_what_is_written_without(
    kind: str, recipe: str, model: Any, trained: dict[str, Trained], tmp_path: Path
) -> None:
    ids = prompt(60)
    trained[kind].save(tmp_path / "heads")
    plain, cache = generated(model, ids, headwise.Cache(model, recipe)), headwise.Cache(model, recipe)
    drafted = generated(model, ids, cache, f"{kind}('{tmp_path / 'heads'}', nodes=12)")
    assert drafted.tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["accepted"] > 3
    assert ("best chain alone" in cache.report()) == (recipe == "quest(16)")


def test_two_rows_are_drafted_as_chains(model: Any, trained: dict[str, Trained], tmp_path: Path) -> None:
    trained["clover"].save(tmp_path / "heads")
    ids = prompt(60, rows=2)
    plain, cache = generated(model, ids, headwise.Cache(model)), headwise.Cache(model)
    assert generated(model, ids, cache, f"clover('{tmp_path / 'heads'}')").tolist() == plain.tolist()
    assert cache.session is not None and cache.session.ledger.drafts["passes"] > 5


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_where_it_was_stopped(kind: str, model: Any, tmp_path: Path) -> None:
    lesson, given = Lesson(kind, depth=2, steps=30, window=32), texts(model)

    def stop(what: str, done: int, total: int) -> None:
        if done == 27:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, given, lesson, tmp_path / "state", stop)
    seen: list[int] = []
    again = train(model, given, lesson, tmp_path / "state", lambda what, done, total: seen.append(done))
    whole = train(model, given, lesson, tmp_path / "other")
    assert seen[0] == 25 and not (tmp_path / "state").exists()
    for one, other in zip(again.heads.parameters(), whole.heads.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert again.hits == whole.hits


def test_a_frozen_model_stays_as_it_is(model: Any, trained: dict[str, Trained]) -> None:
    same = host()
    assert attach(same).fingerprint == attach(model).fingerprint == trained["medusa"].model
    assert all(parameter.grad is None for parameter in model.parameters())


def test_files_are_bound_to_their_model(model: Any, trained: dict[str, Trained], tmp_path: Path) -> None:
    path = tmp_path / "heads"
    trained["medusa"].save(path)
    cache = headwise.Cache(model)
    other = host(seed=5)
    with pytest.raises(FileError, match="train heads for it with `headwise train-drafter`"):
        headwise.speculate(other, headwise.Cache(other), f"medusa('{path}')")
    with pytest.raises(FileError, match=r"holds 'medusa' heads; write medusa\('"):
        headwise.speculate(model, cache, f"clover('{path}')")
    with pytest.raises(FileError, match="no file at"):
        headwise.speculate(model, cache, f"medusa('{tmp_path / 'none'}')")
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    with pytest.raises(FileError, match="altered"):
        headwise.speculate(model, cache, f"medusa('{path}')")


def test_the_best_tree_takes_what_is_right_most_often() -> None:
    first = (0.5, 0.2, 0.1, *[0.0] * 5)
    second = (0.6, 0.1, *[0.0] * 6)
    assert best_tree((first, second), 4) == [(-1, 0), (0, 0), (-1, 1), (2, 0)]
    assert len(best_tree((first, second), 99)) == 9, "what never hit is left out"
    with pytest.raises(HeadwiseError, match="nodes= 1 or more"):
        best_tree((first, second), 0)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(HeadwiseError, match="9 windows of 32 tokens to learn from"):
        windows([torch.arange(9 * 32 + 5)], Lesson("medusa", window=32))
    learnt, others = windows([torch.arange(20 * 32)], Lesson("medusa", window=32))
    known = {kind for kind in HEADS.all() if not kind.startswith("dream_")}  # controls of benchmarks/dream.py
    assert len(learnt) == 18 and len(others) == 2 and known == {*KINDS, "medusa_block"} and RANKS == 8
