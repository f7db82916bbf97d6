"""Models whose layers share keys and values, and models that attend by themselves over what a cache hands back."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers import drive, zoo
from headwise.seams.transformers.cache import Through
from headwise.seams.transformers.forward import cache_argument, generation_argument
from headwise.seams.transformers.together import Together
from tests.engine.small import tokens

SHARED, ITSELF = ("gemma3n_text", "gemma4_text"), ("bloom", "falcon", "gpt_neo", "jetmoe", "deepseek_v32")
known = {one.model_type for one in zoo.specimens("causal")}


def these(names: tuple[str, ...]) -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(one, marks=pytest.mark.skipif(one not in known, reason="not there")) for one in names]
    )


@cache
def model(name: str) -> t.PreTrainedModel:
    made = zoo.specimen_model(next(one for one in zoo.specimens("causal") if one.model_type == name))
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = None, 0
    return made


def written(made: t.PreTrainedModel, ids: torch.Tensor, held: Any, **how: Any) -> torch.Tensor:
    own = {} if held is None else {generation_argument(): held}
    return made.generate(ids, max_new_tokens=6, do_sample=False, **own, **how)


def prompt(rows: int = 1, count: int = 40) -> torch.Tensor:
    return tokens(count, rows=rows) % 60 + 3


@these(SHARED + ITSELF)
def test_greedy_text_padded_batches_and_beams_are_the_models_own(name: str) -> None:
    made = model(name)
    headwise.detach(made)
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[0, :11] = 0
    asked: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (prompt(), {}), (prompt(2), {"attention_mask": mask}), (prompt(), {"num_beams": 3}),
    ]  # fmt: skip
    expected = [written(made, ids, None, **how) for ids, how in asked]
    found = [written(made, ids, headwise.Cache(made), **how) for ids, how in asked]
    assert all(map(torch.equal, found, expected))


@these(SHARED)
def test_shared_keys_are_held_once_and_evicted_where_they_lie(name: str) -> None:
    made, held = model(name), headwise.Cache(model(name), "snapkv(0.3, window=4, sinks=1, recent=4)")
    with torch.no_grad():
        made(prompt(), use_cache=True, **{cache_argument(type(made)): held})
    shape, session = held.seam.geometry, held.session
    assert session is not None and shape.reading and shape.lending
    full = [layer for layer in shape.attending if shape.windows[layer] is None]
    assert all(0 < int(session.lengths(layer).max()) < 40 for layer in full)
    assert all(not session.stores(layer) for layer in shape.reading)
    assert held.nbytes - session.undo_bytes == session.predicted_bytes()
    assert len(written(made, prompt(), headwise.Cache(made, "snapkv(0.3) | int8"))[0]) == 46


@these(SHARED)
def test_a_fork_and_a_file_go_on_alike(name: str, tmp_path: Path) -> None:
    made, held = model(name), headwise.Cache(model(name), "streaming(0.5)")
    drive.prefill(made, held, prompt())
    held.save(tmp_path / "saved")
    read = headwise.Cache.load(made, "streaming(0.5)", tmp_path / "saved")
    ids = prompt(count=41)
    assert torch.equal(written(made, ids, held.fork()), written(made, ids, read))


@these(ITSELF)
def test_only_the_form_can_be_said_where_a_model_attends_by_itself(name: str) -> None:
    made = model(name)
    why = headwise.attach(made).by_itself
    assert why is not None
    for sentence in ("snapkv(0.5)", "streaming(0.5)", "quest(0.5)", "a_shape"):
        with pytest.raises(UnsupportedModel, match="attends by itself and a plan can say only in what form"):
            headwise.Cache(made, sentence)
    for refused in (lambda: Through(made, None), lambda: headwise.Cache(made).refuse_drafts()):
        with pytest.raises((UnsupportedModel, SessionError), match="the model attends by itself"):
            refused()
    held = headwise.Cache(made)
    drive.prefill(made, held, prompt())
    with pytest.raises(SessionError, match="attends by itself, to one cache at a time"):
        Together([held])


@these(("bloom", "falcon", "gpt_neo"))
def test_a_codec_is_what_such_a_model_reads(name: str) -> None:
    """Fewer bytes, near logits; and exactly those of its own cache with keys and values rounded by the same codec."""
    made, ids = model(name), prompt()
    dense, rounded = headwise.Cache(made), headwise.Cache(made, "int8")
    for held in (dense, rounded):
        drive.prefill(made, held, ids)
    assert rounded.nbytes < 0.75 * dense.nbytes
    own = t.DynamicCache(config=made.config)
    step, last = torch.tensor([[7]]), {}
    with torch.no_grad():
        zoo.forward(made, own, ids)
        assert rounded.session is not None
        for layer, held in enumerate(own.layers):
            (store,) = rounded.session.stores(layer)
            kept = store.segment(0, len(store.lengths))
            assert not torch.equal(held.keys[0], kept.keys)
            held.keys, held.values = kept.keys[None], kept.values[None]
        for name_, cache_ in (("dense", dense), ("rounded", rounded), ("own", own)):
            last[name_] = zoo.forward(made, cache_, step).logits
    torch.testing.assert_close(last["rounded"], last["own"], rtol=1e-4, atol=1e-5)
    assert 1e-6 < float((last["rounded"] - last["dense"]).norm() / last["dense"].norm()) < 0.1


@these(("bloom",))
def test_such_a_cache_goes_back_forks_and_is_saved(name: str, tmp_path: Path) -> None:
    made, held = model(name), headwise.Cache(model(name), "int8")
    drive.prefill(made, held, prompt())
    held.save(tmp_path / "saved")
    read, fork = headwise.Cache.load(made, "int8", tmp_path / "saved"), held.fork()
    ids = prompt(count=41)
    assert torch.equal(written(made, ids, read), written(made, ids, fork))
    fork.truncate(40)
    assert torch.equal(written(made, ids, fork), written(made, ids, held))


@these(("deepseek_v32",))
def test_an_indexer_chooses_and_its_keys_are_counted(name: str) -> None:
    made, held = model(name), headwise.Cache(model(name))
    assert made.config.index_topk == 8 < 40
    drive.prefill(made, held, prompt())
    index = made.config.num_hidden_layers * 40 * made.config.index_head_dim * 4
    assert held.states.nbytes == index and held.session is not None
    assert held.session.cache_bytes() == held.session.governed_bytes() + index
    with pytest.raises(SessionError, match="indexer"):
        held.save("nowhere")
