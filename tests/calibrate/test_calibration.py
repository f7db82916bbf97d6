"""The calibration file: whole, resumable, of one model; its measures true, and in memory that grows with the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

import headwise
from headwise.calibrate import calibrate as pass_
from headwise.calibrate.calibrate import calibrate, measures
from headwise.calibrate.calibration import Calibration
from headwise.calibrate.measures.locality import head_locality, log_masses
from headwise.calibrate.measures.profile import attention_profile, octave
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError, PlanError
from headwise.methods.prefill.sale.measure import sale_thresholds
from headwise.methods.prefill.seer.measure import seer_calibration
from headwise.observe import GateTraining, Material, Recall
from headwise.plan import Plan
from headwise.registry import all_methods, calibration_of
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import prefill
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def recall(tokens: int, seed: int = 0) -> Recall:
    """Random tokens, two stretches of which are the answers."""
    ids = torch.randint(2, 512, (1, tokens), generator=torch.Generator().manual_seed(seed))
    return Recall(ids, tuple((ids[:, at : at + 4], ids[:, at + 4 : at + 7]) for at in (10, tokens // 2)))


def material(model: PreTrainedModel, tokens: int = 300) -> Material:
    one = recall(tokens)
    ladder = [recall(tokens // share, share) for share in (3, 2, 1)]
    training = GateTraining(sinks=4, recent=32, steps=3)
    return Material(
        ModelSubject(model), [one.ids], [one], ladder, training=training, density=1.0, block_steps=30, type_steps=2
    )


@pytest.fixture(scope="module")
def found(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, Path]:
    path = tmp_path_factory.mktemp("calibration") / "tiny.calibration"
    return calibrate(material(model), path=path), path


def equal(one: Calibration, other: Calibration) -> bool:
    same = one.tensors.keys() == other.tensors.keys() and one.figures == other.figures
    return same and all(torch.equal(x, other.tensors[name]) for name, x in one.tensors.items())


def test_everything_is_measured_and_read_back(found: tuple[Calibration, Path], model: PreTrainedModel) -> None:
    calibration, path = found
    assert list(calibration.figures) == list(measures())
    assert equal(Calibration.load(path, attach(model).fingerprint), calibration)
    for name, one in calibration.tensors.items():
        assert one.isfinite().all(), name
        assert "." not in name or one.shape[:2] == (3, 2)


def test_methods_declare_what_is_found_and_by_which_measure(found: tuple[Calibration, Path]) -> None:
    declared = {name: one for cls in all_methods().values() for name, one in calibration_of(cls).items()}
    assert set(declared) == {name for name in found[0].tensors if "." in name}
    assert {one.measure for one in declared.values()} <= set(measures())
    assert all(one.about for one in declared.values())


def test_a_plan_shows_a_calibration_to_its_methods(found: tuple[Calibration, Path], model: PreTrainedModel) -> None:
    calibration, _ = found
    geometry = calibration.geometry
    told = calibration.into(Plan.uniform(geometry, "duo(40, sinks=4, recent=32, sparsity=0.5)", calibration.model))
    assert set(told.calibration) == {name for name in calibration.tensors if "." in name}
    cache = headwise.Cache(model, told)
    prefill(model, cache, recall(200).ids, None)
    assert cache.session is not None
    lengths = torch.cat([cache.session.lengths(layer) for layer in range(3)])
    whole = calibration.tensors["duo.gates"].flatten().argsort(descending=True, stable=True)[:3]
    assert sorted(lengths.flatten().tolist()) == [40, 40, 40, 200, 200, 200]
    least = calibration.tensors["duo.gates"].flatten()[whole].min()
    assert (calibration.tensors["duo.gates"][lengths == 200] >= least).all()


@pytest.mark.parametrize("recipe", ["seer(0.1)", "sale(1.0)"])
def test_patterns_read_what_a_calibration_tells_them(
    recipe: str, found: tuple[Calibration, Path], model: PreTrainedModel
) -> None:
    """It holds what the functions of one measure find, and a plan with it reads other blocks than one without."""
    calibration, _ = found
    subject, ids = ModelSubject(model), material(model).documents
    for name, one in {**seer_calibration(subject, ids, steps=30), **sale_thresholds(subject, ids)}.items():
        assert torch.equal(calibration.tensors[name], one), name
    plain = Plan.uniform(calibration.geometry, recipe, calibration.model)
    untold, told, again = (
        prefill(model, headwise.Cache(model, plan), recall(700).ids, None)
        for plan in (plain, calibration.into(plain), calibration.into(plain))
    )
    assert torch.equal(told, again) and not torch.equal(told, untold)


def test_another_models_calibration_is_refused(found: tuple[Calibration, Path]) -> None:
    calibration, path = found
    with pytest.raises(PlanError, match="headwise calibrate"):
        Calibration.load(path, "0123")
    with pytest.raises(PlanError, match="headwise calibrate"):
        calibration.into(Plan.uniform(calibration.geometry, "duo", "0123"))
    with pytest.raises(PlanError, match="headwise calibrate"):
        calibration.into(Plan.uniform(replace(calibration.geometry, layers=calibration.geometry.layers[:1]), "duo"))


def test_a_file_with_one_changed_byte_is_refused(found: tuple[Calibration, Path], tmp_path: Path) -> None:
    """Every byte of the header, where names and types stand, and a part of the tensors' own."""
    small = replace(found[0], tensors={"duo.gates": found[0].tensors["duo.gates"], "other": torch.arange(3)})
    small.save(tmp_path / "small")
    good = (tmp_path / "small").read_bytes()
    for place in range(len(good)):
        for changed in (good[place] ^ 1, good[place] ^ 128):
            (tmp_path / "bad").write_bytes(good[:place] + bytes([changed]) + good[place + 1 :])
            with pytest.raises(PlanError, match=r"again|expected"):
                Calibration.load(tmp_path / "bad")


