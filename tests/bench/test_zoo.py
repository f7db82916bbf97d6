"""The matrix of models: a few families, the verdicts that it can come to, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.bench import zoo
from headwise.cli.models_page import models_page
from headwise.seams.transformers import zoo as seam

FAMILIES = {
    "llama": "identical",
    "qwen3": "identical",
    "gemma2": "identical",
    "phi3": "identical",
    "gpt2": "identical",
    "gpt_neox": "identical",
    "mixtral": "identical",
    "opt": "identical",
    "cohere2": "identical",
    "bloom": "identical",
    "gemma3n_text": "identical",
    "mamba": "refused",
    "deepseek_v3": "identical",
    "t5gemma": "identical",
}


def specimen(name: str) -> seam.Specimen:
    (found,) = [one for sort in ("causal", "encoder-decoder") for one in seam.specimens(sort) if one.model_type == name]
    return found


@pytest.mark.parametrize(("name", "found"), FAMILIES.items())
def test_families(name: str, found: str) -> None:
    verdict = seam.examine(specimen(name))
    assert verdict.found == found, verdict
    assert bool(verdict.why) == (found == "refused")
    assert found == "refused" or verdict.governed + verdict.reading == verdict.layers > 1
    assert verdict.by_itself == (name == "bloom") and bool(verdict.reading) == (name == "gemma3n_text")


class Wrong(seam.Cache):
    """A cache whose attention is a little off."""

    def attend(self, *args: Any) -> torch.Tensor:
        return super().attend(*args) * 1.001


class Broken(seam.Cache):
    def attend(self, *args: Any) -> torch.Tensor:
        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize(("cache", "found"), [(Wrong, "differs"), (Broken, "crash")])
def test_what_is_wrong_is_told(cache: type, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "Cache", cache)
    verdict = seam.examine(specimen("llama"))
    assert verdict.found == found and "prompt in one piece" in verdict.why


def test_one_that_does_not_run_alone_is_not_called_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: object, cache: object, *_: object) -> torch.Tensor:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(seam, "_asked", fails)
    verdict = seam.examine(specimen("llama"))
    assert verdict.found == "not built" and "does not run alone" in verdict.why


def test_what_is_finished_is_taken_over_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = zoo.chosen(["causal"], ["llama"])[:2]
    monkeypatch.setattr(zoo, "examine", lambda one: seam.Verdict("identical", "", 2, 0, 2))
    first = zoo.matrix(listed, tmp_path, lambda *_: None)
    monkeypatch.setattr(zoo, "examine", lambda one: 1 / 0)
    assert zoo.matrix(listed, tmp_path, lambda *_: None) == first
    assert first["counts"] == {"causal": {"identical": 2}}


def test_the_page_has_a_column_for_each_version_the_newest_first() -> None:
    row = {"sort": "causal", "model_type": "a", "kind": "A", "why": "", "governed": 1, "passing": 1, "layers": 2}
    old = {"transformers": "4.57.6", "counts": {"causal": {"refused": 1}}, "rows": [row | {"found": "refused"}]}
    itself = row | {"found": "identical", "by_itself": True}
    new = {"transformers": "5.24.0", "counts": {"causal": {"identical": 1}}, "rows": [itself]}
    page = models_page("made", [old, new])
    assert "| model type | class | 5.24.0 | 4.57.6 | governed | passing | reading | why |" in page
    assert "| a | A | identical | refused | 1 of 2, form only | 1 |  |  |" in page
    assert "| 5.24.0 | causal | 1 | 1 |" in page
    assert page.index("| 5.24.0 | causal | 1 |") < page.index("| 4.57.6 | causal | 0 | 0 | 1 |")
