"""All that is measured once per model: each measure by name, and the one pass that makes a calibration of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headwise.calibrate.block_gates import seer_calibration
from headwise.calibrate.calibration import Calibration
from headwise.calibrate.chunk_cuts import dhsa_calibration
from headwise.calibrate.gates import GateTraining, duo_gates
from headwise.calibrate.heads import Recall, head_losses
from headwise.calibrate.keys import key_calibration
from headwise.calibrate.locality import head_locality
from headwise.calibrate.patterns import candidates, pattern_errors, sale_thresholds
from headwise.calibrate.profile import attention_profile
from headwise.calibrate.queries import query_calibration
from headwise.calibrate.retrieval import echo_and_induction, retrieval_scores
from headwise.calibrate.spans import check_ladder, choose_spans, sensitivities
from headwise.calibrate.token_types import token_types
from headwise.errors import HeadwiseError, PlanError, did_you_mean
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.drive import Progress

Found = tuple[dict[str, Any], dict[str, torch.Tensor]]  # figures and tensors


@dataclass(frozen=True, eq=False)
class Material:
    """What a model is measured on, and how. documents: ids [1, n] to read. recalls: documents to recall from. ladder:
    three or more of ascending lengths, for spans. trained: documents to recall from that gates are trained on, where
    `recalls` are too long for that; the same where there are none.

    training: of DuoAttention's gates. density: mean share of the context that spans may take. share: of the causal
    pairs that the patterns compared may compute. block_steps: of training SeerAttention's gates and DHSA's networks.
    """

    model: PreTrainedModel
    documents: Sequence[torch.Tensor]
    recalls: Sequence[Recall]
    ladder: Sequence[Recall]
    trained: Sequence[Recall] = ()
    training: GateTraining = field(default_factory=GateTraining)
    density: float = 0.5
    share: float = 0.25
    block_steps: int = 200

    @property
    def data(self) -> str:
        """A short hash of all that is read and asked, and of how."""
        digest = hashlib.sha256(repr((asdict(self.training), self.density, self.share, self.block_steps)).encode())
        for one in (*self.documents, *(x for r in (*self.recalls, *self.ladder, *self.trained) for x in _texts(r))):
            digest.update(repr(one.tolist()).encode())
        return digest.hexdigest()[:16]


def _texts(recall: Recall) -> list[torch.Tensor]:
    return [recall.ids, *(ids for pair in recall.asked for ids in pair)]


@dataclass(frozen=True)
class Measure:
    """about: in a line, what is found. run: measures it, telling its progress. cost: seconds of a model of 0.5B
    shape (docs/tune.md), which tell how far a calibration is."""

    about: str
    run: Callable[[Material, Progress], Found]
    cost: int


def _profile(material: Material, progress: Progress) -> Found:
    return {}, attention_profile(material.model, material.documents)


def _locality(material: Material, progress: Progress) -> Found:
    return {}, head_locality(material.model, material.documents)


def _keys(material: Material, progress: Progress) -> Found:
    return {}, key_calibration(material.model, material.documents)


def _queries(material: Material, progress: Progress) -> Found:
    return {}, query_calibration(material.model, material.documents)


def _patterns(material: Material, progress: Progress) -> Found:
    recipes = candidates(max(ids.shape[1] for ids in material.documents), material.share)
    errors = pattern_errors(material.model, [Recipe.parse(one) for one in recipes], material.documents)
    return {"recipes": list(recipes), "share": material.share}, {"pattern_errors": errors}


def _retrieval(material: Material, progress: Progress) -> Found:
    scores = retrieval_scores(material.model, material.recalls)
    return {"query_heads_above_0.1": int((scores > 0.1).sum())}, {"retrieval_scores": scores}


def _induction(material: Material, progress: Progress) -> Found:
    echo, induction = echo_and_induction(material.model)
    return {}, {"razor.echo": echo.contiguous(), "razor.induction": induction.contiguous()}


def _gates(material: Material, progress: Progress) -> Found:
    gates = duo_gates(material.model, material.trained or material.recalls, material.training, progress)
    return asdict(material.training), {"duo.gates": gates}


def _spans(material: Material, progress: Progress) -> Found:
    lengths = [recall.ids.shape[1] for recall in material.ladder]
    measured = sensitivities(material.model, material.ladder, progress)
    spans = choose_spans(measured, lengths, material.density)
    losses = {f"span_losses_{length}": one for length, one in zip(lengths, measured, strict=True)}
    return {"lengths": lengths, "density": material.density}, {"moa.spans": spans, **losses}


def _seer(material: Material, progress: Progress) -> Found:
    gates = seer_calibration(material.model, material.documents, steps=material.block_steps)
    return {"steps": material.block_steps}, gates


def _dhsa(material: Material, progress: Progress) -> Found:
    return {"steps": material.block_steps}, dhsa_calibration(material.model, material.documents, material.block_steps)


def _sale(material: Material, progress: Progress) -> Found:
    return {}, sale_thresholds(material.model, material.documents)


def _nats(material: Material, progress: Progress) -> Found:
    return {}, token_types(material.model, material.documents)


def _ablation(material: Material, progress: Progress) -> Found:
    return {}, {"head_losses": head_losses(material.model, material.recalls, progress)}


MEASURES = {
    "profile": Measure("attention by distance and by length, on sinks and nearby", _profile, 233),
    "locality": Measure("how often local tokens suffice, predicted and in truth (QAdA)", _locality, 158),
    "keys": Measure("principal directions of keys before and after rotation, strong channels", _keys, 125),
    "queries": Measure("principal direction of each KV head's queries (Q-Filters)", _queries, 125),
    "patterns": Measure("output error of prefill patterns of equal cost (MInference)", _patterns, 353),
    "retrieval": Measure("retrieval scores of query heads", _retrieval, 146),
    "induction": Measure("echo and induction scores of query heads (RazorAttention)", _induction, 8),
    "gates": Measure("gates between full and streaming attention, trained (DuoAttention)", _gates, 2405),
    "spans": Measure("loss of shorter spans, and the spans of least loss (MoA)", _spans, 167),
    "seer": Measure("gates of blocks, trained on what each block attends to (SeerAttention)", _seer, 247),
    "dhsa": Measure("networks that foretell where chunks of keys begin, trained (DHSA)", _dhsa, 223),
    "sale": Measure("the largest threshold of each head that costs little of its output (SALE)", _sale, 264),
    "nats": Measure("heads that tell how long a token is needed, fitted to attention (NAtS)", _nats, 454),
    "ablation": Measure("loss when one head keeps sinks and recent tokens only", _ablation, 874),
}


def check_measures(names: Iterable[str]) -> list[str]:
    """The names, when all are measures; HeadwiseError with the nearest one otherwise."""
    names = list(names)
    for name in names:
        if name not in MEASURES:
            raise HeadwiseError(f"nothing called '{name}' is measured; {did_you_mean(name, MEASURES)}")
    return names


def calibrate(
    material: Material,
    names: Iterable[str] = tuple(MEASURES),
    path: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    each: Callable[[str], None] = lambda name: None,
) -> Calibration:
    """A calibration with these measures. With a `path` each is written there as soon as it is found, and what the file
    holds already is not measured again; a file of another model or other data is refused. each: told every
    measure that is done."""
    names = check_measures(names)
    if "spans" in names:
        check_ladder([recall.ids.shape[1] for recall in material.ladder], material.density)
    seam, data = attach(material.model), material.data
    found = Calibration(seam.geometry, seam.fingerprint, data)
    if path is not None and path.exists():
        found = Calibration.load(path, seam.fingerprint)
        if found.data != data:
            raise PlanError(
                f"{path} was measured on data {found.data}, this is {data}; give the documents and settings it was "
                "made with, or another --out"
            )
    missing = [name for name in MEASURES if name in names and name not in found.figures]
    total, before = sum(MEASURES[name].cost for name in missing), 0
    for name in missing:
        measure = MEASURES[name]
        progress(measure.about, before, total)
        found = found.adding(name, *measure.run(material, partial(_weighted, progress, measure, before, total)))
        if path is not None:
            found.save(path)
        each(name)
        before += measure.cost
    return found


def _weighted(
    progress: Callable[[str, int, int], None], measure: Measure, before: int, total: int, done: int, steps: int
) -> None:
    progress(measure.about, before + measure.cost * done // max(1, steps), total)
