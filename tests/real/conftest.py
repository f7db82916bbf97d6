"""Pretrained models as `headwise models get` puts them among the user's caches: tests of one that is not there skip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import headwise
from headwise.assets import novel
from headwise.bench.job import encode
from headwise.caches import cache_folder
from headwise.pretrained import PRETRAINED, folder_of
from headwise.seams.transformers.load import load_tokenizer

CACHES = cache_folder().parent  # found now: while tests run, the user's caches are not theirs
FOLDERS = {name: folder_of(name) for name in PRETRAINED}


@dataclass(frozen=True)
class Real:
    """A pretrained model by its short name."""

    name: str
    folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        """In float32, where headwise and transformers' eager attention differ by rounding alone."""
        return self._loaded(torch.float32)

    @cached_property
    def stored(self) -> PreTrainedModel:
        """In bfloat16, as it is stored and run."""
        return self._loaded(torch.bfloat16)

    def _loaded(self, dtype: torch.dtype) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, attn_implementation="eager").eval()

    def prompt(self, tokens: int) -> torch.Tensor:
        """Ids [1, tokens] of a stretch of the novel."""
        return encode(self.tokenizer, novel()[50_000 : 50_000 + 8 * tokens], start=True)[:, :tokens]

    def eager(self, ids: torch.Tensor, new: int) -> list[int]:
        """What transformers writes after `ids [1, n]`, greedily, by its own eager attention."""
        headwise.detach(self.model)
        return self.written(ids, new)

    def written(self, ids: torch.Tensor, new: int, **how: object) -> list[int]:
        """`new` tokens after `ids [1, n]`, greedily, under transformers' `generate`."""
        out = self.model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, **how)
        return out[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FOLDERS])
def real(request: pytest.FixtureRequest) -> Real:
    name = request.param
    if not (FOLDERS[name] / "config.json").is_file():
        pytest.skip(f"until {name} is fetched: make real-models")
    return Real(name, FOLDERS[name])


@pytest.fixture
def user_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's caches, for commands that are given a model by its short name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHES))
    yield CACHES
