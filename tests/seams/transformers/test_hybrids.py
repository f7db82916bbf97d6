"""Models whose layers do not all attend: the others' states pass through exactly, and go where the cache goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.shelf import Mixture, Shelf
from headwise.calibrate.subject import ModelSubject
from headwise.cost.governed import governed, governed_lines
from headwise.cost.meta_model import MetaModel
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.decoding.second import Second
from headwise.decoding.speculate import speculate
from headwise.errors import HeadwiseError, SessionError, UnsupportedModel
from headwise.files import read_tensors, write_tensors
from headwise.lens.look import Text, looked_at
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, attach
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.load import load_meta
from headwise.seams.transformers.replay import open_prompt, read_once
from headwise.seams.transformers.together import step_together
from headwise.seams.transformers.zoo import Specimen, examine, specimen_model

STATES_IN_CACHE = hasattr(transformers.cache_utils, "LinearAttentionLayer")  # older ones: a cache class for each model
KINDS = {  # one for each kind of state
    "qwen3_next": "Qwen3NextForCausalLM",  # gated delta rule
    "lfm2": "Lfm2ForCausalLM",  # short convolutions alone
    "jamba": "JambaForCausalLM",  # Mamba
    "bamba": "BambaForCausalLM",  # Mamba-2
    "falcon_h1": "FalconH1ForCausalLM",  # Mamba-2 and attention in every layer
    "nemotron_h": "NemotronHForCausalLM",  # layers with neither
    "zamba2": "Zamba2ForCausalLM",  # a shared block of attention
    "olmo_hybrid": "OlmoHybridForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
}
newer = pytest.mark.skipif(not STATES_IN_CACHE, reason="this transformers keeps states in a cache class of each model")
FEW = ["qwen3_next", "lfm2", "jamba", "falcon_h1"]
IDS = torch.randint(3, 64, (2, 64), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=FEW)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    if not STATES_IN_CACHE:
        pytest.skip("this transformers keeps states in a cache class of each model")
    yield specimen_model(Specimen("causal", request.param, KINDS[request.param]))


def logits(model: PreTrainedModel, cache: Cache, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = forward(model, cache, ids).logits
    return found


def own_states(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The states that the model has in transformers' own cache after ids [b, n], by the names of a session's."""
    cache = transformers.DynamicCache(config=model.config)
    logits(model, cache, ids)
    found = {}
    for layer, one in enumerate(cache.layers):
        for sort in ("conv", "recurrent"):
            for index, state in getattr(one, f"{sort}_states", {}).items():
                if state is not None:
                    found[f"{layer}.{sort}.{index}"] = state
    return found


@newer
@pytest.mark.parametrize("name", KINDS)
def test_it_computes_what_it_computes_alone_in_pieces_and_padded(name: str) -> None:
    verdict = examine(Specimen("causal", name, KINDS[name]))
    assert (verdict.found, verdict.why) == ("identical", "")
    assert verdict.passing > 0 and 0 < verdict.governed <= verdict.layers


@pytest.mark.skipif(STATES_IN_CACHE, reason="they run here")
@pytest.mark.parametrize("name", ["lfm2", "jamba"])
def test_an_older_transformers_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel):
        Cache(specimen_model(Specimen("causal", name, KINDS[name])))


def test_states_are_those_of_its_own_cache_and_are_counted(model: PreTrainedModel) -> None:
    cache = Cache(model)
    logits(model, cache, IDS)
    assert cache.session is not None
    held, own = cache.session.states.state(), own_states(model, IDS)
    assert held.keys() == own.keys()
    for name, state in held.items():
        torch.testing.assert_close(state, own[name], atol=1e-5, rtol=1e-4)
    states = sum(one.numel() * one.element_size() for one in own.values())
    assert cache.nbytes - cache.session.governed_bytes() == states
    by_row = [sum(one[0].numel() for name, one in own.items() if int(name.split(".")[0]) == layer)
              for layer in range(len(cache.seam.geometry.layers))]  # fmt: skip
    assert list(cache.seam.geometry.states) == by_row
    assert "the plan governs" in cache.report()