def test_a_kill_loses_one_measure_at_most(
    found: tuple[Calibration, Path], model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart measures nothing again that was finished, and ends in the same file."""
    path, ran = tmp_path / "calibration", list[str]()

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        known = measures()
        patch.setattr(pass_, "measures", lambda: known | {"retrieval": replace(known["retrieval"], run=killed)})
        with pytest.raises(KeyboardInterrupt):
            calibrate(material(model), path=path)
    left = set(Calibration.load(path).figures)
    assert left == set(list(known)[: list(known).index("retrieval")])
    about = {measure.about: name for name, measure in known.items()}
    again = calibrate(material(model), path=path, progress=lambda what, done, total: ran.append(about[what]))
    assert set(ran) == set(known) - left
    assert equal(again, found[0]) and path.read_bytes() == found[1].read_bytes()


def test_other_data_and_unknown_measures_are_refused(found: tuple[Calibration, Path], model: PreTrainedModel) -> None:
    with pytest.raises(PlanError, match="--out"):
        calibrate(material(model, 310), path=found[1])
    with pytest.raises(PlanError, match="--out"):
        calibrate(replace(material(model), density=0.9), ["keys"], path=found[1])
    with pytest.raises(HeadwiseError, match="--context"):
        calibrate(replace(material(model), density=0.5))
    with pytest.raises(HeadwiseError, match="did you mean 'gates'"):
        calibrate(material(model), ["gate"])


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return out


def lengths() -> Iterator[str]:
    yield from (name for name in measures() if name != "induction")  # reads a text of its own, always the same


@pytest.mark.parametrize("name", lengths())
def test_memory_does_not_grow_with_the_square_of_the_length(
    name: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small blocks, as blocks hold whatever is shorter: twice the text, at most twice the largest tensor."""
    monkeypatch.setattr("headwise.kernels.reference.scores.BLOCK_ELEMENTS", 1 << 12)
    monkeypatch.setattr("headwise.methods.evict.nats.training.LONGEST", 100)  # what is trained on is cut to so much
    most = []
    for tokens in (400, 800):
        one = material(model, tokens)
        with Largest() as largest:
            calibrate(one, [name])
        most.append(largest.most)
    assert most[1] <= 2.2 * most[0], most


def test_the_profile_is_the_attention_of_the_model(model: PreTrainedModel) -> None:
    ids = recall(100).ids
    model.set_attn_implementation("eager")
    truth = torch.stack([x[0] for x in model(ids, output_attentions=True).attentions]).unflatten(1, (2, 2)).mean(2)
    model.set_attn_implementation("headwise")
    found = attention_profile(ModelSubject(model), [ids])
    by_distance, queries = found["attention_by_distance"], found["queries_by_length"]
    assert queries.tolist() == [0, 1, 2, 4, 8, 16, 32, 37]
    torch.testing.assert_close(by_distance[:, :, 1:].sum(-1), torch.ones(3, 2, 7))
    at, of = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    for length, distance in ((3, 2), (7, 0), (7, 5), (5, 3)):
        cells = (octave(at + 1) == length) & (octave((at - of).clamp(min=0)) == distance) & (of <= at)
        expected = (truth * cells).sum((2, 3)) / queries[length]
        torch.testing.assert_close(by_distance[:, :, length, distance], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["sink_mass"], truth[..., :4].sum(-1).mean(-1), atol=1e-5, rtol=1e-4)
    near = (truth * ((at - of < 64) & (of >= 4))).sum(-1).mean(-1)
    torch.testing.assert_close(found["local_mass"], near, atol=1e-5, rtol=1e-4)


def test_log_masses_202_of_gaussian_keys_are_predicted() -> None:
    """Row 202: for Gaussian keys the predicted log-mass is within 5 % of the truth."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator) / 4
    keys = torch.randn(2, 4000, 16, generator=generator) @ mix + torch.randn(2, 1, 16, generator=generator)
    queries = torch.randn(2, 3, 20, 16, generator=generator)
    masses = log_masses(queries, keys, 0.25)
    assert ((masses.predicted - masses.far).abs() <= 0.05 * masses.far.abs()).all()
    outlier = keys.clone()
    outlier[:, 100] = 40 * queries[:, 0, -1]  # one key that draws everything is no Gaussian
    assert (log_masses(queries, outlier, 0.25).far - masses.far)[:, 0, -1].min() > 10


def test_locality_is_1_where_everything_is_local(model: PreTrainedModel) -> None:
    found = head_locality(ModelSubject(model), [recall(60).ids])
    assert (found["locality"] == 1).all() and (found["locality_predicted"] == 1).all()
    assert float(head_locality(ModelSubject(model), [recall(600).ids])["locality"].min()) < 1


@pytest.mark.parametrize("name", ["profile", "locality", "keys", "queries", "dhsa", "nats"])
def test_reading_in_pieces_shows_the_same(name: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 tokens in three pieces and in one. (Patterns are chosen for pieces, as prompts are read.)"""
    monkeypatch.setattr("headwise.calibrate.measures.locality.WITNESSES", 90)
    once = calibrate(material(model), [name])
    monkeypatch.setattr("headwise.calibrate.look.PIECE", 100)
    pieces = calibrate(material(model), [name])
    assert pieces.tensors.keys() == once.tensors.keys()
    for what, one in once.tensors.items():
        torch.testing.assert_close(pieces.tensors[what], one, atol=1e-3, rtol=1e-3, msg=what)
