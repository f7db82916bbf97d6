"""What is measured on a host: proofs that it tells methods apart, its calibration, the front of all methods on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from headwise.claims import on_host, proof
from headwise.claims.calibrated import calibration_of, measures_of
from headwise.claims.front import entries, run
from headwise.claims.hosts import Document, Host, Stage
from headwise.claims.on_host import OnHost, Runs
from headwise.errors import HeadwiseError
from headwise.recipe import Recipe

from ..engine.small import build

TOKENS = 192


@dataclass(frozen=True)
class Parrot(Host):
    """Says of noise what the model says of it anyway, so that dense attention is always right."""

    least_dense: float = 0.9
    asks: int = 4

    def load(self, folder: Path) -> Stage:
        return Saying()


class Saying(Stage):
    def __init__(self) -> None:
        self.model = build(max_position_embeddings=2048)

    def document(self, number: int, share: float = 1.0) -> Document:
        draw, vocabulary = torch.Generator().manual_seed(100 + number), self.model.config.vocab_size
        ids = torch.randint(0, vocabulary, (1, round(share * TOKENS)), generator=draw)
        asks = [torch.randint(0, vocabulary, (1, 3), generator=draw) for _ in range(2)]
        return Document(ids, tuple((ask, self._said(torch.cat((ids, ask), 1))) for ask in asks))

    def _said(self, ids: torch.Tensor) -> torch.Tensor:
        whole = ids
        for _ in range(2):
            with torch.no_grad():
                whole = torch.cat((whole, self.model(whole).logits[:, -1:].argmax(-1)), 1)
        return whole[:, ids.shape[1] :]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnHost:
    monkeypatch.setattr(on_host, "LEAST_DOCUMENTS", 2)
    return OnHost(Parrot("parrot", "of noise"), Runs(tmp_path, lambda what, done, total: None))


@pytest.mark.parametrize("asked", ["after", "before"])
def test_dense_attention_proves_itself_and_what_costs_nothing_is_told(stage: OnHost, asked: str) -> None:
    found = proof.proof(stage, asked)  # type: ignore[arg-type]
    assert found["dense"] == 1.0
    assert set(found["kept"]) == set(proof.KNOW_NOTHING[asked])  # type: ignore[index]
    for mean, low, high in found["kept"].values():
        assert 0 <= low <= mean <= high <= 1


@pytest.mark.parametrize(
    ("dense", "high", "why"),
    [(0.95, 0.5, ""), (0.8, 0.5, "0.80 of the questions"), (0.95, 0.9, r"random\(0.25\) keeps 0.40 .* up to 0.90")],
)
def test_a_host_fails_where_dense_does_or_where_nothing_knows_enough(dense: float, high: float, why: str) -> None:
    found = proof._fails(0.9, dense, {"random(0.25)": [0.4, 0.2, high]})
    assert bool(found) == bool(why)
    if why:
        assert re.search(why, found)


def test_a_host_is_calibrated_once_on_documents_of_its_own(stage: OnHost, tmp_path: Path) -> None:
    names = measures_of(Recipe.parse("razor(0.2)"))
    assert names == {"induction"}
    assert not measures_of(Recipe.parse("snapkv(0.2) | int8"))
    loads = []

    def load() -> Stage:
        loads.append(1)
        return stage.stage

    def told(what: str, done: int, total: int) -> None:
        pass

    first = calibration_of(stage.host, load, names, tmp_path, told)
    assert calibration_of(stage.host, load, names, tmp_path, told).digest == first.digest
    assert len(loads) == 1
    assert set(stage._plan("razor(0.2)").calibration) == {"razor.echo", "razor.induction"}


def test_the_front_fits_every_method_and_says_what_cannot_run(stage: OnHost) -> None:
    listed = entries((0.5,), words=("random", "streaming", "snapkv", "kivi", "hip("))
    result = run(stage.host, listed, 2, stage.runs)
    rows = {(row["arm"], row["asked"]): row for row in result["rows"]}
    assert {asked for _, asked in rows} == {"after", "before", "along"}
    for row in rows.values():
        if "refused" in row:
            assert len(row["refused"]) > 10
        elif row["at"] is not None and row["equal"] != "pairs":
            assert row["cost"] == pytest.approx(row["at"], abs=0.15), row
    mean, low, high = rows["snapkv({share})", "after"]["answers"]
    assert low <= mean <= high
    assert result["dense"]["after"] == 1.0


def test_of_no_such_method_nothing_is_listed() -> None:
    assert entries((0.5,), words=("no such method",)) == []
    assert {one.asked for one in entries((0.5,), ways=("after", "along"))} == {"after", "along"}


def test_a_host_without_dense_answers_is_refused(stage: OnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_host, "MOST_DOCUMENTS", 2)
    monkeypatch.setattr(Saying, "_said", lambda self, ids: torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(HeadwiseError, match="are needed to tell methods apart"):
        stage.documents("after")
