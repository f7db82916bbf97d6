"""The law of the room: what a sequence is given in a forward with others is what it is given alone, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headwise.engine.read import Reading
from headwise.errors import SessionError
from headwise.kernels.native.decode import Ready
from headwise.kernels.native.library import unusable
from headwise.seams.transformers import drive
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.chain import Waiter
from headwise.seams.transformers.load import load_model
from headwise.seams.transformers.together import step_together
from headwise.serve.promise import Promises, Work, gathers, reads_whole
from headwise.serve.rows import Rows, steady_rows
from tests.contract.drive import everything, small
from tests.serve.alone import Alone, alone, prompt

TOKENS, NEW, PIECE, BETWEEN = 140, 10, 60, 8
needs_kernels = pytest.mark.skipif(bool(unusable()), reason="the native kernels are not compiled")


@pytest.fixture(scope="module")
def all_alone(model: PreTrainedModel) -> Iterator[dict[str, Alone]]:
    """Every method and combined sentence, alone, each with a prompt of its own length; evictions come every few
    steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headwise.engine.session.DECODE_INTERVAL", BETWEEN)
        yield {
            name: alone(model, small(name), prompt(TOKENS + seed % 9, seed), NEW, PIECE)
            for seed, name in enumerate(everything())
        }


@needs_kernels
def test_together_is_alone_for_every_method(model: PreTrainedModel, all_alone: dict[str, Alone]) -> None:
    names, wrong = list(all_alone), set()
    for start in range(0, len(names), 13):
        some = [all_alone[name] for name in names[start : start + 13]]
        caches = [one.cache.fork() for one in some]
        for step in range(NEW - 1):
            logits = step_together(model, caches, [one.ids[step] for one in some])
            wrong |= {
                names[start + row] for row, one in enumerate(some) if not torch.equal(logits[row], one.logits[step + 1])
            }
    assert not wrong


@pytest.mark.parametrize("name", everything())
def test_a_sequence_holds_what_was_promised(model: PreTrainedModel, all_alone: dict[str, Alone], name: str) -> None:
    found, cache = all_alone[name], all_alone[name].cache
    tokens = cache.get_seq_length()
    work = Work(tokens, NEW, tokens if reads_whole(cache.plan) else PIECE)
    promised = Promises(model.dtype, cache.seam.ropes).bytes_of(cache.plan, work)
    assert found.peak <= promised <= 4 * found.peak  # evictions come more often here than is promised


def test_a_prompt_that_is_gathered_holds_what_was_promised(model: PreTrainedModel) -> None:
    """Of every method that evicts, and does not see the prompt in one piece: while it is read, and afterwards."""
    promises, tried = Promises(model.dtype, Cache(model).seam.ropes), 0
    for name in everything():
        cache = Cache(model, small(name), gather=True)
        if not gathers(cache.plan):
            continue
        found, tried = alone(model, cache.plan, prompt(TOKENS), 3, PIECE, gather=True), tried + 1
        whole = promises.bytes_of(cache.plan, Work(TOKENS, 0, TOKENS))
        after = promises.bytes_of(cache.plan, Work(TOKENS, 3, 1))
        held = found.cache.session.cache_bytes()
        assert 0.25 * whole < found.read <= whole and held <= after, name
    assert tried > 20


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_steady_are_found(place: str, model: PreTrainedModel, dtype: str) -> None:
    from headwise.compiled.fast import fast

    loaded = load_model(place, dtype)
    fast(loaded)
    rows = steady_rows(loaded)
    assert rows.least <= 3 and rows.most == 16
    if dtype == "float32":
        assert rows == Rows(1, 16)


def test_rows_of_plain_layers_are_steady_too(place: str) -> None:
    """Whatever the range is by which torch computes here, a row is the same for every number of rows in it."""
    loaded = load_model(place)
    rows = steady_rows(loaded)
    caches = [Cache(loaded, "int8") for _ in range(5)]
    for seed, cache in enumerate(caches):
        drive.prefill(loaded, cache, torch.tensor([prompt(30 + seed, seed)]))
    one = [step_together(loaded, [cache.fork()], [7], rows.least)[0] for cache in caches]
    if rows.most >= 5:
        five = step_together(loaded, [cache.fork() for cache in caches], [7] * 5, max(5, rows.least))
        assert torch.equal(torch.stack(one), five)


@needs_kernels
def test_a_step_is_one_call_of_attention_a_layer(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [Cache(model, recipe) for recipe in ("", "int8", "snapkv(0.5) | int4", "h2o(0.5)", "")]
    for seed, cache in enumerate(caches):
        drive.prefill(model, cache, torch.tensor([prompt(40 + 9 * seed, seed)]))
    step_together(model, caches, [3] * 5)
    monkeypatch.setattr(Waiter, "take", lambda *_: None)  # layers that wait are one call in all: tests/compiled
    sets, run = list[int](), Ready.run
    monkeypatch.setattr(Ready, "run", lambda self, *others: (sets.append(1 + len(others)), run(self, *others))[1])
    step_together(model, caches, [4] * 5)
    assert sets == [5] * model.config.num_hidden_layers


def test_idle_rows_leave_no_trace(model: PreTrainedModel) -> None:
    cache = Cache(model, "h2o(0.5)")
    drive.prefill(model, cache, torch.tensor([prompt(50)]))
    other = cache.fork()
    a, b = step_together(model, [cache], [5], 1), step_together(model, [other], [5], 8)
    assert a.shape == b.shape == (1, 512)
    torch.testing.assert_close(a, b)
    assert cache.get_seq_length() == other.get_seq_length() == 51
    assert cache.session.seen == other.session.seen and torch.equal(cache.session.lengths(0), other.session.lengths(0))


def test_a_step_that_fails_is_taken_back_in_all(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [Cache(model, recipe) for recipe in ("", "snapkv(0.5)", "int8")]
    for seed, cache in enumerate(caches):
        drive.prefill(model, cache, torch.tensor([prompt(40 + seed, seed)]))
    wanted = step_together(model, [cache.fork() for cache in caches], [3, 4, 5])
    session = caches[1].session
    original = session.look_back

    def fails(reading: Reading, layer: int, *args: Any) -> None:
        if layer == 1:
            raise MemoryError
        original(reading, layer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(session, "look_back", fails)
        with pytest.raises(MemoryError):
            step_together(model, caches, [3, 4, 5])
    assert [cache.get_seq_length() for cache in caches] == [40, 41, 42]
    assert torch.equal(step_together(model, caches, [3, 4, 5]), wanted)


def test_what_cannot_go_together_is_refused(model: PreTrainedModel) -> None:
    empty, cache = Cache(model), Cache(model)
    drive.prefill(model, cache, torch.tensor([prompt(40)]))
    with pytest.raises(SessionError, match="0 rows"):
        step_together(model, [cache, empty], [1, 2])
    with pytest.raises(SessionError, match="twice"):
        step_together(model, [cache, cache], [1, 2])
    two = cache.fork()
    two.batch_repeat_interleave(2)
    with pytest.raises(SessionError, match="2 rows"):
        step_together(model, [cache, two], [1, 2])
    assert cache.get_seq_length() == 40