@pytest.mark.parametrize(
    "recipe",
    ["snapkv(0.3, window=4, sinks=1, recent=4) | int8", "kivi(window=8, group=16)", "quest(8)", "pyramid | h2o(0.4)"],
)
def test_methods_act_on_the_layers_that_attend(model: PreTrainedModel, recipe: str) -> None:
    cache = Cache(model, recipe)
    logits(model, cache, IDS)
    assert logits(model, cache, IDS[:, :1]).isfinite().all()
    session, shape = cache.session, cache.seam.geometry
    assert session is not None
    for layer in range(len(shape.layers)):
        assert bool(session.layers[layer]) == (layer in shape.attending)
    kept = torch.stack([session.lengths(layer).float().mean() for layer in shape.attending])
    assert bool(kept.mean() < 50) == ("snapkv" in recipe or "h2o" in recipe)


def test_a_copy_and_a_file_go_on_as_it_would_have(model: PreTrainedModel, tmp_path: Path) -> None:
    cache, recipe = Cache(model, "snapkv(0.5, window=4)"), "snapkv(0.5, window=4)"
    logits(model, cache, IDS)
    cache.save(tmp_path / "it")
    fork, loaded = cache.fork(), Cache.load(model, recipe, tmp_path / "it")
    for step in range(3):
        other = cache.fork()
        logits(model, other, IDS[:, 40:41])  # what a copy reads changes nothing here
        expected = logits(model, cache, IDS[:, step : step + 1])
        assert torch.equal(logits(model, fork, IDS[:, step : step + 1]), expected)
        assert torch.equal(logits(model, loaded, IDS[:, step : step + 1]), expected)


def test_it_goes_back_to_lengths_whose_states_were_kept_and_to_no_other(model: PreTrainedModel) -> None:
    cache = Cache(model)
    logits(model, cache, IDS[:, :40])
    cache.keep_states()
    held = cache.nbytes
    expected = [logits(model, cache, IDS[:, at : at + 1]) for at in (40, 41, 42)]
    assert cache.nbytes > held
    with pytest.raises(SessionError, match=r"cannot go back from 43 tokens to 42.*kept at: 40"):
        cache.truncate(42)
    cache.truncate(40)
    for at, one in zip((40, 41, 42), expected, strict=True):
        assert torch.equal(logits(model, cache, IDS[:, at : at + 1]), one)
    cache.truncate(40)
    cache.truncate(0)
    torch.testing.assert_close(
        logits(model, cache, IDS[:, :40])[:, -1], logits(model, Cache(model), IDS[:, :40])[:, -1]
    )


def test_a_forward_that_fails_anywhere_is_taken_back(model: PreTrainedModel) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    cache = Cache(model)
    logits(model, cache, IDS[:, :40])
    expected = logits(model, cache.fork(), IDS[:, 40:41])
    head = model.get_output_embeddings()
    for part in (*(model.get_decoder().layers), head):
        hook = part.register_forward_pre_hook(stop)
        with pytest.raises(Stop):
            logits(model, cache, IDS[:, 41:42])
        hook.remove()
        cache.abort()
        assert torch.equal(logits(model, cache.fork(), IDS[:, 40:41]), expected)


def test_after_a_failure_that_nobody_took_back_it_goes_on_right_or_not_at_all(model: PreTrainedModel) -> None:
    cache = Cache(model)
    logits(model, cache, IDS[:, :40])
    expected = logits(model, cache.fork(), IDS[:, 40:41])
    with pytest.raises(HeadwiseError, match="positions"):  # refused by the first layer that attends
        logits(model, cache, IDS[:, :1].repeat(1, 250))
    assert torch.equal(logits(model, cache, IDS[:, 40:41]), expected)
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, cache, IDS[:, 41:42])
    hook.remove()
    with pytest.raises(SessionError, match="abort"):
        logits(model, cache, IDS[:, 41:42])
    cache.abort()
    assert cache.get_seq_length() == 41


