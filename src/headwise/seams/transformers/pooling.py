"""How what a model makes of a text's tokens becomes one vector, and where a model's files say so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from headwise.errors import FileError, UnsupportedModel
from headwise.seams.transformers.load import located

KINDS = {  # by how sentence-transformers' files say it
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "first",
}


@dataclass(frozen=True)
class Pooling:
    """A text's vector is the state of its `first` or `last` token, or the `mean` of all.

    unit: whether it is then given length 1. longest: tokens of a text at most, None for as many as the model has
    positions. lowers: whether a text's letters are made small before it is read.
    """

    kind: str
    unit: bool = True
    longest: int | None = None
    lowers: bool = False

    def add(self, pool: Tensor | None, states: Tensor) -> Tensor:
        """What came of a text's tokens so far, None at its beginning, with the states [t, width] of the next ones."""
        if self.kind == "last":
            return states[-1].float()
        if self.kind == "first":
            return states[0].float() if pool is None else pool
        total = states.float().sum(0)
        return total if pool is None else pool + total

    def vector(self, pool: Tensor, tokens: int) -> Tensor:
        """The vector [width] of a text of so many tokens, by what came of all of them."""
        found = pool / tokens if self.kind == "mean" else pool
        return normalize(found, dim=-1) if self.unit else found


def pooling_in(name: str | Path) -> Pooling | None:
    """What the folder of a model of sentence-transformers says; None for one that says nothing, and for a hub id.

    UnsupportedModel for layers after the model that are not known here, FileError for files that cannot be read.
    """
    folder = Path(located(name))
    if not (folder / "modules.json").is_file():
        return None
    modules = {one["type"].rpartition(".")[2]: folder / one["path"] for one in _read(folder / "modules.json")}
    if unknown := sorted(set(modules) - {"Transformer", "Pooling", "Normalize"}):
        raise UnsupportedModel(f"{folder} embeds by {', '.join(unknown)} as well, which is not known here")
    if "Pooling" not in modules:
        raise UnsupportedModel(f"{folder}/modules.json names no Pooling; give --embed last or mean")
    told = _read(folder / "sentence_bert_config.json", {})
    if _read(folder / "config_sentence_transformers.json", {}).get("default_prompt_name"):
        raise UnsupportedModel(f"{folder} puts a prompt of its own before every text, which is not done here")
    kind = _kind(modules["Pooling"] / "config.json")
    return Pooling(kind, "Normalize" in modules, told.get("max_seq_length"), bool(told.get("do_lower_case")))


def _kind(file: Path) -> str:
    """The one way of pooling that a file says."""
    said = [key for key, value in _read(file).items() if key.startswith("pooling_mode_") and value]
    if len(said) != 1 or said[0] not in KINDS:
        raise UnsupportedModel(f"{file} pools by {' and '.join(said) or 'nothing'}; known: {', '.join(KINDS)}")
    return KINDS[said[0]]


def _read(file: Path, otherwise: Any = None) -> Any:
    """A JSON file; `otherwise`, where that is given, for one that is not there."""
    if otherwise is not None and not file.is_file():
        return otherwise
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise FileError(f"{file} cannot be read ({error}); copy the whole folder of the model") from None