def test_beams_are_its_own(model: PreTrainedModel) -> None:
    how = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": 63, "pad_token_id": 0}
    found = model.generate(IDS[:, :24], cache=Cache(model), **how)
    assert torch.equal(found, model.generate(IDS[:, :24], **how))


def test_rows_are_told_apart_and_another_batch_is_refused(model: PreTrainedModel) -> None:
    cache = Cache(model)
    logits(model, cache, IDS[:, :24])
    expected = logits(model, cache.fork(), IDS[:, 24:25])
    cache.batch_select_indices(torch.tensor([1]))
    torch.testing.assert_close(logits(model, cache.fork(), IDS[1:, 24:25]), expected[1:], atol=1e-4, rtol=1e-3)
    with pytest.raises(SessionError, match="1 rows, the model was given 2"):
        logits(model, cache, IDS[:, 24:25])


@newer
def test_a_file_with_another_state_is_refused(tmp_path: Path) -> None:
    model = specimen_model(Specimen("causal", "lfm2", KINDS["lfm2"]))
    cache = Cache(model)
    logits(model, cache, IDS[:, :24])
    cache.save(tmp_path / "it")
    from headwise.engine.session_facts import SessionFacts

    facts, tensors = read_tensors(tmp_path / "it", "headwise-session-2", SessionFacts, SessionError)
    (name,) = [name for name in tensors if name.startswith("state.")]
    wrong = {
        "expected": {**tensors, name: tensors[name][:, 1:].clone()},
        "no state of 2 rows": {**tensors, name: tensors[name][:1].clone()},
        "does not name": {**tensors, "state.x": tensors[name]},
        "neither": {**tensors, "state.0.other.0": tensors[name]},
        "state of 0 numbers": {one: tensor for one, tensor in tensors.items() if one != name},
    }
    for told, bad in wrong.items():
        write_tensors(tmp_path / "bad", "headwise-session-2", facts.model_dump(mode="json"), bad)
        with pytest.raises(SessionError, match=told):
            Cache.load(model, "", tmp_path / "bad")


@newer
def test_states_kept_on_modules_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="keep their state on themselves"):
        Cache(specimen_model(Specimen("causal", "recurrent_gemma", "RecurrentGemmaForCausalLM")))


def test_a_prompt_that_is_read_again_passes_nothing_on(model: PreTrainedModel) -> None:
    cache = Cache(model, "kvzip(0.5)")
    logits(model, cache, IDS[:1])
    assert cache.session is not None and max(map(max, cache.session.lengths(cache.first).tolist())) < IDS.shape[1]
    for name, state in cache.session.states.state().items():
        torch.testing.assert_close(state, own_states(model, IDS[:1])[name], atol=1e-5, rtol=1e-4)


def test_a_recorded_prompt_brings_its_states(model: PreTrainedModel) -> None:
    read, told = Cache(model, "snapkv(0.5, window=4)"), Cache(model, "snapkv(0.5, window=4)")
    logits(model, read, IDS[:1])
    open_prompt(model, told, IDS[:1], read_once(model, IDS[:1]))
    found, expected = logits(model, told, IDS[:1, :1]), logits(model, read, IDS[:1, :1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_drafts_are_refused_before_anything_is_read(model: PreTrainedModel) -> None:
    cache = Cache(model)
    for draft in ("lookup", "streaming(16)"):
        with pytest.raises(SessionError, match="layers pass on a state"):
            speculate(model, cache, draft)
    with pytest.raises(SessionError, match="layers pass on a state"):
        Second(model, Recipe(), 4)
    assert cache.session is None


def test_a_part_of_it_called_by_itself_is_refused_as_it_could_not_be_taken_back(model: PreTrainedModel) -> None:
    cache = Cache(model)
    with pytest.raises(SessionError, match="call the model itself"):
        forward(model.base_model, cache, IDS[:1, :24])
    assert cache.session is None
    torch.testing.assert_close(logits(model, cache, IDS[:1, :24]), logits(model, Cache(model), IDS[:1, :24]))


def test_a_layer_computed_again_for_its_gradients_begins_anew(model: PreTrainedModel) -> None:
    subject = ModelSubject(model)
    weight = model.get_input_embeddings().weight

    def gradient() -> torch.Tensor:
        found = subject.logits(IDS[:1], torch.tensor([63]), lambda one: one.full()).square().sum()
        return torch.autograd.grad(found, weight)[0]

    expected = gradient()
    with subject.recomputed():
        torch.testing.assert_close(gradient(), expected, atol=1e-4, rtol=1e-3)


def test_lenses_look_at_the_layers_that_attend(model: PreTrainedModel) -> None:
    subject = ModelSubject(model)
    text = Text(IDS[:1], torch.zeros(64, dtype=torch.bool))
    found = looked_at(subject, text, lambda look: look.entropy)
    assert sorted(found) == list(subject.geometry.attending)
    if model.config.model_type == "qwen3_next":
        with pytest.raises(HeadwiseError, match="no module is fed"):  # a gate comes in between
            output_modules(subject)
    else:
        assert sorted(output_modules(subject)) == list(subject.geometry.attending)


def test_questions_after_a_recorded_document_go_on_from_its_states(model: PreTrainedModel) -> None:
    document, asked = IDS[:1, :40], IDS[:, 40:44]
    shelf = Shelf(model, read_once(model, document))
    mixture = Mixture(shelf, Plan.uniform(attach(model).geometry, ""))
    for rows in (asked, asked[:1]):
        found = logits(model, mixture, rows)
        for row, one in zip(rows, found, strict=True):
            cache = Cache(model)
            logits(model, cache, document)
            torch.testing.assert_close(logits(model, cache, row[None])[0], one, atol=1e-3, rtol=1e-3)


def test_bytes_are_foretold_with_states_and_a_budget_needs_no_first_layer_that_attends(model: PreTrainedModel) -> None:
    cache = Cache(model, "streaming(0.5, sinks=1, recent=4)")
    logits(model, cache, IDS[:1])
    session, shape = cache.session, cache.seam.geometry
    assert session is not None
    states = shape.state_bytes(torch.float32)
    assert states == session.states.nbytes > 0
    assert predicted_bytes(cache.plan, 64, torch.float32) == session.predicted_bytes()
    assert (
        session.dense_bytes()
        == shape.dense_bytes(64, torch.float32)
        == shape.dense_bytes(0, torch.float32)
        + (64 * 4 * sum(one.kv_heads * (one.key_width + one.value_width) for one in shape.layers))
    )
    target = predicted_bytes(Plan.uniform(shape, "streaming(32, sinks=1, recent=4)"), 64, torch.float32)
    assert fitted(cache.plan, target, 64, torch.float32).evict.tokens_of(64) >= 32


@newer
@pytest.mark.parametrize("name", ["qwen3_next", "jamba", "falcon_h1", "nemotron_h"])
def test_what_is_told_before_weights_are_loaded_is_what_there_is(name: str, tmp_path: Path) -> None:
    model = specimen_model(Specimen("causal", name, KINDS[name]))
    model.config.save_pretrained(tmp_path)
    meta = MetaModel(load_meta(tmp_path, "bfloat16"))
    seam = attach(model)
    assert meta.geometry == seam.geometry
    found = governed(meta)
    assert found["governed"] == len(seam.geometry.attending)
    cache = Cache(model)
    logits(model, cache, IDS[:1])
    assert cache.session is not None
    assert found["state_bytes"] == sum(one.numel() for one in cache.session.states.state().values()) * 2
    lines = "\n".join(governed_lines(found))
    assert f"a plan governs {found['governed']} of {found['layers']} layers" in lines and "state of" in lines


def test_several_sequences_in_one_forward_are_refused(model: PreTrainedModel) -> None:
    caches = [Cache(model), Cache(model)]
    for one in caches:
        logits(model, one, IDS[:1, :9])
    with pytest.raises(SessionError, match="pass on a state"):
        step_together(model, caches, [3, 4])
